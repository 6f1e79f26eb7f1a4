"""What the controller tells Prometheus, and the alerts and the dashboard that are made of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.watched import WatchedCluster
from orchestrator.cluster.kube.workqueue import WorkQueue
from orchestrator.controller.loop import Controller
from orchestrator.controller.metrics import HELD, REFLECTOR_COUNTS, Metrics, held_by
from orchestrator.controller.outcome import AttemptRecord, FailureClass
from orchestrator.controller.status import Condition, SweepStatus
from orchestrator.profile import Profile
from tests.orchestrator.controller.scene import a_sweep
from tests.orchestrator.controller.test_loop import finish_all
from tests.orchestrator.fakes import FakeCluster

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "manifests" / "components" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["spec"]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]
}
BOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")


def full() -> Metrics:
    """Metrics of a controller that has done a bit of everything."""
    metrics = Metrics()
    stats = SimpleNamespace(**dict.fromkeys(REFLECTOR_COUNTS, 1))
    reflector = SimpleNamespace(name="jobs", contact_age_s=1.0, stats=stats)
    api = SimpleNamespace(requests={("POST", "jobs", 201): 1})
    metrics.watch(
        cast(Api, api), cast(WatchedCluster, SimpleNamespace(reflectors={"jobs": reflector})), WorkQueue()
    )
    metrics.leads(True)
    metrics.turned("night", SweepStatus(counts={"pending": 2}, gpuHours=1.5), 0.2)
    return metrics


def samples(metrics: Metrics) -> dict[str, list[dict[str, str]]]:
    """The labels of every exposed sample, by its name."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def queries() -> dict[str, str]:
    """Every PromQL of the alerts and the dashboard, with the dashboard's variable filled in."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()}
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"].replace("$sweep", ".*")
    return found


QUERIES = queries()
_METRIC = re.compile(r"\b(orch_[a-z_]+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


@pytest.mark.parametrize("name", QUERIES)
def test_every_metric_and_label_that_is_asked_for_exists(name: str) -> None:
    exposed = samples(full())
    used = _METRIC.findall(QUERIES[name])
    assert used
    for metric, selector in used:
        assert metric in exposed
        known = set().union(*exposed[metric])
        assert set(_LABEL.findall(selector)) <= known


def test_every_metric_is_told_of_somewhere() -> None:
    """What nobody looks at need not be kept."""
    used = {metric for query in QUERIES.values() for metric, _ in _METRIC.findall(query)}
    families = {family.name for family in text_string_to_metric_families(full().text().decode())}
    unused = {one for one in families if not any(metric.startswith(one) for metric in used)}
    assert {one for one in unused if not one.endswith("_created")} == set()


@pytest.mark.parametrize("label", ["state", "by", "outcome", "what"])
def test_every_value_that_is_asked_for_exists(label: str) -> None:
    known = {
        labels[label] for all_labels in samples(full()).values() for labels in all_labels if label in labels
    }
    asked = {
        word
        for query in QUERIES.values()
        for values in re.findall(rf'\b{label}(?:=~|!~|!=|=)"([^"]*)"', query)
        for word in values.split("|")
    }
    assert asked
    assert asked <= known


def test_alerts_say_what_is_wrong_and_the_guide_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["remedy"]
        assert f"| `{name}` |" in GUIDE
    assert set(re.findall(r"`(Orch[A-Z]\w+)`", GUIDE)) == set(ALERTS)


def test_the_dashboard_s_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        mine = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & mine, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= mine
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def _promtool(folder: Path, *words: str) -> str:
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@promtool
def test_promtool_takes_every_query(tmp_path: Path) -> None:
    records = [{"record": f"q:{number}", "expr": query} for number, query in enumerate(QUERIES.values())]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(RULES))
    (tmp_path / "board.yaml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": records}]}))
    said = _promtool(tmp_path, "check", "rules", "alerts.yaml", "board.yaml")
    assert f"{len(ALERTS)} rules found" in said


GOOD = {
    "orch_leader": "1x400",
    "orch_last_turn_timestamp_seconds": "0+60x400",
    'orch_runs{sweep="night",state="running"}': "1x400",
    'orch_runs{sweep="night",state="pending"}': "5x400",
    'orch_sweep_held{sweep="night",by="Halted"}': "0x400",
    "orch_turn_failures_total": "0x400",
    'orch_reflector_silence_seconds{kind="jobs"}': "60x400",
    'orch_attempts_total{stage="train",outcome="userError"}': "0x400",
    'orch_attempts_total{stage="train",outcome="preempted"}': "0+10x400",
    'orch_attempts_total{stage="train",outcome="gpuFault"}': "0x400",
}
"""One sample a minute of a controller that is well."""
BAD: dict[str, tuple[dict[str, str], set[str]]] = {
    "all is well": ({}, set()),
    "nobody leads": ({"orch_leader": "0x400"}, {"OrchNoLeader"}),
    "it takes no turns": ({"orch_last_turn_timestamp_seconds": "0x400"}, {"OrchNoTurns"}),
    "a replica that only waits": (
        {'orch_leader{pod="b"}': "0x400", 'orch_last_turn_timestamp_seconds{pod="b"}': "0x400"}, set(),
    ),
    "turns fail": ({"orch_turn_failures_total": "0+1x400"}, {"OrchTurnsFail"}),
    "the API server is silent": (
        {'orch_reflector_silence_seconds{kind="jobs"}': "0+60x400"}, {"OrchApiSilent"},
    ),
    "the API server refuses": (
        {'orch_api_requests_total{method="POST",resource="jobs",status="429"}': "0+5x400"},
        {"OrchApiRefuses"},
    ),
    "a halt": ({'orch_sweep_held{sweep="night",by="Halted"}': "1x400"}, {"OrchSweepHalted"}),
    "a refused sweep": ({'orch_sweep_held{sweep="day",by="Refused"}': "1x400"}, {"OrchSweepRefused"}),
    "a full quota": ({'orch_sweep_held{sweep="night",by="JobsRefused"}': "1x400"}, {"OrchJobsRefused"}),
    "Jobs wait": ({'orch_sweep_held{sweep="night",by="Waiting"}': "1x400"}, {"OrchJobsWait"}),
    "nothing runs": ({'orch_runs{sweep="night",state="running"}': "0x400"}, {"OrchNothingRuns"}),
    "nothing runs, as was asked": (
        {
            'orch_runs{sweep="night",state="running"}': "0x400",
            'orch_sweep_held{sweep="night",by="Suspended"}': "1x400",
        },
        set(),
    ),
    "runs fail": (
        {'orch_attempts_total{stage="train",outcome="userError"}': "0+1x400"}, {"OrchRunsFail"},
    ),
    "GPUs fail": (
        {'orch_attempts_total{stage="train",outcome="gpuFault"}': "0x390 3x10"}, {"OrchGpusFail"},
    ),
}  # fmt: skip


@promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(RULES))
    tests = []
    for case, (bad, firing) in BAD.items():
        series = [{"series": name, "values": values} for name, values in (GOOD | bad).items()]
        expected = [
            {
                "eval_time": "400m",
                "alertname": name,
                "exp_alerts": [_fired(rule, bad)] if name in firing else [],
            }
            for name, rule in ALERTS.items()
        ]
        tests.append({"name": case, "interval": "1m", "input_series": series, "alert_rule_test": expected})
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    _promtool(tmp_path, "test", "rules", "tests.yaml")


def _fired(rule: dict[str, Any], bad: dict[str, str]) -> dict[str, Any]:
    """The alert with the labels that its expression keeps, filled into its texts."""
    [(series, _)] = bad.items()
    labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
    kept = re.match(r"\s*sum by \((\w+)\)", rule["expr"])
    if kept:
        labels = {kept[1]: labels[kept[1]]}
    elif rule["expr"].startswith(("sum(", "absent(")):
        labels = {}
    texts = {
        key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for key, text in rule["annotations"].items()
    }
    return {"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": texts}


# The metrics themselves


def test_recorded_attempts_are_counted_by_their_outcome() -> None:
    metrics, cluster = Metrics(), FakeCluster()
    cluster.put_sweep(a_sweep(2, eval={"enabled": False}).model_dump(exclude_none=True))
    profile = Profile(allowImageTags=True)
    for _ in range(2):  # a controller that is started anew records nothing again
        one = Controller(cluster, profile, cluster.clock, check_schema=False, on_record=metrics.recorded)
        one.step("demo")
        finish_all(cluster)
        one.step("demo")
        for name, job in cluster.made.items():
            if "-train-" in name and not job.finished:
                cluster.fail(name, 64)
        one.step("demo")
    assert value(metrics, "orch_attempts_total", stage="fetch", outcome="done") == 1
    assert value(metrics, "orch_attempts_total", stage="train", outcome="userError") == 2
    assert value(metrics, "orch_attempts_total", stage="train", outcome="done") == 0


def test_a_record_that_another_has_stored_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, cluster = Metrics(), FakeCluster()
    cluster.put_sweep(a_sweep(1).model_dump(exclude_none=True))
    profile = Profile(allowImageTags=True)
    one = Controller(cluster, profile, cluster.clock, check_schema=False, on_record=metrics.recorded)
    one.step("demo")
    finish_all(cluster)
    monkeypatch.setattr(cluster, "put_record", lambda *_: False)
    one.step("demo")
    assert value(metrics, "orch_attempts_total", stage="fetch", outcome="done") == 0


def test_every_outcome_has_a_series_before_it_is_met() -> None:
    found = {labels["outcome"] for labels in samples(Metrics())["orch_attempts_total"]}
    assert found == {"done", *FailureClass}


def conditions() -> Iterator[tuple[Condition, set[str]]]:
    for kind in ("Halted", "JobsRefused", "Suspended", "Waiting"):
        yield Condition(type=kind, status="True", reason="R"), {kind}
    yield Condition(type="Accepted", status="False", reason="Invalid"), {"Refused"}
    yield Condition(type="Accepted", status="True", reason="Valid"), set()
    yield Condition(type="Complete", status="True", reason="AllDone"), set()


@pytest.mark.parametrize(("condition", "held"), list(conditions()))
def test_what_holds_a_sweep(condition: Condition, held: set[str]) -> None:
    assert held_by(SweepStatus(conditions=[condition])) == held
    metrics = Metrics()
    metrics.turned("night", SweepStatus(conditions=[condition]), 0.1)
    told = {kind for kind in HELD if value(metrics, "orch_sweep_held", sweep="night", by=kind) == 1}
    assert told == held
    metrics.turned("night", SweepStatus(), 0.1)
    assert {value(metrics, "orch_sweep_held", sweep="night", by=kind) for kind in HELD} == {0}


def test_a_sweep_that_is_gone_is_told_of_no_more() -> None:
    metrics = full()
    metrics.gone("night")
    assert "night" not in metrics.text().decode()


def test_a_record_of_an_evaluation_counts_as_its_stage() -> None:
    metrics = Metrics()
    record = AttemptRecord(job="j", sweep="s", run_id="r", stage="eval", attempt=1, state="done")
    metrics.recorded(record)
    assert value(metrics, "orch_attempts_total", stage="eval", outcome="done") == 1
