"""The JSON the trainer reports: records (termination messages), evaluation results, run.json, metrics.

Torch-free. A record is one ASCII JSON line of at most 4,096 bytes, since Kubernetes keeps only the last
4,096 of a termination message; everything larger is a file on the volume.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from enum import IntEnum
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RECORD_LIMIT = 4096
UNPACKED_LIMIT = 65536
"""No honest message of RECORD_LIMIT bytes unpacks to more."""
ERROR_LIMIT = 1200

Stage = Literal["fetch", "baseline", "train", "eval", "export", "report", "gc"]
VariantName = Literal["teacher", "ptq", "adapter", "merged"]


class ExitCode(IntEnum):
    """What the trainer's exit codes mean."""

    DONE = 0
    USAGE = 64
    DATA = 65
    INTERNAL = 70
    AGAIN = 75
    STALLED = 77
    DIVERGED = 78
    CUDA_OOM = 79


class Schema(BaseModel):
    """Base of all reported JSON: newer fields of a newer trainer are kept out, never a crash."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TaskScore(NamedTuple):  # an array in JSON: ten variants must fit one record
    """Accuracy on one lm-eval task; `better` and `worse` count the items decided unlike ptq."""

    acc: float
    stderr: float
    n: int
    better: int | None = None
    worse: int | None = None


class TextScore(NamedTuple):
    """Mean negative log-likelihood and KL(teacher ‖ variant), nats per token, over blocks of text.

    Standard errors come from a bootstrap over blocks; `*_diff` are paired differences to ptq
    (this variant minus ptq: negative is better) with the standard error of the difference.
    """

    tokens: int
    nll: float
    nll_se: float
    kl: float | None = None
    kl_se: float | None = None
    nll_diff: float | None = None
    nll_diff_se: float | None = None
    kl_diff: float | None = None
    kl_diff_se: float | None = None


class VariantResult(Schema):
    """One measured variant: teacher, ptq, or an adapter in one of its forms."""

    variant: VariantName
    run_id: str | None = None
    tasks: dict[str, TaskScore] = Field(default_factory=dict)
    text: TextScore | None = None


class Protocol(Schema):
    """How an evaluation measured: numbers compare only when these agree."""

    model: str
    quant: str
    dtype: str
    batch_size: int
    limit: int | None = None
    text: str | None = None
    text_sha256: str | None = None
    block_tokens: int | None = None


class TrainSummary(Schema):
    """What a training attempt reports."""

    step: int
    max_steps: int
    loss: float | None = None
    tokens: int = 0
    rollout_tokens: int = 0
    seconds: float = 0.0
    adapter_sha256: str | None = None
    codes_sha256: str | None = None
    resumed_from: int | None = None


class Record(Schema):
    """The outcome of one attempt, as its container's termination message."""

    v: int = 1
    stage: Stage
    status: Literal["done", "failed"]
    exit_code: int
    run_id: str | None = None
    config_digest: str | None = None
    attempt: str | None = None
    train: TrainSummary | None = None
    protocol: Protocol | None = None
    variants: list[VariantResult] = Field(default_factory=list)
    overrides: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None


def dump_record(record: Record) -> bytes:
    """The record as ASCII JSON, at most RECORD_LIMIT bytes; numbers have 5 significant digits.

    The error text is cut first; long results are packed (zlib, base64). Raises ValueError if they exceed
    the limit even so.
    """
    value = _rounded(record.model_dump(mode="json", exclude_none=True, exclude_defaults=True))
    value |= {"v": record.v, "exit_code": record.exit_code}
    if len(json.dumps(value, separators=(",", ":"))) > RECORD_LIMIT and "variants" in value:
        plain = json.dumps(value.pop("variants"), separators=(",", ":")).encode()
        value["packed"] = base64.b64encode(zlib.compress(plain, 9)).decode()
    error = str(value.pop("error", ""))[-ERROR_LIMIT:]
    while True:
        data = json.dumps(
            {**value, **({"error": error} if error else {})}, separators=(",", ":"), allow_nan=False
        ).encode("ascii")
        if len(data) <= RECORD_LIMIT:
            return data
        if not error:
            raise ValueError(
                f"record: must fit {RECORD_LIMIT} bytes, got {len(data)}; evaluate fewer adapters in one Job"
            )
        error = error[-(len(error) // 2) :] if len(error) > 1 else ""


def load_record(message: str | bytes) -> Record | None:
    """The record in a termination message, or None: the message is data and never trusted."""
    try:
        value = json.loads(message)
        if isinstance(value, dict) and "packed" in value:
            value["variants"] = _unpacked(value.pop("packed"))
        return Record.model_validate_json(json.dumps(value))
    except (ValueError, zlib.error, RecursionError):
        return None


def _unpacked(packed: Any) -> Any:
    """The packed results; ValueError for what is none or would unpack to more than UNPACKED_LIMIT bytes."""
    if not isinstance(packed, str):
        raise ValueError("packed: must be text")
    unpacker = zlib.decompressobj()
    plain = unpacker.decompress(base64.b64decode(packed, validate=True), UNPACKED_LIMIT)
    if not unpacker.eof:
        raise ValueError("packed: too long")
    return json.loads(plain)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


LeftoverKind = Literal["checkpoint", "run", "temporary", "teacher", "job", "records"]


class Leftover(Schema):
    """Something that may go: `path` below dump/, `bytes` that are free then, and why it may."""

    path: str
    kind: LeftoverKind
    bytes: int
    why: str

    def line(self) -> str:
        """`night/a-1/checkpoint-20: checkpoint, 1.2 GB: its run is done for 15 d`."""
        return f"{self.path}: {self.kind}, {in_words(self.bytes)}: {self.why}"


class Tidied(Schema):
    """What may go, or with `deleted` is gone; `faults` say what could not be removed."""

    v: int = 1
    deleted: bool = False
    items: list[Leftover] = Field(default_factory=list)
    faults: list[str] = Field(default_factory=list)

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(one.bytes for one in self.items)


def in_words(count: int) -> str:
    """Bytes for people: 512 B, 1.5 kB, 2.3 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


class Progress(Schema):
    """How far a stage is: one line of its log, readable by people and by `orch status`."""

    stage: Stage
    done: int
    total: int
    what: str = ""
    loss: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None

    def line(self) -> str:
        """`[train] 3/8 step · loss 0.1234 · 812 tok/s · 42 s left`; absent numbers are left out."""
        parts = [f"[{self.stage}] {self.done}/{self.total} {self.what}".rstrip()]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.0f} tok/s")
        if self.seconds_left is not None:
            parts.append(f"{self.seconds_left:.0f} s left")
        return " · ".join(parts)


_PROGRESS = re.compile(
    r"\[(?P<stage>\w+)\] (?P<done>\d+)/(?P<total>\d+)(?: (?P<what>[^·]*?))?"
    r"(?: · loss (?P<loss>[-\d.]+))?(?: · (?P<tokens_per_s>\d+) tok/s)?"
    r"(?: · (?P<seconds_left>\d+) s left)?\s*"
)


def parse_progress(line: str) -> Progress | None:
    """The Progress whose `line()` this is, or None for any other line."""
    match = _PROGRESS.fullmatch(line)
    if not match:
        return None
    try:
        return Progress.model_validate({k: v for k, v in match.groupdict().items() if v is not None})
    except ValidationError:
        return None
