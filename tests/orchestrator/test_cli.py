"""The commands as their users type them, over a dump whose attempts were recorded by hand."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from orchestrator import cli
from orchestrator.client.local import LocalSession
from orchestrator.cluster.local import LocalCluster
from orchestrator.cluster.slots import Slots
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.requests import Measurement, base_of, fetch_of, fetch_unit, protocols
from orchestrator.profile import Profile
from orchestrator.sweep.expand import Run, expand
from orchestrator.sweep.load import load
from orchestrator.sweep.naming import job_name
from tests.orchestrator.fakes import FakeCluster, record_message
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RunFolder
from trainer.results import Protocol, Record, TaskScore, TrainSummary, VariantResult, dump_record

SWEEP = """\
apiVersion: orch.dev/v1alpha1
kind: Sweep
metadata: {name: night}
spec:
  params: {model_name: tiny, max_steps: 10, max_length: 100, per_device_train_batch_size: 2}
  groups:
    - {name: lr, run: "lr{learning_rate}", grid: {learning_rate: [1e-5, 2e-5]}}
  resources: {gpus: 0}
  eval: {tasks: [everyday], perplexity: none}
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


Orch = Callable[..., Said]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return tmp_path / "dump"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "night.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def orch(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Orch:
    """Runs a command as `orch` does; submitting starts no controller of its own."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalSession, "start_controller", lambda session: True)

    def run(*words: object) -> Said:
        code = cli.main(["--dump", str(dump), *map(str, words)])
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def runs(file: Path) -> tuple[Run, ...]:
    return expand(load(file))


@pytest.fixture
def cluster(dump: Path) -> LocalCluster:
    return LocalCluster(dump, Profile(), Slots())


def _put(cluster: LocalCluster, stage: str, run_id: str, attempt: int = 1, **values: Any) -> None:
    job = job_name("night", run_id, stage, attempt)  # type: ignore[arg-type]
    record = AttemptRecord(job=job, sweep="night", run_id=run_id, stage=stage, attempt=attempt, **values)
    cluster.put_record("night", job, record.to_json())


def _trained(cluster: LocalCluster, run: Run, seconds: float = 20.0) -> None:
    fetch = fetch_unit(fetch_of(run.config))
    _put(cluster, "fetch", fetch.id, state="done", evidence="a done record", finished_at=10.0)
    summary = TrainSummary(step=10, max_steps=10, seconds=seconds)
    record = Record(stage="train", status="done", exit_code=0, run_id=run.id, train=summary)
    _put(cluster, "train", run.id, state="done", evidence="a done record", record=record, started_at=20.0,
         finished_at=20.0 + seconds)  # fmt: skip


def _measured(cluster: LocalCluster, file: Path, *measured: Run) -> None:
    """One eval Job's record of the adapters of `measured`, with its baselines."""
    spec = load(file).spec.eval
    scores = [
        VariantResult(variant="teacher", tasks={"everyday": TaskScore(0.8, 0.04, 100, 12, 2)}),
        VariantResult(variant="ptq", tasks={"everyday": TaskScore(0.7, 0.05, 100)}),
        *(
            VariantResult(
                variant="adapter", run_id=run.id, tasks={"everyday": TaskScore(0.78, 0.04, 100, 9, 1)}
            )
            for run in measured
        ),
    ]
    protocol = Protocol(model="tiny", quant="int4/128", dtype="bf16", batch_size=32)
    record = Record(stage="eval", status="done", exit_code=0, protocol=protocol, variants=scores)
    ids = tuple(run.id for run in measured)
    what = Measurement("night", protocols(spec, [])[0], base_of(measured[0].config), ids)
    _put(cluster, "eval", what.unit.id, state="done", evidence="a done record", record=record, runs=ids,
         finished_at=90.0)  # fmt: skip


# top


def test_top_says_what_waits_and_what_to_do(orch: Orch, file: Path) -> None:
    orch("submit", file)
    said = orch("top").out
    assert "waits: night: 2 runs (lr1e5, lr2e5): controller: no controller works; submit its file" in said
    found = json.loads(orch("top", "-o", "json").out)
    assert [one["reason"] for one in found["waiting"]] == ["controller"]
    assert (found["gpus"], found["using"]) == (0, [])
    assert found["sweeps"][0]["submitted_by"] == getpass.getuser()


def test_top_tells_of_a_sweep_that_no_longer_expands(orch: Orch, file: Path, dump: Path) -> None:
    orch("submit", file)
    stored = dump / ".orch" / "sweeps" / "night.json"
    stored.write_text(stored.read_text().replace('"max_steps"', '"max_stepz"'))
    [found] = json.loads(orch("top", "-o", "json").out)["waiting"]
    assert (found["reason"], found["runs"]) == ("refused", [])
    assert "max_stepz" in found["message"]


# gc


def _folder(dump: Path, run: Run, *, done: bool) -> Path:
    """A run of long ago on the volume, with a checkpoint."""
    folder = RunFolder(dump / "night" / run.id)
    for path in (folder.checkpoint(10) / "optimizer.safetensors", folder.adapter / ADAPTER_WEIGHTS):
        path.parent.mkdir(parents=True)
        path.write_text("x" * 10)
    (folder.adapter / ADAPTER_CONFIG).write_text(json.dumps({"r": 1}))
    folder.run.write_text(json.dumps({"digest": run.digest, "finished": 1.0}))
    if done:
        summary = TrainSummary(step=10, max_steps=10, adapter_sha256=hashlib.sha256(b"x" * 10).hexdigest())
        record = Record(stage="train", status="done", exit_code=0, config_digest=run.digest, train=summary)
        folder.done.write_bytes(dump_record(record))
    for path in (*folder.root.rglob("*"), folder.root):
        os.utime(path, (1.0, 1.0))
    return folder.root


def test_gc_is_dry_and_leaves_adapters(
    orch: Orch, file: Path, dump: Path, runs: tuple[Run, ...], cluster: LocalCluster
) -> None:
    orch("submit", file)
    _trained(cluster, runs[0])
    done, other = _folder(dump, runs[0], done=True), _folder(dump, runs[1], done=False)
    said = orch("gc")
    assert (said.code, said.err) == (0, "")
    assert f"night/{runs[0].id}/checkpoint-10: checkpoint, 10 B: its run is done for" in said.out
    assert said.out.endswith(f"1 would go, 10 B; `orch --dump {dump} gc --delete` removes them\n")
    assert (done / "checkpoint-10").is_dir()
    assert orch("gc", "night", "--delete").out.endswith("1 are gone, 10 B free\n")
    assert sorted(path.name for path in done.iterdir()) == ["adapter", "done.json", "run.json"]
    assert (other / "checkpoint-10").is_dir()
    assert orch("gc").out == "nothing may go\n"


def test_gc_of_runs_takes_those_that_were_given_up(
    orch: Orch, file: Path, dump: Path, runs: tuple[Run, ...], cluster: LocalCluster
) -> None:
    orch("submit", file)
    folder, other = (_folder(dump, run, done=False) for run in runs)
    assert orch("gc", "--runs").out == "nothing may go\n"  # they have yet to run
    orch("cancel", "night", "lr1e5")
    assert orch("gc").out == "nothing may go\n"
    said = json.loads(orch("gc", "--runs", "--delete", "-o", "json").out)
    assert [(one["kind"], one["path"]) for one in said["items"]] == [("run", f"night/{runs[0].id}")]
    assert (said["v"], said["deleted"], said["faults"]) == (1, True, [])
    assert (folder.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--older-than", "a week"], "--older-than: must match"),
        (["nite"], "sweep nite: is not submitted here, in "),
    ],
)
def test_gc_of_what_cannot_be_is_the_users_fault(orch: Orch, file: Path, words: list[str], says: str) -> None:
    orch("submit", file)
    said = orch("gc", *words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(says)


def test_gc_before_anything_was_made_finds_nothing(orch: Orch) -> None:
    assert orch("gc") == (0, "nothing may go\n", "")


# plan


def test_plan_of_a_new_file_shows_what_it_is(
    orch: Orch, file: Path, dump: Path, runs: tuple[Run, ...]
) -> None:
    said = orch("plan", file)
    assert said == (
        0,
        "    run            id         steps   tokens ≤   ≈ time   state\n"
        "───────────────────────────────────────────────────────────────\n"
        f"+   lr1e5          {runs[0].id[-8:]}      10        4 k        –        \n"
        f"+   lr2e5          {runs[1].id[-8:]}      10        4 k        –        \n"
        "night: 2 runs, 2 new, 0 changed, 0 exist; at most 8 k tokens "
        "(steps × global batch × max_length); on the CPU\n",
        "",
    )
    assert not dump.exists(), "planning writes nothing"


def test_plan_tells_new_existing_changed_and_removed(orch: Orch, file: Path) -> None:
    orch("submit", file)
    changed = SWEEP.replace(
        'run: "lr{learning_rate}", grid: {learning_rate: [1e-5, 2e-5]}', "runs: &"
    ).replace(
        "runs: &",
        "runs: [{name: lr1e5, params: {learning_rate: 1e-5}}, {name: lr2e5, params: {learning_rate: 3e-5}}, "
        "{name: lr4e5, params: {learning_rate: 4e-5}}]",
    )
    file.write_text(changed)
    value = json.loads(orch("plan", file, "-o", "json").out)
    assert {one["name"]: one["change"] for one in value["runs"]} == {"lr1e5": "=", "lr2e5": "~", "lr4e5": "+"}
    assert len(value["removed"]) == 1
    assert "- removed: 1 runs are no longer in the file; --prune ends their Jobs" in orch("plan", file).out


def test_plan_json_resolves_every_trainer_field(orch: Orch, file: Path, runs: tuple[Run, ...]) -> None:
    value = json.loads(orch("plan", file, "-o", "json").out)
    one = value["runs"][0]
    assert one["config"] == {**runs[0].config.model_dump(mode="json"), "lora_alpha": 64}
    assert (one["name"], one["id"], one["group"], one["tags"]) == ("lr1e5", runs[0].id, "lr", ["lr"])
    assert (one["steps"], one["tokens_at_most"], one["seconds"]) == (10, 10 * 2 * 2 * 100, None)


def test_plan_estimates_from_a_measured_run_of_the_same_shape(
    orch: Orch, file: Path, cluster: LocalCluster, runs: tuple[Run, ...]
) -> None:
    orch("submit", file)
    _trained(cluster, runs[0], seconds=30.0)
    value = json.loads(orch("plan", file, "-o", "json").out)
    assert [one["seconds"] for one in value["runs"]] == [30.0, 30.0]


def test_plan_says_which_names_are_one_run(orch: Orch, file: Path) -> None:
    twice = "    - {name: again, runs: [{name: same, params: {learning_rate: 1e-5}}]}\n  resources"
    file.write_text(SWEEP.replace("  resources", twice))
    assert "one config, one run: lr1e5 is also same" in orch("plan", file).out


def test_plan_tells_every_fault_of_a_file_and_exits_2(orch: Orch, file: Path) -> None:
    file.write_text(SWEEP.replace("max_steps: 10", "max_stepz: 10").replace("gpus: 0", "gpuz: 0"))
    said = orch("plan", file)
    assert said.code == 2
    assert said.out == ""
    assert "max_stepz" in said.err
    assert "gpuz" in said.err
    assert "Traceback" not in said.err


# submit


def test_submit_twice_writes_once_and_says_how_to_follow(orch: Orch, file: Path, dump: Path) -> None:
    first = orch("submit", file, "--local")
    stored = (dump / ".orch" / "sweeps" / "night.json").stat()
    again = orch("submit", file)
    assert first.code == again.code == 0
    assert first.out.startswith(
        f"night: 2 runs, submitted here, in {dump}\na controller was started, its log is"
    )
    assert f"follow it with `orch --dump {dump} status night -w`" in first.out
    assert again.out.startswith("night: 2 runs, unchanged")
    assert (dump / ".orch" / "sweeps" / "night.json").stat().st_mtime_ns == stored.st_mtime_ns


def test_submit_into_a_dump_that_cannot_be_written_exits_2(orch: Orch, file: Path, dump: Path) -> None:
    dump.write_text("a file")
    said = orch("submit", file)
    assert said.code == 2
    assert "name another folder with --dump" in said.err


def test_submit_of_what_is_done_shows_the_table_at_once(
    orch: Orch, file: Path, cluster: LocalCluster, runs: tuple[Run, ...]
) -> None:
    orch("submit", file)
    for run in runs:
        _trained(cluster, run)
        _measured(cluster, file, run)
    stored = cluster.root / "sweeps" / "night.json"
    first = orch("submit", file, "--wait")  # whoever recorded the last end died before it was told
    assert first.code == 0
    assert json.loads(stored.read_text())["status"]["finished"]
    told = stored.stat()
    said = orch("submit", file, "--wait")
    assert said.code == 0
    assert said.out.splitlines()[1] == "nothing to do"
    assert "lr1e5 · adapter" in said.out
    assert stored.stat().st_mtime_ns == told.st_mtime_ns
    assert list((cluster.root / "jobs").glob("*")) == [], "no Job was made"


class ScriptedCluster(FakeCluster):
    """A FakeCluster for `--wait`: every turn the world goes on as `script` says."""

    slots = Slots()

    def put_sweep(self, sweep: Mapping[str, Any]) -> bool:
        """As a real one: what users commanded stays."""
        name = sweep["metadata"]["name"]
        control = self.stored.get(name, {"spec": {}})["spec"].get("control")
        changed = super().put_sweep(sweep)
        if control is not None:
            self.stored[name]["spec"]["control"] = control
        return changed

    def led(self) -> bool:
        return False

    def __init__(self, root: Path, script: Callable[[FakeCluster], None]) -> None:
        super().__init__()
        self.root = root
        self.on_wait = script

    @contextlib.contextmanager
    def lead(self) -> Iterator[None]:
        yield


@pytest.fixture
def scripted(
    dump: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[FakeCluster], None]], FakeCluster]:
    def install(script: Callable[[FakeCluster], None]) -> FakeCluster:
        cluster = ScriptedCluster(dump / ".orch", script)
        monkeypatch.setattr(LocalSession, "cluster", cluster)
        return cluster

    return install


def _end_well(cluster: FakeCluster) -> None:
    for job in list(cluster.made.values()):
        if not job.finished:
            cluster.finish(job.name)


def _trainings_fail(cluster: FakeCluster) -> None:
    for job in list(cluster.made.values()):
        if not job.finished and "-train-" in job.name:
            message = record_message(job, status="failed", exit_code=65, error="row 7 has no messages")
            cluster.fail(job.name, 65, message=message)
        elif not job.finished:
            cluster.finish(job.name)


def test_wait_takes_a_sweep_to_its_end_and_tells_changes(
    orch: Orch, file: Path, scripted: Callable[..., FakeCluster]
) -> None:
    cluster = scripted(_end_well)
    said = orch("submit", file, "--wait")
    assert said.code == 0
    lines = said.out.splitlines()
    assert "lr1e5, lr2e5: done" in lines
    assert "\x1b" not in said.out
    assert cluster.stored["night"]["status"]["counts"]["done"] == 2


def test_wait_exits_3_when_a_run_failed_and_says_why(
    orch: Orch, file: Path, scripted: Callable[..., FakeCluster]
) -> None:
    scripted(_trainings_fail)
    said = orch("submit", file, "--wait")
    assert said.code == 3
    assert (
        "lr1e5, lr2e5: failed in train: userError: record: exit 65, bad data: row 7 has no messages"
        in said.out
    )
    assert "  train 1: userError, after 1 min 00 s on node-a: record: exit 65" in said.out
    assert "next: nothing, not tried again: userError once, retry.userError is 0" in said.out
    assert "`orch retry night lr1e5` gives it another attempt" in said.out
    assert "lr2e5: failed alike; `orch why RUN` tells" in said.out


def test_ctrl_c_ends_the_jobs_suspends_and_says_how_to_go_on(
    orch: Orch, file: Path, dump: Path, scripted: Callable[..., FakeCluster]
) -> None:
    turns: list[int] = []

    def interrupt(cluster: FakeCluster) -> None:
        turns.append(1)
        if len(turns) == 1:
            for job in list(cluster.made):
                cluster.start(job)
            raise KeyboardInterrupt

    cluster = scripted(interrupt)
    said = orch("submit", file, "--wait")
    assert said.code == 130
    assert f"run the same command again: orch --dump {dump} submit {file} --wait" in said.out
    assert orch("status", "night").out.endswith("resume night` goes on\n")
    assert cluster.made == {}
    assert cluster.stored["night"]["spec"]["control"]["suspend"] is True
    (record,) = cluster.stored_records.values()
    assert (record["stage"], record["class"]) == ("fetch", "preempted")

    cluster.on_wait = _end_well
    assert orch("submit", file, "--wait").code == 0, "the same command goes on"
    assert cluster.stored["night"]["spec"]["control"]["suspend"] is False


def test_prune_is_asked_for_by_its_flag_alone(orch: Orch, file: Path, cluster: LocalCluster) -> None:
    for flags, expected in (((), False), (("--prune",), True), ((), False)):
        orch("submit", file, *flags)
        control = cluster.sweeps()[0]["spec"].get("control") or {}
        assert control.get("prune", False) is expected


# status


def test_status_tells_every_run(orch: Orch, file: Path, cluster: LocalCluster, runs: tuple[Run, ...]) -> None:
    orch("submit", file)
    _trained(cluster, runs[0])
    assert orch("status", "night").out == (
        "run            state     progress   loss   tok/s   left\n"
        "───────────────────────────────────────────────────────\n"
        "lr1e5          trained                                 \n"
        "lr2e5          pending                                 \n"
        "0 of 2 done, 1 trained, 1 pending · about 20 s left\n"
        "no controller works on it: submit its file again to go on\n"
    )


def test_status_json_has_stable_fields(orch: Orch, file: Path, runs: tuple[Run, ...]) -> None:
    orch("submit", file)
    value = json.loads(orch("status", "night", "-o", "json").out)
    assert (value["v"], value["sweep"], value["controller"], value["finished"]) == (1, "night", False, False)
    assert value["runs"][0] == {
        "name": "lr1e5", "id": runs[0].id, "state": "pending", "stage": "train", "attempt": 0, "job": None,
        "waits_for": None, "failure": None, "evidence": None, "remedy": None, "done": None, "total": None,
        "loss": None, "tokens_per_s": None, "seconds_left": None,
    }  # fmt: skip


def test_status_of_all_sweeps(orch: Orch, file: Path) -> None:
    orch("submit", file)
    assert json.loads(orch("status", "-o", "json").out)["sweeps"] == [
        {"name": "night", "submitted_by": getpass.getuser(), "status": {}}
    ]
    assert "night" in orch("status").out


# eval, results


def test_eval_asks_once_for_the_same(orch: Orch, file: Path, cluster: LocalCluster) -> None:
    orch("submit", file)
    words = (
        "eval",
        "--after",
        "night",
        "--tasks",
        "arc_easy,mmlu",
        "--tasks",
        "winogrande",
        "--no-eval-teacher",
    )
    assert orch(*words).out.startswith("night: evaluation asked for\n")
    assert orch(*words).out.startswith("night: evaluation was asked for already\n")
    (request,) = cluster.sweeps()[0]["spec"]["control"]["evals"]
    assert request == {"tasks": ["arc_easy", "mmlu", "winogrande"], "evalTeacher": False}


def test_eval_refuses_a_task_that_is_no_name(orch: Orch, file: Path) -> None:
    orch("submit", file)
    said = orch("eval", "--after", "night", "--tasks", "$(reboot)")
    assert said.code == 2
    assert "$(reboot)" in said.err


@pytest.mark.parametrize("output", ["text", "md", "csv", "json"])
def test_results_show_what_was_measured(
    orch: Orch, file: Path, cluster: LocalCluster, runs: tuple[Run, ...], output: str
) -> None:
    orch("submit", file)
    _measured(cluster, file, runs[0])
    said = orch("results", "night", "-o", output)
    assert said.code == 0
    assert {
        "text": "lr1e5 · adapter   78.0 ±4.0",
        "md": "| lr1e5 · adapter | 78.0 ±4.0 |",
        "csv": "lr1e5 · adapter,adapter,lr1e5,",
        "json": '"label": "lr1e5 · adapter"',
    }[output] in said.out
    assert "lr2e5" in said.out or output == "csv", "what is not measured is told"


# why, logs, cancel, retry


def test_why_tells_each_attempt_with_evidence_and_remedy(
    orch: Orch, file: Path, cluster: LocalCluster, runs: tuple[Run, ...]
) -> None:
    orch("submit", file)
    fetch = fetch_unit(fetch_of(runs[0].config))
    _put(cluster, "fetch", fetch.id, state="done", evidence="a done record", finished_at=10.0)
    failed = {"failure": FailureClass.OOM_HOST, "evidence": "OOMKilled", "node": "n3"}
    then = "tried again (1 of 2): memory 8Gi → 12Gi"
    times = {"started_at": 20.0, "finished_at": 62.0}
    _put(cluster, "train", runs[0].id, state="failed", remedy=then, **failed, **times)
    assert orch("why", "lr1e5").out == (
        f"lr1e5 ({runs[0].id}): pending\n"
        "  fetch 1: done: a done record\n"
        "  train 1: oomHost, after 42 s on n3: OOMKilled\n"
        "    then: tried again (1 of 2): memory 8Gi → 12Gi\n"
        "  next: it waits, controller: no controller works; submit its file again\n"
    )


def test_a_run_is_named_by_name_id_or_sweep(orch: Orch, file: Path, runs: tuple[Run, ...]) -> None:
    orch("submit", file)
    other = file.with_name("day.yaml")
    other.write_text(SWEEP.replace("name: night", "name: day"))
    orch("submit", other)
    assert orch("why", "night/lr1e5").code == orch("why", f"day/{runs[0].id}").code == 0
    said = orch("why", "lr1e5")
    assert said == (2, "", f"run lr1e5: names 2 runs; say which: day/{runs[0].id}, night/{runs[0].id}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["why", "lr1e6"], "run lr1e6: is in no submitted sweep; did you mean lr1e5"),
        (["results", "nigth"], "did you mean night?"),
        (["cancel", "night", "lr9"], "run lr9: is in no submitted sweep"),
        (["logs", "lr1e5"], "run lr1e5: has had no Job yet, so there is no log"),
        (["plan", "no.yaml"], "no.yaml: cannot be read, got No such file or directory"),
        (["--profile", "no.toml", "status", "night"], "no.toml: cannot be read"),
        (["statuz"], "No such command 'statuz'"),
    ],
    ids=["a run", "a sweep", "a run to cancel", "a log before any", "a file", "a profile", "a command"],
)
def test_a_users_fault_is_a_message_and_exit_2(
    orch: Orch, file: Path, words: list[str], message: str
) -> None:
    orch("submit", file)
    said = orch(*words)
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err


def test_cancel_and_retry_undo_each_other(orch: Orch, file: Path, cluster: LocalCluster) -> None:
    orch("submit", file)
    assert orch("cancel", "night", "lr1e5").out == "night: cancelled lr1e5\n"
    assert "cancelled" in orch("status", "night").out
    assert orch("retry", "night", "lr1e5").out.startswith("night: tries again lr1e5\n")
    assert "cancelled" not in orch("status", "night").out
    assert orch("cancel", "night").out == "night: cancelled lr1e5, lr2e5\n"
    orch("retry", "night", "lr2e5")
    states = {
        one["name"]: one["state"] for one in json.loads(orch("status", "night", "-o", "json").out)["runs"]
    }
    assert states == {"lr1e5": "cancelled", "lr2e5": "pending"}


def test_cancel_without_a_controller_ends_the_jobs_itself(
    orch: Orch, file: Path, scripted: Callable[..., FakeCluster], runs: tuple[Run, ...]
) -> None:
    cluster = scripted(lambda cluster: None)
    orch("submit", file)
    labels = {"orch.dev/sweep": "night", "orch.dev/stage": "train", "orch.dev/attempt": "1"}
    for run in runs:
        cluster.add(
            f"job-{run.name}", labels, {"orch.dev/run-id": run.id, "orch.dev/config-digest": run.digest}
        )
        cluster.start(f"job-{run.name}")
    assert orch("cancel", "night", "lr1e5").code == 0
    assert list(cluster.made) == ["job-lr2e5"], "and nothing new was started"
    assert cluster.stored["night"]["spec"]["control"]["suspend"] is False


def test_retry_forgives_what_failed(
    orch: Orch, file: Path, cluster: LocalCluster, runs: tuple[Run, ...]
) -> None:
    orch("submit", file)
    _put(cluster, "train", runs[0].id, state="failed", failure=FailureClass.DIVERGED, evidence="nan",
         finished_at=9.0)  # fmt: skip
    assert orch("retry", "night").out.startswith("night: tries again lr1e5\n")
    assert cluster.sweeps()[0]["spec"]["control"]["retry"] == [job_name("night", runs[0].id, "train", 1)]
    assert orch("retry", "night").out == "night: no run has failed or was cancelled\n"


# render, help


def test_render_prints_the_job_of_a_run(orch: Orch, file: Path, runs: tuple[Run, ...], dump: Path) -> None:
    said = orch("--profile", _profile(file), "render", file, "lr2e5")
    assert said.code == 0, said.err
    job = yaml.safe_load(said.out)
    assert (job["kind"], job["metadata"]["name"]) == ("Job", job_name("night", runs[1].id, "train", 1))
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][0] == "train"
    assert not dump.exists()


def _profile(file: Path) -> Path:
    profile = file.with_name("lab.toml")
    profile.write_text('image = "registry.example/trainer@sha256:' + "0" * 64 + '"\n')
    return profile


def test_every_command_has_help(orch: Orch) -> None:
    commands = re.findall(r"^  ([a-z]+)  ", orch("--help").out, re.MULTILINE)
    assert set(commands) >= {
        "plan",
        "submit",
        "status",
        "eval",
        "results",
        "logs",
        "why",
        "cancel",
        "retry",
        "render",
    }
    for command in commands:
        said = orch(command, "--help")
        assert said.code == 0
        assert "--help" in said.out
