"""Who may do what, as a real API server answers: docs/rbac.md is that answer.

ORCH_WRITE_DOCS=1 python -m pytest tests/cluster/test_rbac.py   writes the page anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from orchestrator.client.bundle import Options, bundle
from orchestrator.client.doctor import NEEDED
from tests.cluster.cluster import Cluster

PAGE = Path(__file__).parents[2] / "docs" / "rbac.md"
HEAD = """\
# Who may do what

<!-- Made by `ORCH_WRITE_DOCS=1 python -m pytest tests/cluster/test_rbac.py`; it fails when this is old. -->

What a real API server answers to `kubectl auth can-i` after `orch install`, for accounts of orch's namespace:
the controller, the trainer (which runs of sweeps are; no pod of theirs gets its token), and a person with the
Role `orch-user`. In any other namespace, and for anything else, the answer is no.

"""


class Question(NamedTuple):
    """May one do this to that, here or elsewhere?"""

    verb: str
    resource: str
    what: str
    name: str = ""
    elsewhere: bool = False


QUESTIONS = [
    *(
        Question(verb, "sweeps.orch.dev", "Sweeps")
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    ),
    Question("patch", "sweeps.orch.dev/status", "status of Sweeps"),
    *(
        Question(verb, "jobs.batch", "Jobs")
        for verb in ("get", "list", "watch", "create", "patch", "update", "delete")
    ),
    *(Question(verb, "pods", "pods") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    Question("get", "pods/log", "logs"),
    Question("create", "pods/exec", "a shell in a pod"),
    Question("create", "pods/portforward", "a port of a pod"),
    Question("create", "pods/ephemeralcontainers", "a container more in a pod"),
    *(
        Question(verb, "configmaps", "ConfigMaps: records, profile")
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    ),
    *(Question(verb, "secrets", "Secrets") for verb in ("get", "list", "watch", "create")),
    *(Question(verb, "events.events.k8s.io", "events") for verb in ("list", "create", "patch")),
    Question("list", "events", "what keeps a Job from starting (events)"),
    *(
        Question(verb, "leases.coordination.k8s.io", "its Lease", "orch-controller")
        for verb in ("get", "patch")
    ),
    *(Question(verb, "leases.coordination.k8s.io", "another Lease", "other") for verb in ("get", "patch")),
    Question("create", "leases.coordination.k8s.io", "a Lease"),
    Question("create", "serviceaccounts/token", "a token of an account"),
    Question("create", "rolebindings.rbac.authorization.k8s.io", "a grant of rights"),
    Question("get", "persistentvolumeclaims", "the claim"),
    Question("get", "deployments.apps", "the controller's Deployment"),
    Question("list", "nodes", "nodes"),
    *(
        Question("list", one, f"{one.partition('.')[0]} elsewhere", elsewhere=True)
        for one in ("sweeps.orch.dev", "jobs.batch", "pods", "secrets", "configmaps")
    ),
]
NAMESPACE = "orch-rbac"
KINDS = {"Namespace", "ServiceAccount", "Role", "RoleBinding"}
ACCOUNTS = ("orch-controller", "orch-trainer", "person")


def _review(account: str, asked: Question) -> dict[str, Any]:
    """The SubjectAccessReview that `kubectl auth can-i --as` asks for."""
    kind, _, part = asked.resource.partition("/")
    plural, _, group = kind.partition(".")
    place = {"namespace": "default" if asked.elsewhere else NAMESPACE, "verb": asked.verb}
    what = {"group": group, "resource": plural, "subresource": part, "name": asked.name}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{NAMESPACE}:{account}",
            "groups": [
                "system:serviceaccounts",
                f"system:serviceaccounts:{NAMESPACE}",
                "system:authenticated",
            ],
            "resourceAttributes": {key: value for key, value in {**place, **what}.items() if value},
        },
    }


@pytest.fixture(scope="module")
def answers(cluster: Cluster, sweeps_defined: None) -> Iterator[dict[Question, tuple[bool, ...]]]:
    """What the server says of every question, for each account."""
    objects = [one for one in bundle(Options(namespace=NAMESPACE)) if one["kind"] in KINDS]
    cluster.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(objects))
    try:
        person = f"--serviceaccount={NAMESPACE}:person"
        cluster.kubectl("create", "rolebinding", "people", "-n", NAMESPACE, "--role=orch-user", person)
        reviews = [_review(account, asked) for asked in QUESTIONS for account in ACCOUNTS]
        said = cluster.kubectl("create", "-f", "-", "-o", "json", input=yaml.safe_dump_all(reviews))
        may = [one["status"]["allowed"] for one in _documents(said.stdout)]
        yield {asked: tuple(may[3 * i : 3 * i + 3]) for i, asked in enumerate(QUESTIONS)}
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE)


def _documents(text: str) -> Iterator[dict[str, Any]]:
    """JSON values one after another, as kubectl prints what it created."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        value, end = decoder.raw_decode(text, place)
        yield value
        place = end + len(text[end:]) - len(text[end:].lstrip())


def _page(answers: dict[Question, tuple[bool, ...]]) -> str:
    rows: dict[str, dict[str, list[str]]] = {}
    for asked, said in answers.items():
        row = rows.setdefault(asked.what, {account: [] for account in ACCOUNTS})
        for account, may in zip(ACCOUNTS, said, strict=True):
            row[account] += [asked.verb] if may else []
    lines = ["| | controller | trainer | person |", "|---|---|---|---|"]
    for what, row in rows.items():
        cells = [", ".join(row[account]) or "–" for account in ACCOUNTS]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def test_page_is_the_server_s_answer(answers: dict[Question, tuple[bool, ...]]):
    if os.environ.get("ORCH_WRITE_DOCS") == "1":
        PAGE.write_text(_page(answers), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == _page(answers)


def _yes(answers: dict[Question, tuple[bool, ...]], account: str) -> set[tuple[str, str]]:
    place = ACCOUNTS.index(account)
    return {(asked.verb, asked.resource) for asked, said in answers.items() if said[place]}


def test_controller_reads_no_secret_and_enters_no_pod(answers: dict[Question, tuple[bool, ...]]):
    may = _yes(answers, "orch-controller")
    never = {"secrets", "pods/exec", "pods/portforward", "pods/ephemeralcontainers", "serviceaccounts/token"}
    assert [one for one in may if one[1] in never] == []
    assert ("create", "pods") not in may
    assert ("patch", "configmaps") not in may
    assert ("create", "jobs.batch") in may


@pytest.mark.parametrize("account", ACCOUNTS)
def test_nobody_of_ours_reaches_another_namespace(account: str, answers: dict[Question, tuple[bool, ...]]):
    place = ACCOUNTS.index(account)
    assert [asked for asked, said in answers.items() if asked.elsewhere and said[place]] == []


def test_runs_have_no_rights(answers: dict[Question, tuple[bool, ...]]):
    assert _yes(answers, "orch-trainer") == set()


def test_a_person_may_do_what_the_commands_do(answers: dict[Question, tuple[bool, ...]]):
    may = _yes(answers, "person")
    groups = {"": "", "orch.dev": ".orch.dev", "batch": ".batch", "events.k8s.io": ".events.k8s.io"}
    needed = {(verb, f"{resource}{groups[group]}") for group, resource, verb in NEEDED}
    assert needed - may == set()
