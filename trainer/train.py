"""The training loop of generalised knowledge distillation (Agarwal et al. 2024, arXiv:2306.13649).

Read `train` top to bottom: who writes each sequence (λ), the student's rollouts, the loss over completion
tokens divided by their number in the whole step, one AdamW update, a line of metrics, a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer import endings, heldout
from trainer.attempt import Diverged, Preempted, mark_ready, report
from trainer.config import TrainConfig
from trainer.counters import Stream, is_on_policy
from trainer.data import Item, collate, micro_batches
from trainer.linear import Mode
from trainer.losses import fused_jsd
from trainer.noise import Draw, Sampler, Trace
from trainer.publish import publish, start_run
from trainer.results import Progress, Record, TrainSummary
from trainer.resume import resume, save
from trainer.session import Session

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8


def train(session: Session) -> Record | None:
    """Train until max_steps and publish the adapter; returns the done record (None but on the main process).

    Raises Preempted after a checkpoint, Diverged, FenceLost, DataError; UsageError where rollouts do not end.
    """
    config, student, world = session.config, session.student, session.world
    parameters = student.lora_parameters()
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=ADAM_BETAS,
        eps=ADAM_EPS,
        weight_decay=config.weight_decay,
        fused=False,  # the fused update leaves version counters alone, and rollout weights would go stale
    )
    if world.is_main:
        session.fence.take()
    start, totals = resume(session, optimizer)
    resumed_from = start or None
    about = start_run(session, resumed_from) if world.is_main else {}
    step = steps = start
    session.stop.defer()
    try:
        for step in range(start, config.max_steps):
            if heldout.is_over(session.evaluations, config.early_stopping_patience):
                break
            session.watchdog.beat()
            clock = Stopwatch()
            items = _items(session, step)
            # A process that is told to stop in its rollouts meets the others before it ends.
            with contextlib.suppress(Preempted):
                _write_completions(session, step, items, clock)
            session.agree()
            tokens, loss = _accumulate(session, step, items, clock)
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            world.sum_gradients(parameters)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
            if not math.isfinite(norm):
                raise Diverged(_where(step, items, f"gradient norm {norm}"))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step, config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.lap("update")

            metrics = _metrics(session, step, items, tokens, loss, norm, clock)
            endings.take(session, metrics)
            steps = step + 1
            if config.eval_steps and (steps % config.eval_steps == 0 or steps == config.max_steps):
                metrics["heldout"] = heldout.measure(session)
                heldout.record(session, metrics)
            over = steps == config.max_steps or heldout.is_over(
                session.evaluations, config.early_stopping_patience
            )
            totals = {
                "tokens": totals["tokens"] + metrics["tokens"],
                "rollout_tokens": totals["rollout_tokens"] + metrics["rollout_tokens"],
                "seconds": totals["seconds"] + metrics["seconds"],
                "loss": loss,
            }
            session.watchdog.beat(metrics["seconds"])
            if world.is_main:
                session.metrics.append(metrics)
                mark_ready()
                report(_progress(config, steps, metrics, totals))
            # The last one too: publishing may be interrupted, and must not cost a step.
            if steps % config.save_steps == 0 or over:
                save(session, steps, optimizer, totals)
    except Preempted as error:
        # Raised before the step's update alone, so the parameters are those after `step` steps.
        if step > start:
            save(session, step, optimizer, totals)
        raise Preempted(f"stopped at step {step} of {config.max_steps}") from error
    if not world.is_main:
        return None
    if session.best:
        student.load_lora(session.best)
    summary = TrainSummary(
        step=steps,
        max_steps=config.max_steps,
        loss=totals["loss"],
        tokens=int(totals["tokens"]),
        rollout_tokens=int(totals["rollout_tokens"]),
        seconds=totals["seconds"],
        codes_sha256=student.codes_sha256,
        resumed_from=resumed_from,
    )
    return publish(session, summary, about)


def schedule(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate: linear warm-up, then linear decay to 0, as transformers' `linear`."""
    warmup = math.ceil(config.max_steps * config.warmup_ratio)
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (config.max_steps - step) / max(1, config.max_steps - warmup))


class Stopwatch:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _items(session: Session, step: int) -> list[Item]:
    """This process's share of the step's sequences: every size-th, so that λ and lengths spread evenly."""
    config, world = session.config, session.world
    return [
        Item(
            sample=number,
            example=session.data[step * config.global_batch + number],
            on_policy=is_on_policy(config.seed, step, number, config.lmbda),
        )
        for number in range(world.rank, config.global_batch, world.size)
    ]


def _write_completions(session: Session, step: int, items: list[Item], clock: Stopwatch) -> None:
    """Give each item its completion: the student's rollout, the teacher's (seq_kd) or the dataset's.

    All rollouts of the step are one batch, whatever the micro-batches.
    """
    config = session.config
    own = [item for item in items if item.on_policy]
    if own:
        sampler = Sampler(
            seed=config.seed,
            stream=Stream.ROLLOUT,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            min_new_tokens=config.min_new_tokens,
            stops=session.stops,
        )
        draws = [Draw(step, item.sample) for item in own]
        prompts = [item.example.prompt for item in own]
        trace = Trace()
        written = session.rollouts.sample(prompts, draws, sampler, "rollout", session.check, trace)
        for item, ids, log_probs in zip(own, written, trace.log_probs(written), strict=True):
            item.completion, item.log_probs = tuple(ids), log_probs
    clock.lap("rollout")
    for item in items:
        if not item.on_policy:
            item.completion = item.example.completion
    if config.seq_kd:
        others = [item for item in items if not item.on_policy]
        taught = session.teacher.complete([item.example for item in others], session.check)
        for item, completion in zip(others, taught, strict=True):
            item.completion = completion
    clock.lap("teacher")


def _accumulate(session: Session, step: int, items: list[Item], clock: Stopwatch) -> tuple[int, float]:
    """Gradients of the step's mean loss; returns (global completion tokens, loss in nats per token).

    The denominator counts the completions that are trained on, over all micro-batches and processes,
    after the rollouts.
    """
    config, world = session.config, session.world
    tokens = int(world.sum([sum(len(item.completion) for item in items)])[0])
    size = max(1, config.per_device_train_batch_size // session.place.micro_batch_split)
    summed = 0.0
    for part in micro_batches(longest_first(items) if session.place.length_buckets else items, size):
        session.agree()
        loss = _loss(session, part, clock)
        if not math.isfinite(loss.item()):
            raise Diverged(_where(step, list(part), f"loss {loss.item()}"))
        summed += loss.item()
        clock.lap("loss")
        (loss / tokens).backward()
        clock.lap("backward")
    return tokens, world.sum([summed])[0] / tokens


def _loss(session: Session, part: Sequence[Item], clock: Stopwatch) -> Tensor:
    """Sum of a micro-batch's divergences from the teacher, or from what is kept of it (teacher_topk)."""
    config, student = session.config, session.student
    pad = session.tokenizer.pad_token_id or 0
    batch = collate([(item.example.prompt, item.completion) for item in part], pad, session.world.device)

    def hidden(mode: Mode) -> Tensor:
        return student.hidden(batch.ids_BT, mode=mode)[batch.predicts_BT]

    def full(teacher_NH: Tensor) -> Tensor:
        return fused_jsd(
            student_NH,
            student.head("student"),
            teacher_NH,
            student.head("teacher"),
            config.beta,
            config.loss_temperature,
            kernel=session.kernel,
        )

    # Before the student's, whose activations stay until backward.
    teacher_NH = None if session.topk else hidden("teacher")
    student_NH = hidden("student")
    session.mismatch.measure(student, part, student_NH)
    clock.lap("forward")
    if session.topk:
        examples = [item.example for item in part]
        return session.topk.loss(examples, student_NH, lambda: full(hidden("teacher")))
    assert teacher_NH is not None
    return full(teacher_NH)


def longest_first(items: Sequence[Item]) -> list[Item]:
    """Items by their number of tokens, so that a micro-batch pads little and the largest shows at once
    whether memory suffices; equals keep their order."""
    return sorted(items, key=lambda item: -(len(item.example.prompt) + len(item.completion)))


def _where(step: int, items: list[Item], what: str) -> str:
    samples = ", ".join(str(item.sample) for item in sorted(items, key=lambda item: item.sample))
    return f"step {step + 1}: {what} in samples {samples}; lower the learning rate or look at these rows"


def _metrics(
    session: Session, step: int, items: list[Item], tokens: int, loss: float, norm: float, clock: Stopwatch
) -> dict[str, Any]:
    own = endings.count(items, session.stops, session.config.max_new_tokens)
    written = sum(len(item.completion) for item in items if item.on_policy)
    rollout_tokens, *counts = map(int, session.world.sum([written, *own]))
    seconds = sum(clock.laps.values())
    return {
        "v": 1,
        "step": step + 1,
        "loss": loss,
        "lr": session.config.learning_rate * schedule(step, session.config),
        "grad_norm": norm,
        "tokens": tokens,
        **endings.Endings(*counts).line(),
        **session.mismatch.line(session.world),
        **(session.topk.line(session.world) if session.topk else {}),
        "rollout_tokens": rollout_tokens,
        "seconds": round(seconds, 4),
        "tokens_per_s": round(tokens / seconds, 2) if seconds else None,
        "time": {name: round(value, 4) for name, value in clock.laps.items()},
    }


def _progress(
    config: TrainConfig, done: int, metrics: Mapping[str, Any], totals: Mapping[str, float]
) -> Progress:
    return Progress(
        stage="train",
        done=done,
        total=config.max_steps,
        what="steps",
        loss=metrics["loss"],
        tokens_per_s=metrics["tokens_per_s"],
        seconds_left=totals["seconds"] / done * (config.max_steps - done),
    )
