"""What `orch doctor` makes of what it sees: a table for every check."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.client import findings
from orchestrator.client.bundle import Options, bundle
from orchestrator.client.findings import Finding, Right, Seen
from orchestrator.profile import Profile
from orchestrator.sweep.crd import crd

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DENIED = Seen(denied='nodes is forbidden: User "ann" cannot list resource')
OBJECTS = {(one["kind"], one["metadata"]["name"]): one for one in bundle(Options())}
PINNED = f"registry.lab/trainer@sha256:{'a' * 64}"


def _states(found: Any) -> list[str]:
    return [one.state for one in found]


def _only(found: Any) -> Finding:
    (one,) = found
    assert isinstance(one, Finding)
    assert (one.state == "missing") == bool(one.remedy)
    return one


@pytest.mark.parametrize(
    ("major", "minor", "state"),
    [("1", "36", "ok"), ("1", "31", "ok"), ("1", "30", "missing"), ("1", "34+", "ok"), ("2", "0", "ok")],
)
def test_api(major: str, minor: str, state: str):
    version = {"major": major, "minor": minor, "gitVersion": f"v{major}.{minor}.0"}
    assert _only(findings.api("https://x", version)).state == state


def _definition(version: str | None) -> Seen:
    made = copy.deepcopy(crd())
    made["metadata"]["annotations"] = {} if version is None else {"orch.dev/version": version}
    return Seen(made)


OURS = crd()["metadata"]["annotations"]["orch.dev/version"]


@pytest.mark.parametrize(
    ("seen", "served", "state", "words"),
    [
        (_definition(OURS), True, "ok", "as in this orch"),
        (Seen(), False, "missing", "knows no Sweeps"),
        (DENIED, False, "missing", "knows no Sweeps"),
        (DENIED, True, "unknown", "version of their definition: cannot be looked at"),
        (_definition("0.0.1+12345678"), True, "missing", "older orch, 0.0.1"),
        (_definition(OURS[:-8] + "00000000"), True, "missing", "older"),
        (_definition("99.0.0+12345678"), True, "missing", "newer orch, 99.0.0"),
        (_definition(None), True, "missing", "one that does not say"),
    ],
)
def test_definition(seen: Seen, served: bool, state: str, words: str):
    one = _only(findings.definition(seen, served, crd()))
    assert (one.state, words in one.message) == (state, True)


def _namespace(labels: dict[str, str] | None) -> Seen:
    return Seen({"metadata": {"name": "orch"} | ({"labels": labels} if labels is not None else {})})


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        (Seen(OBJECTS["Namespace", "orch"]), "ok", "enforces the restricted"),
        (Seen(), "missing", "no namespace"),
        (DENIED, "unknown", "cannot be looked at"),
        (_namespace(None), "missing", "no Pod Security standard"),
        (_namespace({findings.ENFORCE: "baseline"}), "missing", "'baseline'"),
    ],
)
def test_namespace(seen: Seen, state: str, words: str):
    one = _only(findings.namespace("orch", seen))
    assert (one.state, words in one.message) == (state, True)


def _deployment(image: str = PINNED, replicas: int = 1, **status: Any) -> Seen:
    made = copy.deepcopy(OBJECTS["Deployment", "orch-controller"])
    made["spec"]["replicas"] = replicas
    made["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return Seen({**made, "status": status})


PULLING = {"status": {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}}
ENDED = {"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": 2}}}]}}
HOMELESS = {
    "status": {
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
        ]
    }
}
FAILING = {"type": "ReplicaFailure", "status": "True", "message": "pods is forbidden: violates PodSecurity"}


@pytest.mark.parametrize(
    ("seen", "states", "words"),
    [
        (_deployment(readyReplicas=1), ["ok", "ok"], "1 of 1 ready"),
        (_deployment(replicas=2, readyReplicas=1), ["ok", "ok"], "1 of 2 ready"),
        (_deployment(), ["missing", "ok"], "0 of 1 ready"),
        (_deployment(conditions=[FAILING]), ["missing", "ok"], "violates PodSecurity"),
        (_deployment(replicas=0), ["missing", "ok"], "scaled to 0"),
        (_deployment("box/controller:dev", readyReplicas=1), ["ok", "missing"], "1 of 1"),
        (Seen(), ["missing"], "no controller"),
        (DENIED, ["unknown"], "cannot be looked at"),
    ],
)
def test_controller(seen: Seen, states: list[str], words: str):
    found = list(findings.controller(seen, DENIED))
    assert (_states(found), words in found[0].message) == (states, True)


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ([PULLING, PULLING], "0 of 1 ready: ImagePullBackOff"),
        ([ENDED], "0 of 1 ready: ended with 2"),
        ([HOMELESS], "0 of 1 ready: Unschedulable: 0/1 nodes"),
        ([{"status": {"containerStatuses": [{"state": {"running": {}}}]}}], "0 of 1 ready"),
    ],
)
def test_controller_s_pods_say_why_it_is_not_ready(pods: list[dict[str, Any]], words: str):
    assert next(findings.controller(_deployment(), Seen(pods))).message == words


def _lease(age_s: float, holder: str | None = "orch-controller-abc") -> Seen:
    renewed = (NOW - timedelta(seconds=age_s)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return Seen({"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}})


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (_lease(3), "ok"),
        (_lease(-40), "ok"),
        (_lease(74), "ok"),
        (_lease(76), "missing"),
        (_lease(3, holder=""), "missing"),
        (Seen({"spec": {}}), "missing"),
        (Seen(), "missing"),
        (DENIED, "unknown"),
    ],
    ids=["fresh", "a clock ahead", "clocks apart", "stale", "released", "empty", "absent", "denied"],
)
def test_lease(seen: Seen, state: str):
    assert _only(findings.lease(seen, NOW)).state == state


def test_rights():
    may = [Right("get", "sweeps.orch.dev", True), Right("get", "pods/log", True)]
    assert _only(findings.rights(may)).state == "ok"
    lacking = _only(findings.rights([*may, Right("create", "sweeps.orch.dev", False)]))
    assert lacking.message == "you may not create sweeps.orch.dev"


@pytest.mark.parametrize(
    ("seen", "fault", "state"),
    [
        (Seen({"data": {}}), "", "ok"),
        (Seen({"data": {}}), "orch-profile: image: …", "missing"),
        (Seen(), "", "missing"),
        (DENIED, "", "unknown"),
    ],
)
def test_profile(seen: Seen, fault: str, state: str):
    assert _only(findings.profile(seen, fault)).state == state


@pytest.mark.parametrize(
    ("profile", "state"),
    [
        (Profile(image=PINNED), "ok"),
        (Profile(), "missing"),
        (Profile(image="box/trainer:dev"), "missing"),
        (Profile(image="box/trainer:dev", allowImageTags=True), "ok"),
    ],
)
def test_image(profile: Profile, state: str):
    assert _only(findings.image(profile)).state == state


@pytest.mark.parametrize(
    ("name", "seen", "state"),
    [
        (None, Seen(), "ok"),
        ("hub", Seen({"data": {"token": "…"}}), "ok"),
        ("hub", Seen({"data": {"other": "…"}}), "missing"),
        ("hub", Seen({}), "missing"),
        ("hub", Seen(), "missing"),
        ("hub", DENIED, "unknown"),
    ],
)
def test_token(name: str | None, seen: Seen, state: str):
    assert _only(findings.token(Profile(hubTokenSecret=name), seen)).state == state


POLICIES = [one for (kind, _), one in OBJECTS.items() if kind == "NetworkPolicy"]


def _policy(**spec: Any) -> Seen:
    return Seen([{"spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], **spec}}])


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (Seen(POLICIES), "ok"),
        (_policy(), "ok"),
        (_policy(policyTypes=["Ingress"]), "missing"),
        (_policy(egress=[{}]), "missing"),
        (_policy(podSelector={"matchLabels": {"app": "other"}}), "missing"),
        (_policy(podSelector={"matchExpressions": [{"key": "x", "operator": "Exists"}]}), "missing"),
        (Seen([one for one in POLICIES if one["metadata"]["name"] != "orch-default-deny"]), "missing"),
        (Seen([]), "missing"),
        (DENIED, "unknown"),
    ],
    ids=[
        "ours",
        "everything",
        "ways in alone",
        "a way out",
        "other pods",
        "some pods",
        "without it",
        "none",
        "?",
    ],
)
def test_network(seen: Seen, state: str):
    assert _only(findings.network(seen)).state == state
