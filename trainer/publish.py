"""What a run leaves behind: run.json, the adapter, sample completions, and the done mark last."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from trainer.adapter import save_adapter
from trainer.counters import Stream
from trainer.durable import read_object
from trainer.heldout import best_step
from trainer.layout import ADAPTER_WEIGHTS
from trainer.mismatch import NOISE
from trainer.noise import Draw, Sampler
from trainer.probe import prove
from trainer.results import Record, TrainSummary
from trainer.settings import digest
from trainer.teacher_topk import ERROR

if TYPE_CHECKING:
    from trainer.session import Session

SAMPLE_PROMPTS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a Python function that adds two numbers.",
    "List three fruits.",
    "What is 12 plus 30?",
)
SAMPLE_TOKENS = 24


def start_run(session: Session, resumed_from: int | None) -> dict[str, Any]:
    """Write run.json for an attempt that begins, and return it: config, base and versions it works with."""
    config, place = session.config, session.place
    before = read_object(session.folder.run)
    about = {
        "v": 1,
        "run_id": place.run_id,
        "status": "running",
        "digest": digest(config),
        "config": config.model_dump(mode="json"),
        "tags": place.tags,
        "overrides": overrides(session),
        "base": {"name": config.model_name, "revision": config.model_revision},
        "codes_sha256": session.student.codes_sha256,
        "dataset": _dataset(session),
        "versions": versions(),
        "started": before.get("started", time.time()),
        "attempts": before.get("attempts", 0) + 1,
        "resumed_from": resumed_from,
    }
    session.fence.write_json(session.folder.run, about)
    return about


def publish(session: Session, summary: TrainSummary, about: Mapping[str, Any]) -> Record:
    """Publish adapter, samples and run.json, then the done mark; returns the record it holds.

    about: what `start_run` wrote. Raises FenceLost when another attempt took the folder, RuntimeError when
    the files do not compute what was trained.
    """
    folder, config, fence = session.folder, session.config, session.fence
    samples = sample_completions(session)
    # A mark that outlived its adapter must not stand beside the next one.
    fence.remove(folder.done)
    with fence.new_folder(folder.adapter) as aside:
        save_adapter(session.student.lora_tensors(), aside, config)
        weights = hashlib.sha256((aside / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    session.metrics.finish()
    fence.write_json(folder.samples, samples)
    probe = prove(session.student, folder.adapter, config)
    fence.write_json(folder.probe, probe)
    done = {
        "status": "done",
        "finished": time.time(),
        "adapter_sha256": weights,
        "probe": {"logits_sha256": probe["logits_sha256"], "equal": True},
        "heldout": [{"step": line["step"], **line["heldout"]} for line in session.evaluations],
        "adapter_step": best_step(session.evaluations) if session.best else summary.step,
    }
    if session.endings.rollouts:
        done["rollouts"] = {"cut_share": session.endings.cut_share, **session.endings._asdict()}
        done[NOISE] = session.mismatch.noise
    if session.topk:
        done[ERROR] = session.topk.error
    if note := getattr(session.kernel, "note", None):
        done["loss_kernel"] = note
    fence.write_json(folder.run, {**about, **done, "dataset": _dataset(session)})
    record = Record(
        stage="train",
        status="done",
        exit_code=0,
        run_id=session.place.run_id,
        config_digest=digest(config),
        attempt=fence.token,
        train=summary.model_copy(update={"adapter_sha256": weights}),
        overrides=overrides(session),
    )
    fence.write_json(folder.done, record.model_dump(mode="json", exclude_none=True))
    return record


def _dataset(session: Session) -> dict[str, Any]:
    """Which data, and how many of its rows this attempt looked at, dropped and held out so far."""
    return {
        "name": session.config.dataset_name,
        "revision": session.config.dataset_revision,
        "rows_seen": session.data.seen,
        "rows_dropped": session.data.dropped,
        "rows_heldout": session.data.heldout,
    }


def sample_completions(session: Session) -> list[dict[str, Any]]:
    """Greedy completions of five fixed prompts by teacher, ptq and the trained student."""
    tokenizer, config = session.tokenizer, session.config
    prompts = [_prompt_ids(tokenizer, text) for text in SAMPLE_PROMPTS]
    sampler = Sampler(config.seed, Stream.ROLLOUT, 0.0, SAMPLE_TOKENS, 0, session.stops)
    draws = [Draw(0, number) for number in range(len(prompts))]
    written: dict[str, list[str]] = {}
    for name, mode in (("teacher", "teacher"), ("ptq", "ptq"), ("adapter", "student")):
        completions = session.rollouts.sample(prompts, draws, sampler, mode, session.stop.check)
        written[name] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
        session.watchdog.beat()
    return [
        {"prompt": prompt, **{name: texts[number] for name, texts in written.items()}}
        for number, prompt in enumerate(SAMPLE_PROMPTS)
    ]


def _prompt_ids(tokenizer: Any, text: str) -> list[int]:
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
    ids: list[int] = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return ids


def overrides(session: Session) -> dict[str, Any]:
    """What this attempt does otherwise than its config says (the out-of-memory remedy)."""
    split = session.place.micro_batch_split
    return {"micro_batch_split": split} if split > 1 else {}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "datasets", "bitsandbytes", "vllm", "orch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
