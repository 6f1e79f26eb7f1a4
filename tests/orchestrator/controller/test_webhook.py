"""The webhook: what arrives at a real HTTP server, and what a bad one costs: a notice that is still owed."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.loop import Controller
from orchestrator.controller.notice import TEXT_LIMIT, key, notice
from orchestrator.controller.owed import Owed
from orchestrator.controller.webhook import Webhook
from orchestrator.profile import Notify, Profile
from tests.orchestrator.controller.scene import a_sweep
from tests.orchestrator.controller.test_loop import finish_all
from tests.orchestrator.fakes import FakeCluster

NO_PAUSES = (0.0, 0.0, 0.0)
WITHIN_S = 60.0


def unheard(settled: bool) -> None:
    """Does not mind what comes of a notice."""


class Chat:
    """A chat program: `answers` are its statuses in order, then 200; None: it never answers."""

    def __init__(self) -> None:
        self.answers: list[int | None] = []
        self.got: queue.Queue[dict[str, Any]] = queue.Queue()
        self.released = threading.Event()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/json"
                assert self.headers["Idempotency-Key"] == body.get("key")
                chat.got.put(body)
                status = chat.answers.pop(0) if chat.answers else 200
                if status is None:
                    chat.released.wait(WITHIN_S)
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def notify(self) -> Notify:
        return Notify(url=f"http://127.0.0.1:{self.server.server_address[1]}/secret-path")

    def heard(self) -> list[dict[str, Any]]:
        """What has arrived, which is all there will be once the webhook is closed."""
        return [self.got.get_nowait() for _ in range(self.got.qsize())]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def chat() -> Iterator[Chat]:
    made = Chat()
    yield made
    made.close()


def told(chat: Chat, *notices: dict[str, Any], timeout_s: float = WITHIN_S) -> list[dict[str, Any]]:
    webhook = Webhook(timeout_s, NO_PAUSES)
    for one in notices:
        webhook.post(chat.notify, one, unheard)
    webhook.close(WITHIN_S)
    return chat.heard()


def a_notice(event: str = "ended") -> dict[str, Any]:
    return {"event": event, "sweep": "night", "text": "λ: night ended"}


def test_a_notice_arrives_whole(chat: Chat) -> None:
    assert told(chat, a_notice(), a_notice("halted")) == [a_notice(), a_notice("halted")]


@pytest.mark.parametrize(
    ("answers", "tries", "settled"),
    [
        ([500], 2, True),
        ([503, 429], 3, True),
        ([500, 500, 500, 500], 3, False),
        ([404], 1, True),
        ([302], 1, True),
        ([204], 1, True),
    ],
    ids=["it fails once", "it fails twice", "it always fails", "no such hook", "led elsewhere", "no content"],
)
def test_a_failure_of_the_server_is_tried_again_a_few_times(
    chat: Chat, answers: list[int | None], tries: int, settled: bool
) -> None:
    """And whoever owes it hears whether it is settled: taken, or refused for good."""
    chat.answers, came = answers, []
    webhook = Webhook(WITHIN_S, NO_PAUSES)
    webhook.post(chat.notify, a_notice(), came.append)
    webhook.close(WITHIN_S)
    assert (len(chat.heard()), came) == (tries, [settled])


def test_a_server_that_hangs_is_given_up(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    chat.answers = [None] * len(NO_PAUSES)
    told(chat, a_notice(), timeout_s=0.05)
    assert "ended of night was not told" in caplog.text


def test_nobody_waits_for_a_server_that_hangs(chat: Chat) -> None:
    """The post returns though the one before is still under way."""
    chat.answers = [None]
    webhook = Webhook(WITHIN_S, NO_PAUSES)
    webhook.post(chat.notify, a_notice(), unheard)
    assert chat.got.get(timeout=WITHIN_S) == a_notice()  # it hangs now
    webhook.post(chat.notify, a_notice("halted"), unheard)
    webhook.close(0.0)
    assert chat.heard() == []


def test_more_than_can_wait_is_not_taken_and_said(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    chat.answers = [None]
    webhook = Webhook(WITHIN_S, NO_PAUSES)
    webhook.post(chat.notify, a_notice(), unheard)
    assert chat.got.get(timeout=WITHIN_S) == a_notice()
    assert [webhook.post(chat.notify, a_notice(), unheard) for _ in range(101)] == [True] * 100 + [False]
    assert [one.getMessage() for one in caplog.records] == [
        "controller: the webhook is 100 notices behind, one has to wait"
    ]
    webhook.close(0.0)


@pytest.mark.parametrize("text", ["", "file:///etc/passwd", "hooks.example/x"])
def test_an_address_that_is_none_is_not_used_and_not_told(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "url"
    file.write_text(text)
    for path in (file, tmp_path / "absent"):
        webhook = Webhook(WITHIN_S, NO_PAUSES)
        webhook.post(Notify(urlFile=str(path)), a_notice(), unheard)
        webhook.close(WITHIN_S)
    assert "ended of night was not told" in caplog.text
    assert not text or text not in caplog.text


def test_an_address_in_a_file_is_read_anew_and_never_logged(
    chat: Chat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "url"
    webhook = Webhook(WITHIN_S, NO_PAUSES)
    file.write_text("http://127.0.0.1:1/secret-path")
    webhook.post(Notify(urlFile=str(file)), a_notice("halted"), unheard)
    webhook.close(WITHIN_S)
    file.write_text(f"{chat.notify.url}\n")
    webhook = Webhook(WITHIN_S, NO_PAUSES)
    webhook.post(Notify(urlFile=str(file)), a_notice(), unheard)
    webhook.close(WITHIN_S)
    assert chat.heard() == [a_notice()]
    assert "secret-path" not in caplog.text


# What a controller tells


def controlled(chat: Chat, **spec: Any) -> tuple[FakeCluster, Callable[[], Controller]]:
    """A sweep of two runs, and controllers for it, each as a restart makes it."""
    cluster = FakeCluster()
    cluster.put_sweep(a_sweep(2, eval={"enabled": False}, **spec).model_dump(exclude_none=True))
    cluster.on_wait = finish_all
    profile = Profile(allowImageTags=True, notify=chat.notify)
    return cluster, lambda: Controller(cluster, profile, cluster.clock, check_schema=False)


def test_the_end_of_a_sweep_is_told_once_whoever_controls_it(chat: Chat) -> None:
    cluster, controller = controlled(chat)
    controller().run(until_done=True)
    [one] = chat.heard()
    assert (one["event"], one["sweep"], one["reason"], one["counts"]["done"]) == (
        "ended",
        "demo",
        "AllDone",
        2,
    )
    assert "owed" not in cluster.stored["demo"]["status"]
    controller().run(until_done=True)
    assert chat.heard() == []


def test_a_notice_sent_again_has_the_key_it_had(chat: Chat) -> None:
    """A server that took it and whose answer got lost can tell it from a second end."""
    chat.answers = [503]
    _, controller = controlled(chat)
    one = controller()
    one.teller.postbox.webhook = Webhook(WITHIN_S, NO_PAUSES)
    one.run(until_done=True)
    first, again = chat.heard()
    assert first == again
    assert first["key"].split(":")[1] == "ended"


SINCE = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("uid", "moment", "reason", "since", "same"),
    [
        ("u", "ended", "R", SINCE, True),
        ("v", "ended", "R", SINCE, False),
        ("u", "halted", "R", SINCE, False),
        ("u", "ended", "S", SINCE, False),
        ("u", "ended", "R", "2026-01-02T00:00:00Z", False),
    ],
    ids=["the same", "a sweep made anew by its name", "another moment", "another end", "ended again"],
)
def test_a_key_is_of_one_transition_of_one_sweep(
    uid: str, moment: str, reason: str, since: str, same: bool
) -> None:
    def of(uid: str, *mark: str) -> str:
        moment, reason, since = mark
        return key({"name": "n", "uid": uid}, Owed(moment=moment, reason=reason, since=since))

    assert (of(uid, moment, reason, since) == of("u", "ended", "R", SINCE)) is same


def test_a_sweep_that_goes_on_and_ends_again_is_told_again(chat: Chat) -> None:
    cluster, controller = controlled(chat)
    controller().run(until_done=True)
    more = a_sweep(3, eval={"enabled": False}).model_dump(exclude_none=True)
    cluster.stored["demo"]["spec"] = more["spec"]
    controller().run(until_done=True)
    assert [one["counts"]["done"] for one in chat.heard()] == [2, 3]


def test_a_halt_is_told_with_its_remedy(chat: Chat) -> None:
    cluster, controller = controlled(chat, scheduling={"canary": True})
    controller().step("demo")
    finish_all(cluster)
    first = controller()
    first.step("demo")
    [train] = [name for name in cluster.made if "-train-" in name]
    cluster.fail(train, 64)
    first.step("demo")
    first.teller.close(WITHIN_S, 1000.0)
    again = controller()
    again.step("demo")
    again.teller.close(WITHIN_S, 1000.0)
    [one] = chat.heard()
    assert (one["event"], one["reason"]) == ("halted", "CanaryFailed")
    assert "correct it and submit again, or `orch retry demo`" in one["text"]


def test_only_what_was_asked_for_is_told(chat: Chat) -> None:
    cluster, _ = controlled(chat)
    notify = chat.notify.model_copy(update={"on": ["halted"]})
    profile = Profile(allowImageTags=True, notify=notify)
    Controller(cluster, profile, cluster.clock, check_schema=False).run(until_done=True)
    assert chat.heard() == []


def test_a_status_that_is_not_stored_is_not_told(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every failed turn would tell it again."""
    cluster, controller = controlled(chat)
    controller().run(until_done=True)
    chat.heard()
    del cluster.stored["demo"]["status"]

    def refuse(sweep: str, status: Any) -> None:
        raise OSError("the API server is away")

    monkeypatch.setattr(cluster, "put_status", refuse)
    one = controller()
    with pytest.raises(OSError, match="away"):
        one.step("demo")
    one.teller.close(WITHIN_S, 1000.0)
    assert chat.heard() == []


def test_a_turn_goes_on_though_the_webhook_hangs(chat: Chat) -> None:
    chat.answers = [None]
    cluster, controller = controlled(chat)
    one = controller()
    while not one.step("demo").status.finished:
        finish_all(cluster)
    assert chat.got.get(timeout=WITHIN_S)["event"] == "ended"
    assert one.step("demo").status.finished
    assert cluster.stored["demo"]["status"]["finished"]


def test_the_notice_has_a_text_for_people_and_fields_for_programs() -> None:
    status = {
        "counts": {"done": 3},
        "gpuHours": 12.34,
        "best": {"run": "a-1", "kl": 0.14149, "klStderr": 0.005},
    }
    stored = {
        "metadata": {"name": "night", "namespace": "ml", "annotations": {"orch.dev/submitted-by": "ada"}},
        "status": status,
    }
    value = notice(stored, Owed(moment="ended", reason="SomeFailed", message="3 done, 1 failed", since=SINCE))
    assert value == {
        "text": "ml/night ended: 3 done, 1 failed; best a-1, KL 0.1415; 12.3 GPU-hours",
        "v": 1,
        "key": f"night:ended:SomeFailed:{SINCE}",
        "event": "ended",
        "sweep": "night",
        "namespace": "ml",
        "submitted_by": "ada",
        "reason": "SomeFailed",
        "message": "3 done, 1 failed",
        "counts": {"done": 3},
        "best": {"run": "a-1", "kl": 0.14149, "klStderr": 0.005},
        "gpu_hours": 12.34,
    }


def test_a_long_message_is_cut() -> None:
    owed = Owed(moment="halted", reason="CannotRender", message="x" * 9000)
    value = notice({"metadata": {"name": "n"}}, owed)
    assert max(len(value["text"]), len(value["message"])) == TEXT_LIMIT
