"""The stage: what it refuses before anything loads, what stands in a folder when, and what it reads back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.__main__ import main
from trainer.config import ExportConfig, ExportPlace
from trainer.durable import read_object, write_json
from trainer.export import checkpoint
from trainer.export.shipped import Differs
from trainer.export.stage import export
from trainer.flags import UsageError
from trainer.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPORT_CARD, EXPORT_MANIFEST

ROOT = Path(__file__).parents[3]


def _export(run: Any, kind: Any, **fields: Any) -> None:
    export(ExportConfig(**{"lora_path": str(run.root), "format": kind, **fields}), ExportPlace(device="cpu"))


def test_the_adapter_alone_is_its_files_byte_for_byte(make_run: Any, export_run: Callable[..., Path]) -> None:
    run, _ = make_run()
    folder = export_run(run, "peft")
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        assert (folder / name).read_bytes() == (run.adapter / name).read_bytes()


def test_manifest_and_card(make_run: Any, export_run: Callable[..., Path]) -> None:
    run, student = make_run(order="inside")
    write_json(
        run.root / "eval" / "h" / "merged.json",
        {
            "measure": "m",
            "adapter_sha256": hashlib.sha256(
                (run.adapter / ADAPTER_CONFIG).read_bytes() + (run.adapter / ADAPTER_WEIGHTS).read_bytes()
            ).hexdigest(),
            "protocol": {"text": "pydoc_topics"},
            "result": {"text": [100, 2.0, 0.1, 0.05, 0.01]},
        },
    )
    key = hashlib.sha256(b"m\0").hexdigest()[:16]
    baseline = run.root.parents[1] / ".baselines" / key / "ptq.json"
    write_json(baseline, {"result": {"text": [100, 2.2, 0.1, 0.2, 0.01]}})
    folder = export_run(run, "bf16")
    files = read_object(folder / EXPORT_MANIFEST)["files"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files.keys() == there - {EXPORT_MANIFEST}
    for name, about in files.items():
        assert about["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert (folder / name).stat().st_mode & 0o777 == 0o644
    _, head, body = (folder / EXPORT_CARD).read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    for part in ("Q(W + s·B·A)x", student.codes_sha256, "int4 g32", "75.0 % recovered", "from_pretrained("):
        assert part in body
    # The code it shows must at least be code.
    compile(body.split("```python\n")[1].split("```")[0], "card", "exec")


def test_a_whole_export_is_not_made_again_and_a_damaged_one_is(
    make_run: Any, export_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = make_run()
    weights = export_run(run, "peft") / ADAPTER_WEIGHTS
    before = weights.stat().st_ino
    export_run(run, "peft")
    assert "done already" in capsys.readouterr().out
    assert weights.stat().st_ino == before
    weights.write_bytes(b"cut")
    export_run(run, "peft")
    assert weights.read_bytes() == (run.adapter / ADAPTER_WEIGHTS).read_bytes()


def test_what_is_written_otherwise_never_appears(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_run(order="inside")
    real = checkpoint.write_bf16

    def bent(shipped: Any, folder: Path) -> None:
        weight = shipped.weight
        monkeypatch.setattr(shipped, "weight", lambda name: weight(name) * 1.01)
        real(shipped, folder)
        monkeypatch.setattr(shipped, "weight", weight)

    monkeypatch.setattr(checkpoint, "BF16", checkpoint.BF16._replace(write=bent))
    with pytest.raises(Differs, match="is not the trained weight"):
        _export(run, "bf16")
    assert list((run.root / "export").iterdir()) == []


def test_another_base_or_a_changed_adapter_is_refused(make_run: Any) -> None:
    run, _ = make_run()
    about = read_object(run.run)
    write_json(run.run, {**about, "codes_sha256": "0" * 64})
    with pytest.raises(UsageError, match=r"was trained on another Q\(W\)"):
        _export(run, "bf16")
    write_json(run.run, {**about, "adapter_sha256": "0" * 64})
    with pytest.raises(UsageError, match="changed since the run ended"):
        _export(run, "peft")


def test_a_folder_of_others_is_never_replaced(make_run: Any, tmp_path: Path) -> None:
    run, _ = make_run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="must be empty or an export"):
        export(
            ExportConfig(lora_path=str(run.root), format="peft"),
            ExportPlace(output_dir=str(tmp_path / "mine")),
        )


def test_a_run_that_is_not_done_needs_its_checkpoint_named(make_run: Any) -> None:
    run, _ = make_run()
    os.rename(run.adapter, run.checkpoint(40))
    with pytest.raises(UsageError, match=r"the run is not done.*--checkpoint 40"):
        _export(run, "peft")
    _export(run, "peft", checkpoint=40)
    assert (run.export("peft", "checkpoint-40") / EXPORT_MANIFEST).is_file()


def test_refusals_exit_64_and_load_no_torch(make_run: Any) -> None:
    run, _ = make_run()
    code = (
        "import sys; from trainer.__main__ import main\n"
        "code = main(['export', '--lora_path', sys.argv[1], '--format', 'gguf'])\n"
        "assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.root)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 64, done.stderr
    assert "use --format gguf-lora" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "lora_path: nothing is exported"),
        (["--lora-path", "nowhere"], "no such folder"),
        (["--lora-path", "x", "--format", "onnx"], "--format: must be 'peft', 'bf16'"),
    ],
)
def test_what_is_missing_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *words]) == 64
    assert told in capsys.readouterr().err


def test_without_a_format_it_says_which_are_possible(
    make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = make_run()
    assert main(["export", "--lora-path", str(run.root)]) == 64
    assert "this run can be peft, bf16, gguf-lora" in capsys.readouterr().err


def test_json_is_what_the_manifest_is(make_run: Any, export_run: Callable[..., Path]) -> None:
    run, _ = make_run()
    about = json.loads((export_run(run, "peft") / EXPORT_MANIFEST).read_text())["about"]
    assert about["base"]["lora_order"] == "outside"
    assert about["format"] == "peft"
