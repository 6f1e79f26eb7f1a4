"""Ours against TRL's GKDTrainer, step by step: same model, rows, LoRA, optimiser and schedule: same losses.

Slow: importing TRL takes half a minute. What others have had wrong (the numbers are those that other tests
name as `Bug n`), and where each is tested:

1 mixture in log space, 2 roles of β, 4 batchmean, 9 half cross-entropy, 11 ignore_index, 12 softmax in bf16
and a gradient for a frozen head, 18 vocabularies: test_losses.py. 3 prompts trained on, 5 completions lost
beside longer prompts, 13 end of turn masked as padding: test_data.py. 6 mean of the micro-batches' means,
21 resume: test_train.py. 7 denominator of the dataset's labels: test_train.py, TRL's here. 8, 10 gradients
across processes: test_distributed.py, test_main.py. 14, 15 the model's own generation config in rollouts,
16 no cache with checkpointing: test_rollout.py, test_student.py. 17 the allocator's cache emptied at each
loss, 19 padding trained on, 20 rollouts of LoRA rounded into the codes: here. 22 a teacher that is not
sharded: there is no second model to shard, teacher and student share one W (test_student.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import rivals
from trainer import train as loop
from trainer.attempt import StopSignal
from trainer.config import TrainConfig, TrainPlace
from trainer.data import Example, collate
from trainer.distributed import World
from trainer.metrics import Metrics
from trainer.models import load_model, load_tokenizer
from trainer.setup import prepare

STEPS, ACCUMULATION = 6, 4


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, make_tiny_folder: Callable[[Path], Path]) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config_of(tiny_folder: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "model_name": str(tiny_folder),
            "dataset_name": str(tiny_folder / "rows.jsonl"),
            "mixed_precision": "fp32",
            "group_size": 32,
            "lora_r": 4,
            "max_length": 64,
            "max_new_tokens": 6,
            "min_new_tokens": 0,
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "max_grad_norm": 0.1,
            "warmup_ratio": 0.34,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": ACCUMULATION,
        }
        return TrainConfig(**{**settings, **changes})

    return make


class Ours:
    """A run of ours: losses, the examples in their order, what was trained on, LoRA before and after."""

    def __init__(self, config: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: list[float] = []
        self.trained_on: list[Example] = []
        place = TrainPlace(output_dir=str(folder))
        session = prepare(config, place, World(0, 1, torch.device("cpu")), StopSignal())
        tensors = session.student.lora_tensors()
        self.initial = {name: tensor.clone() for name, tensor in tensors.items()}
        self.examples = [session.data[i] for i in range(config.global_batch * config.max_steps)]
        accumulate, append = loop._accumulate, Metrics.append

        def seen(session: Any, step: int, items: list[Any], clock: Any) -> Any:
            self.trained_on += [Example(item.example.prompt, item.completion) for item in items]
            return accumulate(session, step, items, clock)

        def kept(metrics: Metrics, line: Any) -> None:
            self.losses.append(line["loss"])
            append(metrics, line)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_accumulate", seen)
            patch.setattr(Metrics, "append", kept)
            loop.train(session)
        self.final = {name: tensor.clone() for name, tensor in session.student.lora_tensors().items()}


class Theirs:
    """A run of TRL's trainer (`changed`: of a subclass) on the base, LoRA and examples of ours."""

    def __init__(
        self,
        config: TrainConfig,
        ours: Ours,
        folder: Path,
        changed: Callable[[type[Any]], type[Any]] = lambda trainer: trainer,
    ) -> None:
        from trl.experimental.gkd import GKDTrainer

        seen: list[float] = []

        class Watched(changed(GKDTrainer)):  # type: ignore[misc]
            def training_step(self, *args: Any, **options: Any) -> Any:
                loss = super().training_step(*args, **options)
                seen.append(float(loss))
                return loss

        teacher, student = (load_model(config.model_name, dtype=config.mixed_precision) for _ in range(2))
        rivals.fold(student, config)
        wrapped = rivals.with_lora(student, config, ours.initial)
        tokenizer = load_tokenizer(config.model_name)
        trainer = rivals.gkd(config, teacher, wrapped, tokenizer, ours.examples, folder, kind=Watched)
        trainer.train()
        # Each micro-batch's loss is its share of the step's mean already.
        self.losses = [sum(seen[i : i + ACCUMULATION]) for i in range(0, len(seen), ACCUMULATION)]
        self.final = {name: rivals.lora_weight(wrapped, name).detach() for name in ours.initial}


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_lmbda_0_is_unpatched_trl(
    beta: float, config_of: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(lmbda=0.0, beta=beta)
    ours = Ours(config, tmp_path / "ours", monkeypatch)
    theirs = Theirs(config, ours, tmp_path / "theirs")
    assert len(ours.losses) == STEPS
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.losses[-1] < 0.98 * ours.losses[0], "the updates must matter"
    for name, tensor in ours.final.items():
        torch.testing.assert_close(tensor, theirs.final[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_lmbda_0_in_bf16_is_unpatched_trl_to_two_percent(
    config_of: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(lmbda=0.0, mixed_precision="bf16")
    ours = Ours(config, tmp_path / "ours", monkeypatch)
    theirs = Theirs(config, ours, tmp_path / "theirs")
    assert ours.losses == pytest.approx(theirs.losses, rel=0.02)


def fed(ours: Ours, *, tokens_of_rollouts: bool) -> Callable[[type[Any]], type[Any]]:
    """TRL's trainer with our rollouts in the place of its own.

    With `tokens_of_rollouts` a second thing is changed, TRL's denominator: transformers' Trainer counts the
    labels that the data loader gave (`_get_num_items_in_batch`), before GKDTrainer replaces them by the
    rollout, so the loss is summed over one text and divided by the length of another. The patch counts the
    completion tokens of the rollouts that the step is trained on.
    """

    def subclass(trainer: type[Any]) -> type[Any]:
        class Fed(trainer):  # type: ignore[misc, valid-type]
            micro_batches = 0
            counted = 0

            def generate_on_policy_outputs(self, model: Any, inputs: Any, generation_config: Any) -> Any:
                size = len(inputs["prompts"])
                start = self.micro_batches * size
                self.micro_batches += 1
                collator = rivals.IdsCollator(ours.trained_on, self.processing_class.pad_token_id)
                batch = collator([{"row": row} for row in range(start, start + size)])
                return batch["input_ids"], batch["attention_mask"], batch["labels"]

            def _get_num_items_in_batch(self, batches: list[Any], device: Any) -> Any:
                count = super()._get_num_items_in_batch(batches, device)
                rows = sum(len(batch["labels"]) for batch in batches)
                now = ours.trained_on[self.counted : self.counted + rows]
                self.counted += rows
                return torch.tensor(sum(len(one.completion) for one in now)) if tokens_of_rollouts else count

        return Fed

    return subclass


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_lmbda_1_on_the_same_rollouts_is_trl_with_its_denominator_put_right(
    beta: float, config_of: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(lmbda=1.0, beta=beta)
    ours = Ours(config, tmp_path / "ours", monkeypatch)
    theirs = Theirs(config, ours, tmp_path / "theirs", fed(ours, tokens_of_rollouts=True))
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    for name, tensor in ours.final.items():
        torch.testing.assert_close(tensor, theirs.final[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_lmbda_1_unpatched_trl_divides_by_the_datasets_completions(
    config_of: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug 7, as it still is: when this fails TRL has mended it, and the patch above can go."""
    config = config_of(lmbda=1.0, max_steps=1)
    ours = Ours(config, tmp_path / "ours", monkeypatch)
    theirs = Theirs(config, ours, tmp_path / "theirs", fed(ours, tokens_of_rollouts=False))
    written = sum(len(one.completion) for one in ours.trained_on)
    listed = sum(len(one.completion) for one in ours.examples)
    assert written != listed
    assert theirs.losses[0] == pytest.approx(ours.losses[0] * written / listed, rel=1e-5)


def test_padding_and_prompts_count_for_nothing() -> None:
    """Bugs 3 and 19: what is counted is the number of completion tokens, whatever the batch is padded to."""
    pairs = [((1, 2, 3), (4, 5)), ((6,), (7, 8, 9, 10, 11, 12))]
    batch = collate(pairs, 0, torch.device("cpu"))
    assert batch.tokens == 8
    assert batch.ids_BT.numel() == 14
    following = batch.ids_BT.roll(-1, dims=1)[batch.predicts_BT]
    assert following.tolist() == [4, 5, 7, 8, 9, 10, 11, 12]


def test_nothing_empties_the_allocators_cache(
    config_of: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug 17: TRL does at each loss, so that every micro-batch asks the driver for its memory again."""

    def emptied() -> None:
        raise AssertionError("the allocator's cache was emptied")

    monkeypatch.setattr(torch.cuda, "empty_cache", emptied)
    Ours(config_of(lmbda=0.5, max_steps=1), tmp_path, monkeypatch)


def test_rollouts_are_sampled_from_the_trained_function(
    config_of: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Bug 20 (trl #3466): LoRA rounded into 4-bit codes, so that another model wrote the rollouts."""
    place = TrainPlace(output_dir=str(tmp_path))
    student = prepare(config_of(), place, World(0, 1, torch.device("cpu")), StopSignal()).student
    with torch.no_grad():
        for parameter in student.lora_parameters():
            parameter.normal_(std=0.05)
    ids = torch.arange(20).view(1, 20)
    trained, rollout, merged = (student.hidden(ids, mode=mode) for mode in ("student", "rollout", "merged"))
    torch.testing.assert_close(rollout, trained.detach(), rtol=1e-4, atol=1e-4)
    assert (merged - trained).abs().max() > 100 * (rollout - trained).abs().max()
