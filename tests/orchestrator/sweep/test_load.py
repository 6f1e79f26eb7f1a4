"""Sweep files: what is accepted, and what is said about the rest."""

# ruff: noqa: E501 - a message stays on one line with what it answers

from pathlib import Path

import pytest

from orchestrator.errors import SweepError
from orchestrator.sweep.expand import expand
from orchestrator.sweep.load import from_object, load, loads

HEAD = "apiVersion: orch.dev/v1alpha1\nkind: Sweep\nmetadata: {name: s}\nspec:\n"
GROUP = "  groups: [{name: g, runs: [{name: x}]}]\n"


def faults(text: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        loads(text, "f.yaml")
    return caught.value.faults


def test_loads_fills_in_defaults():
    spec = loads(HEAD + GROUP, "f").spec
    assert spec.seeds == [42]
    assert spec.eval.tasks == ["hellaswag", "arc_easy", "arc_challenge", "winogrande", "mmlu"]
    assert (spec.eval.enabled, spec.eval.variants, spec.eval.baselines) == (
        True,
        ["adapter", "merged"],
        ["teacher", "ptq"],
    )
    assert (spec.resources.gpus, spec.scheduling.parallelism, spec.retry.preempted) == (1, 50, 20)


def test_loads_reads_every_field_of_the_design():
    text = (
        HEAD
        + GROUP
        + """\
  resources: {gpus: 8, gpuType: [H100], cpu: 0.5, memory: 200Gi, maxDuration: 90m}
  scheduling: {queue: gpu, priority: low, parallelism: 4, canary: true, gpuHours: 400}
  retry: {preempted: 20, nodeLost: 5, lost: 5, oomHost: 2, oomHostMemory: 1.5, oomCuda: 1, userError: 0}
  eval: {enabled: false, tasks: [], perplexity: none, baselines: [], adaptersPerJob: 4, limit: 100}
"""
    )
    spec = loads(text, "f").spec
    assert (spec.resources.cpu_quantity, spec.resources.memory_bytes, spec.resources.max_duration_s) == (
        "500m",
        200 * 2**30,
        5400,
    )
    assert spec.scheduling.model_dump() == {
        "queue": "gpu", "priority": "low", "parallelism": 4, "canary": True, "gpuHours": 400, "haltAfter": 3,
    }  # fmt: skip
    assert (spec.eval.enabled, spec.eval.tasks, spec.eval.limit) == (False, [], 100)


GROUP_FAULTS = [
    ("gird: {beta: [1]}, runs: [{name: x}]", "groups[0].gird: is no field, got 'gird'; did you mean grid?"),
    ("runs: [{name: x, parms: {}}]", "groups[0].runs[0].parms: is no field, got 'parms'; did you mean params?"),
    ("grid: {}", "groups[0].grid: must not be empty, got {}; give a value or leave the field out"),
    ("grid: {beta: []}", "groups[0].grid.beta: must not be empty, got []; give a value or leave the field out"),
    ("grid: {beta: 1}", "groups[0].grid.beta: must be a valid list, got 1; see docs/sweeps.md"),
    ("grid: {lambda: [1]}", "groups[0].grid.lambda: is no setting of the trainer, got 'lambda'; did you mean lmbda?"),
    ("grid: {lora_rank: [1]}", "groups[0].grid.lora_rank: is no setting of the trainer, got 'lora_rank'; "
     "did you mean lora_r?"),
    ("grid: {beta: ['0.5']}", "groups[0].grid.beta[0]: must be a valid number, got '0.5'; write it without quotes"),
    ("grid: {beta: [true]}", "groups[0].grid.beta[0]: must be a valid number, got True; "
     "beta: 0 forward KL, 1 reverse KL, between: JSD."),
    ("grid: {beta: [1.5]}", "groups[0].grid.beta[0]: must be less than or equal to 1, got 1.5; "
     "beta: 0 forward KL, 1 reverse KL, between: JSD."),
    ("grid: {max_steps: [1.5]}", "groups[0].grid.max_steps[0]: must be a valid integer, got 1.5; "
     "max_steps: Optimiser steps."),
    ("grid: {quant_type: [int5]}", "groups[0].grid.quant_type[0]: must be 'int4', 'int4_sym', 'bnb_nf4', 'bnb_fp4' "
     "or 'none', got 'int5'; quant_type: How the student's base is quantised."),
    ("grid: {beta: [1, 1.0]}", "groups[0].grid.beta[1]: is the value of [0] again, got 1.0; keep one"),
    ("grid: {beta: [nan]}", "groups[0].grid.beta[0]: must be a finite number, got 'nan'; "
     "beta: 0 forward KL, 1 reverse KL, between: JSD."),
    ("grid: {lora-r: [1], lora_r: [2]}", "groups[0].grid.lora_r: is given twice, got lora-r too; keep one spelling"),
    ("grid: {nproc: [2]}", "groups[0].grid.nproc: nproc is set by the resources; use resources.gpus (one process "
     "each), got a param"),
    ("grid: {seed: [2]}", "groups[0].grid.seed: seed is set by the seeds; use seeds: [42, 43], got a param"),
    ("grid: {output-dir: [x]}", "groups[0].grid.output-dir: says where a run is executed, never what it is, got "
     "output_dir; leave it out, orch sets it"),
    ("grid: {hf_token: [x]}", "groups[0].grid.hf_token: is no param, got the name of a secret ('hf_token'); "
     "secrets are set up in the profile"),
    ("zip: {beta: [0, 1], lora_r: [8]}", "groups[0].zip: lists must be of one length, got beta 2, lora_r 1; "
     "pad or cut them"),
    ("zip: {beta: [0]}, grid: {beta: [1]}", "groups[0].zip.beta: is set twice, got it in grid too; keep one"),
    ("params: {beta: 1}, grid: {beta: [1]}", "groups[0].grid.beta: is set twice, got it in params too; keep one"),
    ("params: {beta: 1}", "groups[0]: has no runs, got neither grid, zip nor runs; give one of them"),
    ("runs: [{name: x}], grid: {beta: [1]}", "groups[0].grid: does not go with runs, got both; "
     "put the runs in a group of their own"),
    ("run: 'a{lmda}', grid: {beta: [1]}", "groups[0].run: has an unknown placeholder, got {lmda}; did you mean lmbda?"),
    ("run: 'a{beta:.2f}', grid: {beta: [1]}", "groups[0].run: has a format of its own, got 'a{beta:.2f}'; "
     "write {beta} alone"),
    ("run: 'a{beta', grid: {beta: [1]}", "groups[0].run: is no template (expected '}' before end of string), got "
     "'a{beta'; write {learning_rate} for a value"),
    ("runs: [{name: a/b}]", "groups[0].runs[0].name: must match ^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$, got 'a/b'; "
     "write it so"),
    ("runs: [{name: ../x}]", "groups[0].runs[0].name: must match ^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$, got "
     "'../x'; write it so"),
    ("runs: [{params: {}}]", "groups[0].runs[0].name: is missing, got nothing; add it"),
    ("tags: [a b], runs: [{name: x}]", "groups[0].tags[0]: must match ^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$, got "
     "'a b'; write it so"),
    ("seeds: [1, 1], runs: [{name: x}]", "groups[0].seeds: must not hold 1 twice, got [1, 1]; see docs/sweeps.md"),
    ('grid: {dataset_name: ["a\\0b"]}', "groups[0].grid.dataset_name[0]: must be at most 1000 printable characters, "
     "got 'a\\x00b'; see docs/sweeps.md"),
]  # fmt: skip


@pytest.mark.parametrize(("group", "says"), GROUP_FAULTS, ids=[group for group, _ in GROUP_FAULTS])
def test_loads_tells_what_is_wrong_with_a_group(group, says):
    text = HEAD + f"  groups:\n    - {{name: g, {group}}}\n"
    assert faults(text) == [f"f.yaml: spec.{says}"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("resources: {gpu: 8}", "resources.gpu: is no field, got 'gpu'; did you mean gpus?"),
        ("resources: {gpus: '8'}", "resources.gpus: must be a valid integer, got '8'; write it without quotes"),
        ("resources: {gpus: -1}", "resources.gpus: must be greater than or equal to 0, got -1; see docs/sweeps.md"),
        ("resources: {memory: 8}", "resources.memory: must be a valid string, got 8; see docs/sweeps.md"),
        (
            "resources: {memory: 8GB}",
            "resources.memory: must match ^[1-9][0-9]{0,5}(Mi|Gi|Ti)$, got '8GB'; write it so",
        ),
        ("scheduling: [a]", "scheduling: must be a mapping, got ['a']; write `key: value` lines under it"),
        ("retry: {nodelost: 1}", "retry.nodelost: is no field, got 'nodelost'; did you mean nodeLost?"),
        ("eval: {variants: [both]}", "eval.variants[0]: must be 'adapter' or 'merged', got 'both'; see docs/sweeps.md"),
        ("eval: {adaptersPerJob: 5}", "eval.adaptersPerJob: must be less than or equal to 4, got 5; see docs/sweeps.md"),
        ("parms: {}", "parms: is no field, got 'parms'; did you mean params?"),
        ("params: {lmbda: [1]}", "params.lmbda: must be a number, text, true or false, got [1]; see docs/sweeps.md"),
    ],
)  # fmt: skip
def test_loads_tells_what_is_wrong_with_the_rest(line, says):
    assert faults(HEAD + GROUP + f"  {line}\n") == [f"f.yaml: spec.{says}"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "name: s",
            "name: S_1",
            "metadata.name: must match ^[a-z0-9]+(-[a-z0-9]+)*$, got 'S_1'; write it so",
        ),
        (
            "name: s",
            f"name: {'s' * 29}",
            f"metadata.name: must have at most 28 characters, got {'s' * 29!r}; see docs/sweeps.md",
        ),
        ("kind: Sweep", "kind: Job", "kind: must be 'Sweep', got 'Job'; see docs/sweeps.md"),
        ("kind: Sweep\n", "", "kind: is missing, got nothing; add it"),
        ("v1alpha1", "v2", "apiVersion: must be 'orch.dev/v1alpha1', got 'orch.dev/v2'; see docs/sweeps.md"),
    ],
)
def test_loads_tells_what_is_wrong_with_the_head(old, new, says):
    assert faults((HEAD + GROUP).replace(old, new)) == [f"f.yaml: {says}"]


def test_loads_tells_the_faults_of_yaml_schema_params_and_runs_at_once():
    text = (
        HEAD.replace("name: s", "name: S")
        + """\
  params: {lmbda: 0}
  groups:
    - {name: a, gird: {beta: [1]}, runs: [{name: x}]}
    - {name: b, grid: {beta: [.nan, 2]}}
    - {name: c, grid: {beta: [0, 1]}, run: same}
    - {name: c, grid: {beta: [0, 1]}, exclude: [{beta: 0.5}]}
  resources: {gpus: many}
"""
    )
    assert [fault.split(": ")[1] for fault in faults(text)] == [
        "line 8",
        "metadata.name",
        "spec.groups[0].gird",
        "spec.groups[1].grid.beta[1]",
        "spec.groups[3].name",
        "spec.resources.gpus",
        "spec.groups[2]",
    ]


@pytest.mark.parametrize("text", ["[]", "a", "spec: 1", "spec: {groups: 1}", "spec: {groups: [1]}", "3"])
def test_loads_tells_faults_of_any_other_shape(text):
    assert all(fault.startswith("f.yaml: ") for fault in faults(text))


def test_loads_tells_at_most_a_hundred_faults_and_how_many_more():
    values = ", ".join(str(number) for number in range(2, 202))
    found = faults(HEAD + f"  groups: [{{name: g, grid: {{beta: [{values}]}}}}]\n")
    assert len(found) == 101
    assert found[-1] == "f.yaml: and 100 more faults; correct these first"


def test_load_reads_a_file_and_says_its_name(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + GROUP).encode())
    assert load(path) == loads(HEAD + GROUP, "")
    path.write_text("kind: 017")
    with pytest.raises(SweepError, match=r"s\.yaml: line 1: kind: is an octal number"):
        load(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "cannot be read, got No such file or directory", id="no file"),
        pytest.param(b"a: \xff", "is not text", id="not UTF-8"),
        pytest.param(b"#" * (2**20 + 1), "file is too large", id="over 1 MiB"),
        pytest.param(b"\xff" * (2**20 + 1), "file is too large", id="over 1 MiB and not UTF-8"),
    ],
)
def test_load_refuses_what_is_no_sweep_file(tmp_path: Path, content, says):
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SweepError, match=says):
        load(path)


def test_from_object_leaves_aside_what_others_wrote_into_a_stored_sweep():
    sweep = loads(HEAD + GROUP, "f")
    stored = sweep.model_dump(mode="json", exclude_none=True)
    stored["metadata"] |= {"uid": "1", "generation": 2, "managedFields": []}
    stored["status"] = {"counts": {}}
    stored["spec"]["control"] = {"suspend": True}
    assert from_object(stored) == sweep


def test_from_object_gives_the_same_runs_when_the_server_turned_floats_into_ints():
    text = (
        HEAD
        + "  params: {weight_decay: 0.0}\n  groups: [{name: g, grid: {beta: [0.0, 1.0], lmbda: [0.5]}}]\n"
    )
    sweep = loads(text, "f")
    stored = sweep.model_dump(mode="json", exclude_none=True)
    stored["spec"]["params"] = {"weight_decay": 0}
    stored["spec"]["groups"][0]["grid"] = {"lmbda": [0.5], "beta": [0, 1]}
    assert expand(from_object(stored)) == expand(sweep)


def test_from_object_tells_faults_of_a_stored_sweep():
    with pytest.raises(SweepError, match=r"^s: metadata: must be a mapping.*\ns: spec: must be a mapping"):
        from_object({"apiVersion": "orch.dev/v1alpha1", "kind": "Sweep"}, "s")


@pytest.mark.parametrize(
    "value",
    ["hf_" + "a" * 30, "https://user:pass@hub.example/x", "AKIA" + "A" * 16],
    ids=["a hub token", "a password in an address", "a cloud key"],
)
def test_a_value_that_looks_like_a_secret_is_refused_and_not_echoed(value):
    text = HEAD + f'  params: {{model_name: "{value}"}}\n' + GROUP
    [fault] = faults(text)
    assert "must not hold a secret" in fault
    assert value not in fault


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lr", "learning_rate"), ("batch_size", "per_device_train_batch_size"), ("epochs", "max_steps")],
)
def test_names_of_the_field_are_led_to_ours(typed, meant):
    [fault] = faults(HEAD + f"  params: {{{typed}: 1}}\n" + GROUP)
    assert f"did you mean {meant}?" in fault


def test_the_schema_allows_no_evaluation_that_the_trainer_refuses():
    [fault] = faults(HEAD + GROUP + "  eval: {perplexityTokens: 255}\n")
    assert "256" in fault
