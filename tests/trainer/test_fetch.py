"""Fetch against a hub of our own: whole, checked, marked last, once; and every way in which it goes wrong."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub import constants, file_download

from tests.hub import Fault, Hub
from trainer.__main__ import exit_code
from trainer.attempt import Preempted
from trainer.config import FetchConfig
from trainer.fetch import fetch, model_files
from trainer.flags import UsageError
from trainer.layout import TERMINATION_LOG_ENV
from trainer.mark import Mark, Store, Wanted, remove_stale
from trainer.models import ModelError, local_path, model_fingerprint, resolve
from trainer.refusal import Asked, HubFault, meaning
from trainer.results import ExitCode, load_record
from trainer.rows import open_rows, rows_of, split_of
from trainer.text import load_text

ROOT = Path(__file__).parents[2]
NET = Wanted("model", "lab/net")
LARGE = "model-00002.safetensors"
TOKEN = "hf_SesameOpen42"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """The hub's folder: lab/net, a model as hubs hold it, and lab/rows."""
    folder = tmp_path / "served"
    content = random.Random(1)
    for name, size in {
        "config.json": 300,
        "tokenizer.json": 4000,
        "chat_template.jinja": 50,
        "model-00001.safetensors": 40_000,
        LARGE: 400_000,
        "model.safetensors.index.json": 70,
        "consolidated.safetensors": 440_000,
        "README.md": 90,
        "onnx/config.json": 20,
        "original/model.safetensors": 50,
    }.items():
        path = folder / "models/lab/net" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.randbytes(size))
    rows = folder / "datasets/lab/rows"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(20)))
    return folder


@pytest.fixture
def hub(lab: Path, here: Callable[[Hub], None]) -> Iterator[Hub]:
    with Hub(lab) as served:
        here(served)
        yield served


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], None]:
    """here(hub): this process has that HF_ENDPOINT, an empty HF_HOME and no token, and is not offline."""

    def use(served: Hub) -> None:
        # What the library reads from the environment when it is imported.
        home = tmp_path / "home"
        for name, value in {
            "ENDPOINT": served.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", served.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between the library's tries
        monkeypatch.delenv("HF_TOKEN", raising=False)

    return use


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def use() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    return use


def bring(**wanted: Any) -> None:
    fetch(FetchConfig(**({"model_name": "lab/net"} | wanted), models_dir=str(Store.here().home / "models")))


def place() -> Path:
    """Where lab/net lies."""
    mark = Store.here().read(NET)
    assert mark is not None
    return Store.here().path(mark)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def asked(hub: Hub) -> list[str]:
    """What was asked, save for what the library wants to know for itself."""
    return [f"{one.method} {one.path}" for one in hub.requests if "agent-harnesses" not in one.path]


def test_a_model_comes_whole_in_one_format_is_recorded_by_its_commit_and_asked_for_once(
    lab: Path, here: Callable[[Hub], None], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with Hub(lab, token=TOKEN, page=3, cdn=True) as hub:
        here(hub)
        bring()
        left_out = ("README", "consolidated", "onnx", "original")
        wanted = {k: v for k, v in files(lab / "models/lab/net").items() if not k.startswith(left_out)}
        assert files(place()) == wanted
        mark = Store.here().read(NET)
        assert mark is not None
        assert mark.commit == hub.repositories.commits("models", "lab/net")["main"] == place().name
        assert mark.files == {name: len(data) for name, data in wanted.items()}
        assert mark.sources[LARGE] == f"sha256:{hashlib.sha256(wanted[LARGE]).hexdigest()}"
        assert len(hub.downloads()) == len(wanted)
        on_cdn = [one for one in hub.requests if one.on_cdn]
        assert len(on_cdn) == 2
        assert {one.token for one in on_cdn} == {"none"}, "the token is the hub's business alone"
        hub.requests.clear()
        bring()
        assert asked(hub) == []


def test_a_branch_is_resolved_once_and_a_commit_can_be_named(hub: Hub, lab: Path) -> None:
    bring()
    first = model_fingerprint("lab/net", "main")
    (lab / "models/lab/net/config.json").write_text("{}")
    commit = hub.repositories.commits("models", "lab/net")["main"]
    bring()
    assert model_fingerprint("lab/net", "main") == first
    bring(model_revision=commit)
    assert model_fingerprint("lab/net", commit) != first
    assert model_fingerprint("lab/net", "main") == first
    assert Path(resolve("lab/net", commit)).name == commit


@pytest.mark.parametrize("harm", ["cut short", "missing"])
def test_a_file_damaged_on_the_volume_is_said_and_fetched_again_alone(hub: Hub, lab: Path, harm: str) -> None:
    bring()
    hub.requests.clear()
    if harm == "missing":
        (place() / LARGE).unlink()
        (
            place() / "../../blobs" / hub.repositories.files("models", "lab/net", "main")[1][LARGE].etag
        ).unlink()
    else:
        os.truncate(place() / LARGE, 1000)
    with pytest.raises(UsageError, match=f"lab/net is damaged on the volume, got {LARGE}.*fetch it again"):
        local_path("lab/net", "main", None)
    bring()
    assert [path.rpartition("/")[2] for path in hub.downloads()] == [LARGE]
    assert (place() / LARGE).read_bytes() == (lab / "models/lab/net" / LARGE).read_bytes()


def test_wrong_content_is_downloaded_again(hub: Hub, lab: Path) -> None:
    hub.faults = [Fault(LARGE, damage=True), Fault("config.json", damage=True)]
    bring()
    assert (place() / LARGE).read_bytes() == (lab / "models/lab/net" / LARGE).read_bytes()
    assert len([path for path in hub.downloads() if path.endswith(LARGE)]) == 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(Fault(LARGE, 99, damage=True), "must have sha256 .* a proxy or the", id="wrong content"),
        pytest.param(Fault(LARGE, 99, short_by=1), "Consistency check failed", id="too short"),
        pytest.param(Fault(LARGE, 99, cut_after=1000), "peer closed connection", id="cut each time"),
        pytest.param(Fault("/revision/", 99, status=503), "is out of order, got 503", id="out of order"),
        pytest.param(Fault("/tree/", 99, status=500), "is out of order, got 500", id="no listing"),
        pytest.param(Fault(LARGE, 99, status=429), "is out of order, got 429", id="too many requests"),
    ],
)
def test_a_fault_of_the_hub_ends_with_75_leaves_no_mark_and_the_next_fetch_goes_on(
    hub: Hub, lab: Path, fault: Fault, says: str
) -> None:
    hub.faults = [fault]
    with pytest.raises(HubFault, match=says) as raised:
        bring()
    assert exit_code(raised.value) == ExitCode.AGAIN
    assert "\n" not in str(raised.value)
    assert Store.here().read(NET) is None
    with pytest.raises(ModelError, match="not fetched yet"):
        model_fingerprint("lab/other", "main")
    came = {path.rpartition("/")[2] for path in hub.downloads()} - {LARGE}
    hub.faults.clear()
    hub.requests.clear()
    bring()
    assert files(place())[LARGE] == (lab / "models/lab/net" / LARGE).read_bytes()
    assert came & {path.rpartition("/")[2] for path in hub.downloads()} == set()


def test_a_cut_connection_goes_on_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.faults = [Fault(LARGE, cut_after=100_000)]
    bring()
    assert [one.range for one in hub.requests if one.method == "GET" and one.path.endswith(LARGE)] == [
        None,
        "bytes=100000-",
    ]


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubFault, match=r"http://127.0.0.1:9 cannot be reached, got .*refused for lab/net$"):
        bring()


PUT_TOKEN = r"put a token that may read it into .*/token .*key `token` of the Secret that hubTokenSecret"


@pytest.mark.parametrize(
    ("token", "wanted", "says"),
    [
        pytest.param(
            "hf_bad", {}, f"^model_name: the hub refuses the token, .*{PUT_TOKEN}", id="wrong token"
        ),
        pytest.param(None, {}, f"no model of this name to one without a token, .*{PUT_TOKEN}", id="private"),
        pytest.param(None, {"model_name": "lab/gated"}, f"is gated, .* no token; .*{PUT_TOKEN}", id="gated"),
        pytest.param("hf_guest", {"model_name": "lab/gated"}, f"gated, got 403.*{PUT_TOKEN}", id="no access"),
        pytest.param(
            TOKEN, {"model_name": "lab/nte"}, "got 404 for 'lab/nte'; did you mean lab/net", id="name"
        ),
        pytest.param(
            TOKEN,
            {"model_revision": "experiment"},
            r"^model_revision: lab/net has no such revision, got 'experiment'; did you mean experiments\?",
            id="revision",
        ),
        pytest.param(
            TOKEN, {"model_name": "lab/empty"}, "no model, .*missing: config.json, weights", id="empty"
        ),
        pytest.param("", {}, "token: must hold the hub token alone, got an empty file", id="empty token"),
        pytest.param("hf_two words", {}, "alone, got 12 characters with spaces", id="no token at all"),
        pytest.param(
            TOKEN, {"dataset_name": "lab/row"}, "^dataset_name: .*did you mean lab/rows", id="dataset"
        ),
    ],
)
def test_a_users_fault_is_one_line_that_says_what_to_do(
    lab: Path,
    here: Callable[[Hub], None],
    tmp_path: Path,
    token: str | None,
    wanted: dict[str, str],
    says: str,
) -> None:
    for name in ("gated", "net@experiments"):
        shutil.copytree(lab / "models/lab/net", lab / "models/lab" / name)
    (lab / "models/lab/empty").mkdir()
    (lab / "models/lab/empty/README.md").write_text("soon")
    if token is not None:
        (tmp_path / "token").write_text(token)
    private, gated = ("lab/net", "lab/empty"), ("lab/gated",)
    with Hub(lab, token=TOKEN, strangers=("hf_guest",), private=private, gated=gated) as hub:
        here(hub)
        hub.private = private if wanted.get("model_name") != "lab/nte" else ()
        with pytest.raises(ValueError, match=says) as raised:
            bring(**wanted)
    assert exit_code(raised.value) == ExitCode.USAGE
    assert "\n" not in str(raised.value)
    assert not token or token not in str(raised.value)


def test_offline_nothing_is_asked_and_the_advice_is_to_fetch(hub: Hub, offline: Callable[[], None]) -> None:
    offline()
    with pytest.raises(
        UsageError, match=r"model_name: not fetched yet, .*run `python -m trainer fetch` first"
    ):
        bring()
    assert asked(hub) == []


@pytest.mark.parametrize("locks", ["work", "fail"])
def test_two_fetches_at_once_both_end_well(
    hub: Hub, lab: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    if locks == "fail":

        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
    hub.faults = [Fault(LARGE, 2, hold_after=1000)]
    failed: list[Exception] = []

    def one() -> None:
        try:
            bring()
        except Exception as error:  # noqa: BLE001 - told by the thread that waits
            failed.append(error)

    both = [threading.Thread(target=one) for _ in range(2)]
    for thread in both:
        thread.start()
    hub.wait_for(LARGE, count=1 if locks == "work" else 2)
    hub.release()
    for thread in both:
        thread.join()
    assert failed == []
    assert Store.here().is_whole(NET)
    assert (place() / LARGE).read_bytes() == (lab / "models/lab/net" / LARGE).read_bytes()
    assert len([path for path in hub.downloads() if path.endswith(LARGE)]) == (1 if locks == "work" else 2)
    assert list(Store.here().cache.rglob("*.incomplete")) == []


def test_too_small_a_disk_is_said_before_anything_is_downloaded(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        OSError, match=r"No space left on device while fetching lab/net .*make room"
    ) as raised:
        bring()
    assert exit_code(raised.value) == ExitCode.INTERNAL, "with this text the controller calls it storage"
    assert hub.downloads() == []


def test_what_a_library_wraps_is_found(hub: Hub) -> None:
    """`datasets` makes DatasetGenerationError of everything, a full disk and our own signal among it."""
    from datasets.exceptions import DatasetGenerationError

    from trainer.hub import Hub as Door

    def told(cause: BaseException) -> Exception | None:
        try:
            raise DatasetGenerationError("An error occurred while generating the dataset") from cause
        except DatasetGenerationError as error:
            return meaning(error, Asked("dataset_name", "dataset", "lab/rows", "main"), Door(Store.here()))

    assert isinstance(told(OSError(errno.EDQUOT, "Disk quota exceeded")), OSError)
    assert isinstance(told(Preempted("stopped")), Preempted)
    assert isinstance(told(ConnectionResetError("reset")), HubFault)
    assert str(told(ValueError("line 3 is no JSON"))).startswith(
        "dataset_name: cannot be read, got 'lab/rows' at"
    )
    assert told(MemoryError()) is None
    assert told(ZeroDivisionError()) is None, "a fault of ours keeps its trace"
    untrusted = told(OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"))
    assert isinstance(untrusted, UsageError)
    assert "SSL_CERT_FILE" in str(untrusted)


def test_model_files_are_one_format_of_the_weights() -> None:
    small = ["config.json", "tokenizer.model", "vocab.txt"]
    both = [*small, "model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"]
    assert model_files(both, "x") == [*small, "model.safetensors"]
    assert model_files([*small, "pytorch_model.bin"], "x") == [*small, "pytorch_model.bin"]
    with pytest.raises(ModelError, match=r"missing: weights \(\*.safetensors\)"):
        model_files([*small, "consolidated.safetensors", "sub/model.safetensors"], "lab/x")


def test_a_mark_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path / "hub")
    store.write(Mark(NET, "c0ffee", "models--lab--net/snapshots/c0ffee", {"config.json": 2}))
    assert store.read(NET) == Mark(NET, "c0ffee", "models--lab--net/snapshots/c0ffee", {"config.json": 2})
    assert not store.is_whole(NET)
    for text in ("{", "[]", '{"mark": {}}', store.mark_file(NET).read_text().replace("lab/net", "lab/other")):
        store.mark_file(NET).write_text(text)
        assert store.read(NET) is None


def test_what_killed_fetches_left_goes_when_nobody_writes_to_it(tmp_path: Path) -> None:
    old, new, clock = tmp_path / "a.incomplete", tmp_path / "b.incomplete", tmp_path / "mark"
    aside = tmp_path / ".rows.1234"
    (aside / "train").mkdir(parents=True)
    for path in (old, new, clock, aside / "train" / "data.arrow"):
        path.touch()
    now = clock.stat().st_mtime
    for path in (old, aside, aside / "train"):
        os.utime(path, (now - 90_000, now - 90_000))
    remove_stale(tmp_path.glob("*.incomplete"), clock)
    remove_stale([aside], clock)
    assert not old.exists()
    assert new.exists()
    assert aside.exists(), "a file in it was written to just now"


def text_rows(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def test_a_dataset_is_prepared_once_and_each_revision_is_itself(
    hub: Hub, lab: Path, offline: Callable[[], None], tmp_path: Path
) -> None:
    """Offline, `datasets` alone takes the revision that was prepared last, whichever is asked for."""
    other = lab / "datasets/lab/rows@v2"
    other.mkdir()
    (other / "train.jsonl").write_text(text_rows("new 0", "new 1"))
    (other / "test.jsonl").write_text(text_rows("held out"))
    for revision in ("main", "v2"):
        bring(model_name=None, dataset_name="lab/rows", dataset_revision=revision)
    hub.requests.clear()
    bring(model_name=None, dataset_name="lab/rows")
    assert asked(hub) == []
    mark = Store.here().read(rows_of("lab/rows", "v2"))
    assert mark is not None
    assert mark.commit == hub.repositories.commits("datasets", "lab/rows")["v2"]
    assert set(mark.sources) == {"train.jsonl", "test.jsonl"}
    offline()
    first, second = (open_rows(rows_of("lab/rows", revision), "dataset_name") for revision in ("main", "v2"))
    assert first["train"]["text"][:2] == ["row 0", "row 1"]
    assert second["train"]["text"] == ["new 0", "new 1"]
    assert sorted(second) == ["test", "train"]
    assert split_of(second, "train[1:]+test", "dataset_split")["text"] == ["new 1", "held out"]
    with pytest.raises(UsageError, match=r"dataset_split: no such split, got 'tset'; there is test, train"):
        split_of(second, "tset", "dataset_split")
    with pytest.raises(UsageError, match=r"dataset_name: not fetched yet, got 'lab/rows' at v3"):
        open_rows(rows_of("lab/rows", "v3"), "dataset_name")
    assert asked(hub) == []


def test_damaged_rows_are_said_and_prepared_again(hub: Hub) -> None:
    bring(model_name=None, dataset_name="lab/rows")
    wanted, store = rows_of("lab/rows"), Store.here()
    folder = store.find(wanted, "")
    assert folder is not None
    os.truncate(next(folder.glob("train/*.arrow")), 10)
    with pytest.raises(UsageError, match=r"dataset_name: lab/rows is damaged on the volume, got train/data-"):
        open_rows(wanted, "dataset_name")
    bring(model_name=None, dataset_name="lab/rows")
    assert len(open_rows(wanted, "dataset_name")["train"]) == 20


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        pytest.param(Fault("train.jsonl", 99, damage=True), HubFault, "must have git", id="wrong content"),
        pytest.param(Fault("/tree/", 99, status=503), HubFault, "out of order, got 503", id="out of order"),
        pytest.param(
            None, UsageError, "dataset_name: cannot be read, got 'lab/rows' at main: ", id="no rows"
        ),
    ],
)
def test_data_that_cannot_be_had_leaves_no_mark(
    hub: Hub, lab: Path, fault: Fault | None, kind: type[Exception], says: str
) -> None:
    hub.faults = [fault] if fault else []
    if not fault:
        (lab / "datasets/lab/rows/train.jsonl").write_text('{"text": 1}\n{"text": [1]}\nno JSON\n')
    with pytest.raises(kind, match=says):
        bring(model_name=None, dataset_name="lab/rows")
    assert list(Store.here().marks.glob("*.json")) == []
    assert [path for path in Store.here().rows.iterdir() if path.is_dir()] == []


def test_wikitext_is_fetched_without_its_large_sister_and_read_offline(
    hub: Hub, lab: Path, offline: Callable[[], None]
) -> None:
    folder = lab / "datasets/Salesforce/wikitext"
    configs = ""
    for name in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        configs += f"- config_name: {name}\n  data_files:\n"
        for split in ("test", "train"):
            configs += f"  - {{split: {split}, path: {name}/{split}-*}}\n"
            rows = [f"{name} {split}", "", "= Title ="]
            (folder / name).mkdir(parents=True, exist_ok=True)
            Dataset.from_dict({"text": rows}).to_parquet(folder / name / f"{split}-00000.parquet")
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\nText.\n")
    bring(model_name=None, dataset_name="wikitext")
    assert not any("wikitext-103" in path for path in hub.downloads())
    offline()
    assert load_text("wikitext").text == "wikitext-2-raw-v1 test\n\n\n\n= Title ="


def run(
    hub: Hub, home: Path, *words: str, before: Callable[[], None] | None = None, **more: str
) -> subprocess.Popen[str]:
    """`python -m trainer` with its volume at `home`; `before` runs in the process that becomes it."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home / ".hub"), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_TOKEN_PATH": str(home / "token"), TERMINATION_LOG_ENV: str(home / "record")} | more
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=before,
    )


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_fetch_leaves_no_mark_and_the_next_brings_only_the_rest(
    lab: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    with Hub(lab) as hub:
        hub.faults = [Fault(LARGE, hold_after=1000)]
        first = run(hub, tmp_path, "fetch", "--model-name", "lab/net")
        hub.wait_for(LARGE)
        first.send_signal(sent)
        first.communicate()
        assert first.returncode == (ExitCode.AGAIN if sent is signal.SIGTERM else -sent)
        marks = tmp_path / ".hub/orch"
        assert list(marks.glob("*.json")) == []
        came = hub.downloads()
        hub.requests.clear()
        second = run(hub, tmp_path, "fetch", "--model-name", "lab/net", "--run-id", "fetch-1234")
        said, _ = second.communicate()
        assert second.returncode == 0, said
        assert [path.rpartition("/")[2] for path in hub.downloads()] == [LARGE]
        assert len(came) == 6
        assert len(list(marks.glob("*.json"))) == 1
        record = load_record((tmp_path / "record").read_bytes())
        assert record is not None
        assert (record.stage, record.status, record.run_id) == ("fetch", "done", "fetch-1234")


def test_the_token_comes_from_its_file_alone_and_is_seen_nowhere(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_WrongOne77\n")
    (lab / "models/lab/net/config.json").write_text("{}")
    with Hub(lab, token=TOKEN) as hub:
        environment = {"HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN}
        refused = run(hub, tmp_path, "fetch", "--model-name", "lab/net", **environment)
        said, _ = refused.communicate()
        assert refused.returncode == ExitCode.USAGE
        assert {one.token for one in hub.requests if "agent" not in one.path} == {"bad"}
        assert said.startswith("model_name: the hub refuses the token, got 401 for 'lab/net'; put a token")
        record = (tmp_path / "record").read_text()
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        good = run(hub, tmp_path, "fetch", "--model-name", "lab/net", HF_DEBUG="1", HF_HUB_VERBOSITY="debug")
        with open(f"/proc/{good.pid}/cmdline") as words:
            argv = words.read()
        more, _ = good.communicate()
        assert good.returncode == 0, more
    (tmp_path / "token").unlink()
    volume = b"".join(files(tmp_path / ".hub").values()).decode(errors="replace")
    for text in (said, more, record, argv, (tmp_path / "record").read_text(), volume, repr(hub.requests)):
        assert "hf_WrongOne77" not in text
        assert TOKEN not in text


ARC = {
    "id": "1",
    "question": "Is ice cold?",
    "choices": {"text": ["yes", "no"], "label": ["A", "B"]},
    "answerKey": "A",
}
SWAG = {
    "ind": 1,
    "activity_label": "Sitting",
    "ctx_a": "A man sits.",
    "ctx_b": "he",
    "ctx": "A man sits. he",
    "endings": ["flies.", "melts.", "sings.", "stands up."],
    "label": "3",
}
BOOLQ = {"question": "is ice cold", "passage": "Ice is cold.", "idx": 1, "label": 1}


def dataset(served: Path, name: str, config: str, rows: list[dict[str, Any]]) -> None:
    """The same rows as all three splits; a config `data` is the default one."""
    home = served / "datasets" / name
    (home / config).mkdir(parents=True)
    splits = ("train", "validation", "test")
    for split in splits:
        Dataset.from_list(rows).to_parquet(home / config / f"{split}-00000-of-00001.parquet")
    data_files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
    card = json.dumps({"configs": [{"config_name": config, "data_files": data_files}]})
    (home / "README.md").write_text(f"---\n{card}\n---\nRows." if config != "data" else "Rows.")


def cut_off() -> None:
    """No network, where one may ask for that; and root obeys the modes of files like everybody."""
    libc = ctypes.CDLL(None)
    libc.unshare(0x40000000)  # CLONE_NEWNET
    libc.prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def write_protect(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.slow
def test_what_was_fetched_is_all_that_train_and_eval_need(
    tmp_path: Path, make_tiny_folder: Callable[[Path], Path]
) -> None:
    """The real commands: fetch with a hub, then train and eval from a read-only volume mounted elsewhere."""
    folder = tmp_path / "served"
    (make_tiny_folder(folder / "models/lab/tiny") / "rows.jsonl").unlink()
    chats = [
        [{"role": "user", "content": f"{i} plus {i}?"}, {"role": "assistant", "content": str(2 * i)}]
        for i in range(40)
    ]
    dataset(folder, "lab/chats", "data", [{"messages": chat} for chat in chats])
    dataset(folder, "Salesforce/wikitext", "wikitext-2-raw-v1", [{"text": f"Line {i}."} for i in range(40)])
    dataset(folder, "allenai/ai2_arc", "ARC-Easy", [ARC, ARC])
    dataset(folder, "Rowan/hellaswag", "data", [SWAG, SWAG])
    dataset(folder, "aps/super_glue", "boolq", [BOOLQ, BOOLQ])
    volume, moved = tmp_path / "volume", tmp_path / "elsewhere"
    tasks = ("arc_easy", "hellaswag", "boolq")
    with Hub(folder) as hub:
        for wanted in (
            ("--model-name", "lab/tiny", "--dataset-name", "lab/chats"),
            ("--dataset-name", "wikitext"),
        ):
            words = ["fetch", *wanted, "--models-dir", str(volume / ".models")]
            words += ["--tasks", *tasks] if "wikitext" in wanted else []
            fetched = run(hub, volume, *words)
            said, _ = fetched.communicate()
            assert fetched.returncode == 0, said
        (volume / ".models").mkdir()
        volume.rename(moved)
        write_protect(moved)
        before = files(moved)
        hub.requests.clear()
        shut = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "before": cut_off}
        shut |= {TERMINATION_LOG_ENV: str(tmp_path / "record")}
        output = tmp_path / "run"
        train = [
            "train",
            "--model-name",
            "lab/tiny",
            "--dataset-name",
            "lab/chats",
            "--mixed-precision",
            "fp32",
        ]
        train += ["--group-size", "32", "--lora-r", "4", "--max-length", "64", "--max-new-tokens", "4"]
        train += ["--max-steps", "1", "--models-dir", str(moved / ".models"), "--output-dir", str(output)]
        measure = ["eval", "--lora-paths", str(output), "--tasks", *tasks, "--limit", "2"]
        measure += ["--perplexity-dataset", "wikitext", "--perplexity-tokens", "256", "--window", "64"]
        measure += ["--stride", "32", "--batch-size", "4", "--models-dir", str(moved / ".models")]
        measure += ["--output-dir", str(tmp_path / "eval"), "--baselines-dir", str(tmp_path / "baselines")]
        for command in (train, measure):
            process = run(hub, moved, *command, **shut)
            said, _ = process.communicate()
            assert process.returncode == 0, said
        assert asked(hub) == []
    assert files(moved) == before
    record = load_record((tmp_path / "record").read_bytes())
    assert record is not None
    for variant in record.variants:
        assert sorted(variant.tasks) == sorted(tasks)
        assert variant.text is not None
    assert {variant.variant for variant in record.variants} >= {"teacher", "ptq", "adapter"}


@pytest.mark.slow
def test_a_task_that_is_fetched_is_seen_without_the_harness(hub: Hub, lab: Path) -> None:
    dataset(lab, "allenai/ai2_arc", "ARC-Easy", [ARC])
    bring(model_name=None, tasks=["arc_easy"])
    mark = Store.here().read(Wanted("task", "arc_easy"))
    assert mark is not None
    assert mark.parts == (Wanted("rows", "allenai/ai2_arc", subset="ARC-Easy"),)
    hub.requests.clear()
    bring(model_name=None, tasks=["arc_easy"])
    assert asked(hub) == []
    Store.here().mark_file(mark.parts[0]).unlink()
    bring(model_name=None, tasks=["arc_easy"])
    assert Store.here().is_whole(mark.parts[0])
    again = Mark(mark.wanted, parts=mark.parts, made_by="0.0.1")
    Store.here().write(again)
    bring(model_name=None, tasks=["arc_easy"])
    assert Store.here().read(mark.wanted) == mark, "another version of the harness may want other rows"
