"""The door to the API server: what goes out, and how every refusal comes back."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.kube.client import Api
from orchestrator.cluster.kube.errors import (
    AlreadyExists,
    ApiError,
    Cause,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooMany,
    Unauthorized,
    Unavailable,
)
from orchestrator.cluster.kube.paths import JOBS, LEASES, SWEEPS, address
from orchestrator.cluster.kube.transport import Timeouts
from orchestrator.errors import ClusterError
from tests.orchestrator.cluster.kube.apiserver import (
    FakeApiServer,
    Fault,
    answer,
    cut,
    event,
    hang,
    refuse,
    status,
    stream,
)

PATH = JOBS.path("ml")
IMPATIENT = Timeouts(connect_s=2.0, read_s=0.2, watch_grace_s=0.2)


def names(page: bytes) -> list[str]:
    return [one["metadata"]["name"] for one in json.loads(page)["items"] or []]


# What goes out


def test_a_write_is_strict_and_says_who_asks(server: FakeApiServer, api: Api) -> None:
    made = json.loads(api.post(PATH, {"metadata": {"name": "x"}}, fieldManager="orch"))
    assert made["metadata"]["name"] == "x"
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("POST", PATH)
    assert asked.query == {"fieldValidation": "Strict", "fieldManager": "orch"}
    assert asked.headers["User-Agent"].startswith("orch/")
    assert asked.headers["Authorization"] == "Bearer secret-token"


@pytest.mark.parametrize(
    ("act", "media", "query"),
    [
        (lambda api: api.patch(f"{PATH}/x", {"metadata": {}}), "application/merge-patch+json", {}),
        (
            lambda api: api.patch(f"{PATH}/x", [{"op": "test", "path": "/a", "value": None}], kind="json"),
            "application/json-patch+json",
            {},
        ),
        (
            lambda api: api.apply(f"{PATH}/x", {"metadata": {}}, manager="orch", force=True),
            "application/apply-patch+yaml",
            {"fieldManager": "orch", "force": "true"},
        ),
    ],
)
def test_the_three_kinds_of_patch(
    server: FakeApiServer, api: Api, act: Callable[[Api], bytes], media: str, query: dict[str, str]
) -> None:
    server.next("PATCH", answer(200, b"{}"))
    act(api)
    assert server.asked[0].headers["Content-Type"] == media
    assert server.asked[0].query == {"fieldValidation": "Strict"} | query


def test_a_delete_names_what_it_means_and_leaves_no_orphans(server: FakeApiServer, api: Api) -> None:
    uid = server.put(PATH, "x")["metadata"]["uid"]
    with pytest.raises(Conflict, match="ml/jobs/x: cannot delete, got 409"):
        api.delete(f"{PATH}/x", uid="another")
    api.delete(f"{PATH}/x", uid=uid, propagation="Foreground")
    api.delete(f"{PATH}/x", uid=uid)  # absent is fine
    assert [one.body["propagationPolicy"] for one in server.asked] == [
        "Background",
        "Foreground",
        "Background",
    ]
    assert server.asked[1].body["preconditions"] == {"uid": uid}


def test_values_that_are_no_json_are_never_sent(server: FakeApiServer, api: Api) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        api.post(PATH, {"metadata": {"name": "x"}, "spec": float("nan")})
    assert server.asked == []


def test_pages_follow_the_token_without_naming_a_version_beside_it(server: FakeApiServer, api: Api) -> None:
    for index in range(5):
        server.put(PATH, f"job-{index}")
    pages = api.pages(PATH, limit=2, resourceVersion="0", labelSelector="")
    assert [names(page) for page in pages] == [["job-0", "job-1"], ["job-2", "job-3"], ["job-4"]]
    assert [sorted(one.query) for one in server.asked] == [
        ["labelSelector", "limit", "resourceVersion"],
        ["continue", "labelSelector", "limit"],
        ["continue", "labelSelector", "limit"],
    ]


def test_an_expired_token_is_gone(server: FakeApiServer, api: Api) -> None:
    for index in range(3):
        server.put(PATH, f"job-{index}")
    pages = api.pages(PATH, limit=2)
    next(pages)
    server.put(PATH, "later")
    server.compact()
    with pytest.raises(Gone):
        next(pages)


def test_a_name_cannot_leave_its_path() -> None:
    assert JOBS.path("ml", "a/../b?c") == "/apis/batch/v1/namespaces/ml/jobs/a%2F..%2Fb%3Fc"
    assert SWEEPS.path("ml", "x", "status") == "/apis/orch.dev/v1alpha1/namespaces/ml/sweeps/x/status"
    with pytest.raises(ValueError, match="no name"):
        JOBS.path("ml", "..")


@pytest.mark.parametrize(
    ("path", "api", "place", "resource"),
    [
        (JOBS.path("ml", "x"), "batch/v1", "ml/jobs/x", "jobs"),
        (JOBS.path(None), "batch/v1", "jobs", "jobs"),
        ("/api/v1/namespaces/ml", "v1", "namespaces/ml", "namespaces"),
        ("/api/v1/namespaces/ml/pods/x/log?follow=true", "v1", "ml/pods/x/log", "pods/log"),
        ("/version", "", "/version", ""),
    ],
)
def test_addresses_in_messages(path: str, api: str, place: str, resource: str) -> None:
    assert address(path) == (api, place, resource)


# Refusals

QUOTA = 'jobs.batch "x" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, used: 5, limited: 5'
CAUSES = [{"reason": "FieldValueInvalid", "field": "spec.groups[1]", "message": "a group needs grid"}]


@pytest.mark.parametrize(
    ("fault", "kind", "line"),
    [
        (refuse(403, "Forbidden", QUOTA), Forbidden, f"ml/jobs: cannot create, got 403 Forbidden: {QUOTA}"),
        (refuse(409, "AlreadyExists"), AlreadyExists, "ml/jobs: cannot create, got 409 AlreadyExists: no"),
        (refuse(409, "Conflict"), Conflict, "ml/jobs: cannot create, got 409 Conflict: no"),
        (refuse(410, "Expired"), Gone, "ml/jobs: cannot create, got 410 Expired: no"),
        (refuse(400, "BadRequest", "strict decoding error:\n  unknown"), Invalid,
         "ml/jobs: cannot create, got 400 BadRequest: strict decoding error: unknown"),
        (refuse(413, "TooLarge"), Invalid, "ml/jobs: cannot create, got 413 TooLarge: no"),
        (refuse(500, "InternalError"), Unavailable, "ml/jobs: cannot create, got 500 InternalError: no"),
        (refuse(503, "Overloaded"), Unavailable, "ml/jobs: cannot create, got 503 Overloaded: no"),
        (refuse(302, "Found"), ApiError, "ml/jobs: cannot create, got 302 Found: no"),
        (answer(404, b"404 page not found\n"), NotFound,
         "ml/jobs: cannot create, got 404: 404 page not found; the cluster serves no such batch/v1"),
        (answer(502, b"<html>\xff</html>"), Unavailable, "ml/jobs: cannot create, got 502: <html>�</html>"),
        (answer(404, status(404, "NotFound", 'namespaces "ml" not found', kind="namespaces")), NotFound,
         'ml/jobs: cannot create, got 404 NotFound: namespaces "ml" not found'),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
def test_a_refusal_is_one_readable_line(
    server: FakeApiServer, api: Api, fault: Fault, kind: type[ApiError], line: str
) -> None:
    server.next("POST", fault)
    with pytest.raises(ClusterError) as caught:
        api.post(PATH, {"metadata": {"name": "x"}})
    assert type(caught.value) is kind
    assert str(caught.value) == line


def test_a_refusal_keeps_its_causes_and_what_it_is_about(server: FakeApiServer, api: Api) -> None:
    body = status(422, "Invalid", "Sweep is invalid", kind="Sweep", name="x", causes=CAUSES)
    server.next("POST", answer(422, body))
    with pytest.raises(Invalid) as caught:
        api.post(PATH, {"metadata": {"name": "x"}})
    error = caught.value
    assert (error.status, error.reason, error.message) == (422, "Invalid", "Sweep is invalid")
    assert (error.kind, error.name) == ("Sweep", "x")
    assert error.causes == (Cause("spec.groups[1]", "a group needs grid", "FieldValueInvalid"),)


@pytest.mark.parametrize(
    ("fault", "retry_after_s"),
    [
        (refuse(429, "TooManyRequests", Retry_After="7"), 7.0),
        (answer(429, status(429, "TooManyRequests", "no", retryAfterSeconds=3)), 3.0),
        (refuse(429, "TooManyRequests", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), None),
    ],
)
def test_too_many_says_when_to_come_back(
    server: FakeApiServer, api: Api, fault: Fault, retry_after_s: float | None
) -> None:
    server.next("POST", fault)
    with pytest.raises(TooMany) as caught:
        api.post(PATH, {"metadata": {"name": "x"}})
    assert caught.value.retry_after_s == retry_after_s
    assert len(server.asked) == 1


def test_a_field_the_crd_lacks_is_invalid_although_the_server_says_500(
    server: FakeApiServer, api: Api
) -> None:
    text = "failed to create typed patch object (ml/x): .status.best: field not declared in schema"
    server.next("PATCH", refuse(500, "InternalError", text))
    with pytest.raises(Invalid, match="older than this orch: run `orch install --crd-only`"):
        api.apply(SWEEPS.path("ml", "x", "status"), {}, manager="orch")


def test_a_missing_crd_says_how_to_install_it(server: FakeApiServer, api: Api) -> None:
    with pytest.raises(NotFound, match=r"serves no such orch.dev/v1alpha1: run `orch install`") as caught:
        api.get(SWEEPS.path("ml", "x"))
    assert caught.value.kind == ""


def test_an_endless_refusal_is_cut(server: FakeApiServer, api: Api) -> None:
    server.next("GET", refuse(403, "Forbidden", "x" * 100_000))
    with pytest.raises(Forbidden) as caught:
        api.get(PATH)
    assert len(str(caught.value)) < 1_200
    assert len(caught.value.message) == 100_000


# No answer, or half of one


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (hang, "nothing read in time"),
        (cut(b'{"items": [', 1000), ""),
        (answer(200, b'{"metadata": {"resou'), "cut short or not JSON"),
        (answer(200, b"[]"), "cut short or not JSON"),
    ],
    ids=["hang", "reset mid-body", "truncated JSON", "no list"],
)
def test_a_broken_answer_is_unavailable(
    server: FakeApiServer, tmp_path: Path, fault: Fault, said: str
) -> None:
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path), timeouts=IMPATIENT)
    server.next("GET", fault)
    with pytest.raises(Unavailable, match="ml/jobs: cannot read, got .*" + said) as caught:
        list(api.pages(PATH))
    assert caught.value.status == 0


def test_no_server_is_unavailable(tmp_path: Path) -> None:
    with FakeApiServer() as server:
        api = Api.connect(kubeconfig=server.kubeconfig(tmp_path))
    with pytest.raises(Unavailable, match=r"got no answer from http://127.0.0.1:\d+: .*Connection refused"):
        api.get(PATH)
    assert api.requests == {("GET", "jobs", 0): 1}


def test_answers_are_counted(server: FakeApiServer, api: Api) -> None:
    server.put(PATH, "x")
    server.next("POST", refuse(429, "TooManyRequests"))
    for _ in range(2):
        api.get(f"{PATH}/x")
    with pytest.raises(TooMany):
        api.post(PATH, {"metadata": {"name": "y"}})
    assert api.requests == {("GET", "jobs", 200): 2, ("POST", "jobs", 429): 1}


# Identity


def test_a_rotated_token_is_read_again_and_the_request_repeated(
    server: FakeApiServer, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("old\n", encoding="utf-8")
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path, {"tokenFile": str(token)}))
    server.world.token = "old"
    api.post(PATH, {"metadata": {"name": "a"}})
    server.world.token = "new"
    token.write_text("new\n", encoding="utf-8")
    api.post(PATH, {"metadata": {"name": "b"}})
    assert [one.headers["Authorization"] for one in server.asked] == [
        "Bearer old",
        "Bearer old",
        "Bearer new",
    ]
    assert sorted(server.world.objects[PATH]) == ["a", "b"]


def test_a_watch_is_repeated_too(server: FakeApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old", encoding="utf-8")
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path, {"tokenFile": str(token)}))
    server.world.token = "new"
    token.write_text("new", encoding="utf-8")
    with api.watch(PATH, timeout_s=60, resourceVersion="100") as lines:
        server.put(PATH, "x")
        assert json.loads(next(lines))["object"]["metadata"]["name"] == "x"


def test_credentials_that_did_not_change_are_not_tried_again(server: FakeApiServer, api: Api) -> None:
    server.world.token = "another"
    with pytest.raises(Unauthorized, match="log in to the cluster again"):
        api.get(PATH)
    assert len(server.asked) == 1


def test_credentials_that_cannot_be_read_any_more_say_so(server: FakeApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old", encoding="utf-8")
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path, {"tokenFile": str(token)}))
    token.unlink()
    server.world.token = "another"
    with pytest.raises(Unauthorized, match=r"ml/jobs: cannot read, got 401; kubeconfig .*token"):
        api.get(PATH)


def test_threads_refused_together_all_go_on(server: FakeApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old", encoding="utf-8")
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path, {"tokenFile": str(token)}))
    server.put(PATH, "x")
    server.world.token = "new"
    token.write_text("new", encoding="utf-8")
    faults: list[ClusterError] = []

    def read() -> None:
        try:
            api.get(f"{PATH}/x")
        except ClusterError as error:
            faults.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_the_token_is_in_no_log_and_no_message(
    server: FakeApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path, {"token": "s3cr3t\n"}), timeouts=IMPATIENT)
    server.next("POST", refuse(403, "Forbidden"), hang)
    said = [repr(api)]
    for _ in range(2):
        with pytest.raises(ApiError) as caught:
            api.post(PATH, {"metadata": {"name": "x"}})
        said += [str(caught.value), repr(caught.value.__cause__)]
    assert server.asked[0].headers["Authorization"] == "Bearer s3cr3t"
    assert "s3cr3t" not in caplog.text + "".join(said)


# Streams


def test_a_log_comes_line_by_line_whatever_the_chunks(server: FakeApiServer, api: Api) -> None:
    server.next("GET", stream(b"one\ntw", b"o\n\xc3", b"\xa4\n\nlast"))
    assert list(api.stream("/api/v1/namespaces/ml/pods/x/log", follow="true")) == [
        b"one",
        b"two",
        "ä".encode(),
        b"",
        b"last",
    ]


def test_a_stream_can_be_closed_while_another_thread_waits_on_it(server: FakeApiServer, api: Api) -> None:
    server.next("GET", stream(b"one\n", end="hang"))
    lines = api.stream("/api/v1/namespaces/ml/pods/x/log")
    first = threading.Event()
    read: list[bytes] = []

    def follow() -> None:
        for line in lines:
            read.append(line)
            first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert first.wait(30)
    lines.close()
    thread.join(30)
    assert not thread.is_alive()
    assert read == [b"one"]
    lines.close()  # harmless


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (stream(event("ADDED", "x", 101), b'{"type": "ADD'), "cut short"),
        (stream(event("ADDED", "x", 101), end="reset"), "the stream broke"),
        (stream(event("ADDED", "x", 101), end="hang"), "the stream broke"),
    ],
    ids=["truncated line", "reset", "half-open"],
)
def test_a_watch_that_breaks_says_so(server: FakeApiServer, tmp_path: Path, fault: Fault, said: str) -> None:
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path), timeouts=Timeouts(watch_grace_s=-0.8))
    server.next("watch", fault)
    lines = api.watch(PATH, timeout_s=1, resourceVersion="100")
    assert json.loads(next(lines))["object"]["metadata"]["name"] == "x"
    with pytest.raises(Unavailable, match=said):
        next(lines)


def test_a_watch_whose_server_never_answers_does_not_wait_as_long_as_the_watch(
    server: FakeApiServer, tmp_path: Path
) -> None:
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path), timeouts=IMPATIENT)
    server.next("watch", hang)
    with pytest.raises(Unavailable, match="nothing read in time"):
        api.watch(PATH, timeout_s=3600, resourceVersion="100")


# Warnings and pace


def test_warnings_are_told(server: FakeApiServer, tmp_path: Path) -> None:
    told: list[str] = []
    api = Api.connect(kubeconfig=server.kubeconfig(tmp_path), on_warning=told.append)
    server.next(
        "POST",
        answer(
            201, b"{}", Warning='299 - "would violate PodSecurity \\"restricted\\"", 299 - "unknown field"'
        ),
    )
    api.post(PATH, {"metadata": {"name": "x"}})
    assert told == ['would violate PodSecurity "restricted"', "unknown field"]


class RecordingPace:
    def __init__(self) -> None:
        self.told: list[Any] = []
        self.open = True

    def acquire(self) -> bool:
        self.told.append("acquire")
        return self.open

    def throttled(self, retry_after_s: float | None) -> None:
        self.told.append(retry_after_s)

    def succeeded(self) -> None:
        self.told.append("succeeded")


def test_writes_are_paced_and_reads_and_leases_are_not(server: FakeApiServer, tmp_path: Path) -> None:
    pace = RecordingPace()
    door = Api.connect(kubeconfig=server.kubeconfig(tmp_path))
    api = door.paced(pace)
    server.put(PATH, "x")
    api.get(f"{PATH}/x")
    door.post(LEASES.path("ml"), {"metadata": {"name": "orch"}})
    assert pace.told == []
    server.next("POST", refuse(429, "TooManyRequests", Retry_After="2"))
    with pytest.raises(TooMany):
        api.post(PATH, {"metadata": {"name": "y"}})
    api.post(PATH, {"metadata": {"name": "y"}})
    assert pace.told == ["acquire", 2.0, "acquire", "succeeded"]
    pace.open = False
    with pytest.raises(Unavailable, match="orch is stopping"):
        api.post(PATH, {"metadata": {"name": "z"}})
    assert "z" not in server.world.objects[PATH]
