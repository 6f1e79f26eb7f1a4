"""The loop: its update against plain PyTorch, exact resume, the denominator, and every way it ends."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer import train as loop
from trainer.attempt import Diverged, Preempted, StopSignal
from trainer.checkpoint import HASHES, TENSORS
from trainer.config import TrainConfig, TrainPlace
from trainer.distributed import World
from trainer.durable import read_json
from trainer.fence import Fence, FenceLost
from trainer.flags import UsageError
from trainer.folder import check_folder, finished
from trainer.jsd import jsd_and_grad_
from trainer.layout import ADAPTER_WEIGHTS, RunFolder
from trainer.loss_kernel import CheckedKernel
from trainer.session import Session
from trainer.settings import digest
from trainer.setup import prepare

WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory, make_tiny_folder) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config_of(tiny_folder) -> Callable[..., TrainConfig]:
    def make(**changes) -> TrainConfig:
        settings = {
            "model_name": str(tiny_folder),
            "dataset_name": str(tiny_folder / "rows.jsonl"),
            "mixed_precision": "fp32",
            "group_size": 32,
            "lora_r": 4,
            "max_length": 64,
            "max_new_tokens": 6,
            "min_new_tokens": 0,
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "warmup_ratio": 0.25,
        }
        return TrainConfig(**{**settings, **changes})

    return make


def session_of(config: TrainConfig, folder: Path, **place) -> Session:
    return prepare(config, TrainPlace(output_dir=str(folder), **place), WORLD, StopSignal())


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what a clock wrote."""
    timed = ("seconds", "tokens_per_s", "time")
    found = [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


def weights(folder: Path) -> bytes:
    return (RunFolder(folder).adapter / ADAPTER_WEIGHTS).read_bytes()


def test_two_steps_equal_plain_pytorch_on_the_folded_model(config_of, tiny_folder, tmp_path):
    """Bugs 4, 6, 7: an independent loop with PEFT, full logits, one mean over all completion tokens."""
    import torch.nn.functional as F
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    config = config_of(lmbda=0.0, beta=0.0, max_steps=2, warmup_ratio=0.0, max_grad_norm=0.05)
    session = session_of(config, tmp_path / "ours")
    initial = {name: tensor.clone() for name, tensor in session.student.lora_tensors().items()}
    bases = {name: linear.base.clone() for name, linear in session.student.linears.items()}
    examples = [session.data[i] for i in range(8)]
    loop.train(session)

    teacher = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    folded = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for name, base in bases.items():
        folded.get_submodule(name).weight.data.copy_(base)
    targets = sorted({name.rsplit(".", 1)[1] for name in bases})
    model = get_peft_model(folded, LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0))
    assert isinstance(model, PeftModel)
    parameters = []
    for name in bases:
        for part in ("lora_A", "lora_B"):
            parameter = model.get_submodule(f"base_model.model.{name}").get_submodule(part)["default"].weight
            parameter.data.copy_(initial[f"{name}.{part}"])
            parameters.append(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 2)
    for step in range(2):
        losses, count = [], 0
        for example in examples[4 * step : 4 * step + 4]:
            ids = torch.tensor([[*example.prompt, *example.completion]])
            rows = slice(len(example.prompt) - 1, ids.shape[1] - 1)
            with torch.no_grad():
                target = F.log_softmax(teacher(ids).logits[0, rows].double(), -1)
            mine = F.log_softmax(model(ids).logits[0, rows].double(), -1)
            losses.append((target.exp() * (target - mine)).sum())
            count += len(example.completion)
        loss = torch.stack(losses).sum() / count
        assert lines(tmp_path / "ours")[step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        assert lines(tmp_path / "ours")[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    ours = load_file(RunFolder(tmp_path / "ours").adapter / ADAPTER_WEIGHTS)
    for name, tensor in ours.items():
        module, part = name.removeprefix("base_model.model.").rsplit(".", 2)[:2]
        theirs = model.get_submodule(f"base_model.model.{module}").get_submodule(part)["default"].weight
        torch.testing.assert_close(tensor, theirs.detach(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dies_in_step", [1, 3])
def test_a_run_that_died_goes_on_to_the_same_bytes(lmbda, dies_in_step, config_of, tmp_path, monkeypatch):
    """Bug 21: metrics and adapter equal an undisturbed run's, whatever the step and λ."""
    config = config_of(lmbda=lmbda)
    loop.train(session_of(config, tmp_path / "whole"))

    real = loop._accumulate

    def dying(session, step, items, clock):
        if step == dies_in_step:
            raise KeyboardInterrupt
        return real(session, step, items, clock)

    monkeypatch.setattr(loop, "_accumulate", dying)
    with pytest.raises(KeyboardInterrupt):
        loop.train(session_of(config, tmp_path / "cut"))
    monkeypatch.setattr(loop, "_accumulate", real)
    record = loop.train(session_of(config, tmp_path / "cut"))
    assert record.train.resumed_from == (2 if dies_in_step == 3 else None)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_sigterm_checkpoints_the_last_whole_step(config_of, tmp_path, monkeypatch):
    config = config_of(lmbda=1.0, save_steps=100)
    loop.train(session_of(config, tmp_path / "whole"))
    session = session_of(config, tmp_path / "cut")
    monkeypatch.setattr(loop, "mark_ready", lambda: session.stop._on_signal(15, None))
    with pytest.raises(Preempted, match="step 1 of 4"):
        loop.train(session)
    assert [path.name for path in session.folder.checkpoints()] == ["checkpoint-1"]
    monkeypatch.undo()
    assert loop.train(session_of(config, tmp_path / "cut")).train.resumed_from == 1
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(config_of, tmp_path, caplog):
    config = config_of(lmbda=0.0, save_steps=1)
    loop.train(session_of(config, tmp_path))
    folder = RunFolder(tmp_path)
    before = weights(tmp_path)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]
    broken = folder.checkpoint(4) / TENSORS
    broken.write_bytes(broken.read_bytes()[:-7])
    (folder.checkpoint(3) / HASHES).unlink()
    record = loop.train(session_of(config, tmp_path))
    assert record.train.resumed_from == 2
    assert "checkpoint-4: cannot be resumed from, got a changed optimizer.safetensors" in caplog.text
    assert weights(tmp_path) == before


@pytest.mark.parametrize("lmbda", [0.0, 0.5])
def test_micro_batches_of_like_length_are_the_same_step_with_less_padding(
    lmbda, config_of, tmp_path, monkeypatch
):
    padded: dict[bool, int] = {}
    real = loop.collate
    for on in (True, False):
        padded[on] = 0

        def counting(pairs, *args, on=on):
            batch = real(pairs, *args)
            padded[on] += batch.ids_BT.numel() - sum(len(prompt) + len(ids) for prompt, ids in pairs)
            return batch

        monkeypatch.setattr(loop, "collate", counting)
        loop.train(session_of(config_of(lmbda=lmbda), tmp_path / str(on), length_buckets=on))
    assert padded[True] < padded[False]
    for sorted_, plain in zip(lines(tmp_path / "True"), lines(tmp_path / "False"), strict=True):
        assert sorted_["tokens"] == plain["tokens"]
        for name in ("loss", "grad_norm"):
            assert sorted_[name] == pytest.approx(plain[name], rel=1e-4)


def test_splitting_the_micro_batch_is_the_same_step(config_of, tmp_path):
    config = config_of(lmbda=0.5)
    loop.train(session_of(config, tmp_path / "whole"))
    loop.train(session_of(config, tmp_path / "split", micro_batch_split=2))
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "split"), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
    assert read_json(RunFolder(tmp_path / "split").run)["overrides"] == {"micro_batch_split": 2}


def test_accumulation_only_regroups_the_same_global_batch(config_of, tmp_path):
    """Bug 6: two micro-batches of two are one of four, in loss and in gradient norm."""
    for name, sizes in (("a", (4, 1)), ("b", (1, 4))):
        config = config_of(
            lmbda=0.0, per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1]
        )
        loop.train(session_of(config, tmp_path / name))
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_the_denominator_counts_rollouts_not_the_datasets_completions(config_of, tmp_path):
    """Bug 7."""
    config = config_of(lmbda=1.0, max_new_tokens=5, min_new_tokens=5)
    loop.train(session_of(config, tmp_path))
    for line in lines(tmp_path):
        assert line["tokens"] == line["rollout_tokens"]
        # Five tokens each, and one more where the fifth allows the end of turn: never the rows' own length.
        assert line["tokens"] == 4 * 5
        assert line["on_policy"] == 4


def test_lmbda_half_mixes_sequences(config_of, tmp_path):
    loop.train(session_of(config_of(lmbda=0.5, max_steps=6), tmp_path))
    shares = [line["on_policy"] for line in lines(tmp_path)]
    assert 0 < sum(shares) < 4 * 6


def test_seq_kd_trains_on_the_teachers_completions_and_keeps_them(config_of, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_DUMP", str(tmp_path))
    config = config_of(lmbda=0.0, seq_kd=True)
    loop.train(session_of(config, tmp_path / "s" / "a"))
    kept = list((tmp_path / ".teacher").rglob("*.json"))
    assert len(kept) == 16
    (folder,) = (tmp_path / ".teacher").iterdir()
    os.utime(folder, (0, 0))
    loop.train(session_of(config_of(lmbda=0.0, seq_kd=True, beta=0.5), tmp_path / "s" / "b"))
    assert folder.stat().st_mtime > 0, "gc must see that a run which only reads has used it"
    assert sorted((tmp_path / ".teacher").rglob("*.json")) == sorted(kept)
    assert [line["tokens"] for line in lines(tmp_path / "s" / "a")] == [
        line["tokens"] for line in lines(tmp_path / "s" / "b")
    ]


def test_nan_ends_with_the_steps_samples(config_of, tmp_path):
    session = session_of(config_of(lmbda=0.0), tmp_path)
    with torch.no_grad():
        session.student.lora_parameters()[1].fill_(math.nan)
    longest = sorted(range(4), key=lambda n: -len(session.data[n].prompt) - len(session.data[n].completion))
    first, second = sorted(longest[:2])
    with pytest.raises(Diverged, match=rf"step 1: loss nan in samples {first}, {second};"):
        loop.train(session)


def test_whoever_lost_the_folder_ends_without_writing(config_of, tmp_path, monkeypatch):
    session = session_of(config_of(lmbda=0.0), tmp_path)
    monkeypatch.setenv("ORCH_ATTEMPT", "another-pod")
    monkeypatch.setattr(loop, "mark_ready", Fence(session.folder).take)
    with pytest.raises(FenceLost, match="another attempt, got another-pod"):
        loop.train(session)
    assert session.folder.checkpoints() == []
    assert not session.folder.done.exists()
    assert len(lines(tmp_path)) == 1, "not even a line of metrics"


def test_an_end_while_publishing_costs_no_step(config_of, tmp_path, monkeypatch):
    config = config_of(lmbda=1.0, save_steps=100)
    loop.train(session_of(config, tmp_path / "whole"))

    def interrupted(session):
        raise Preempted("now")

    monkeypatch.setattr("trainer.publish.sample_completions", interrupted)
    with pytest.raises(Preempted):
        loop.train(session_of(config, tmp_path / "cut"))
    monkeypatch.undo()
    record = loop.train(session_of(config, tmp_path / "cut"))
    assert record.train.resumed_from == 4
    assert record.train.loss == pytest.approx(lines(tmp_path / "cut")[-1]["loss"])
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_damaged_checkpoints_of_higher_steps_do_not_push_out_the_new_one(config_of, tmp_path):
    config = config_of(lmbda=0.0, save_steps=1, save_total_limit=1)
    loop.train(session_of(config, tmp_path))
    (RunFolder(tmp_path).checkpoint(4) / TENSORS).write_bytes(b"")
    session = session_of(config, tmp_path)
    session.stop.defer()
    seen: list[list[str]] = []
    real = session.metrics.append

    def watching(metrics):
        seen.append([path.name for path in session.folder.checkpoints()])
        real(metrics)

    session.metrics.append = watching
    loop.train(session)
    assert seen == [["checkpoint-4"], ["checkpoint-1"], ["checkpoint-2"], ["checkpoint-3"]]


def test_a_checkpoint_of_another_base_is_refused(config_of, tmp_path):
    config = config_of(lmbda=0.0)
    loop.train(session_of(config, tmp_path))
    session = session_of(config, tmp_path)
    session.student.codes_sha256 = "0" * 64
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"was trained on another base, got .* 000000000000 now"):
        loop.train(session)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "quant", [{"quant_type": "bnb_nf4"}, {"quantize_lm_head": True}, {"gradient_checkpointing": True}]
)
def test_other_students_resume_to_the_same_bytes_too(quant, config_of, tmp_path, monkeypatch):
    config = config_of(lmbda=0.5, **quant)
    loop.train(session_of(config, tmp_path / "whole"))
    session = session_of(config, tmp_path / "cut")
    monkeypatch.setattr(loop, "mark_ready", lambda: session.stop._on_signal(15, None))
    with pytest.raises(Preempted):
        loop.train(session)
    monkeypatch.undo()
    loop.train(session_of(config, tmp_path / "cut"))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_done_run_is_recognised_and_another_config_is_refused(config_of, tmp_path):
    config, place = config_of(lmbda=0.0), TrainPlace(output_dir=str(tmp_path), run_id="r-1")
    assert finished(config, place) is None
    record = loop.train(session_of(config, tmp_path, run_id="r-1"))
    assert finished(config, place) == record
    assert check_folder(config, place) is None
    other = config_of(lmbda=1.0)
    assert finished(other, place) is None
    assert f"got digest {digest(config)[:8]}" in check_folder(other, place)
    (RunFolder(tmp_path).adapter / ADAPTER_WEIGHTS).unlink()
    assert finished(config, place) is None, "a done mark without its adapter is no result"


def test_a_run_leaves_its_story_behind(config_of, tmp_path):
    config = config_of(lmbda=1.0)
    record = loop.train(session_of(config, tmp_path, tags=["sweep"], run_id="r-1"))
    about = read_json(RunFolder(tmp_path).run)
    assert about["status"] == "done"
    assert about["config"] == config.model_dump(mode="json")
    assert about["codes_sha256"] == record.train.codes_sha256
    assert about["tags"] == ["sweep"]
    assert [set(sample) for sample in read_json(RunFolder(tmp_path).samples)] == [
        {"prompt", "teacher", "ptq", "adapter"}
    ] * 5
    assert record.train.step == 4
    assert record.train.rollout_tokens == sum(line["rollout_tokens"] for line in lines(tmp_path))


@pytest.mark.parametrize(("steps", "ratio"), [(10, 0.2), (8, 0.0), (7, 0.5), (5, 1.0)])
def test_schedule_is_transformers_linear(steps, ratio):
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, math.ceil(steps * ratio), steps)
    config = TrainConfig(max_steps=steps, warmup_ratio=ratio)
    for step in range(steps):
        assert loop.schedule(step, config) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_the_loss_falls(config_of, tmp_path):
    loop.train(session_of(config_of(lmbda=0.0, max_steps=25, learning_rate=1e-2), tmp_path))
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_loss_kernel_that_disagrees_changes_no_byte_and_is_told(config_of, tmp_path):
    config = config_of(lmbda=0.0)
    loop.train(session_of(config, tmp_path / "plain"))
    session = session_of(config, tmp_path / "wrong")
    session.kernel = CheckedKernel(lambda *logits: 2 * jsd_and_grad_(*logits))
    loop.train(session)
    assert weights(tmp_path / "wrong") == weights(tmp_path / "plain")
    assert lines(tmp_path / "wrong") == lines(tmp_path / "plain")
    assert "fast one's loss must be" in read_json(RunFolder(tmp_path / "wrong").run)["loss_kernel"]
    assert "loss_kernel" not in read_json(RunFolder(tmp_path / "plain").run)
