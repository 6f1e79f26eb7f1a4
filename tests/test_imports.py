"""Imports go one way, each outside thing has one door, and the CLI answers before anything heavy loads."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = {"config", "durable", "flags", "layout", "results", "settings"}
"""The trainer's torch-free half: what the orchestrator may know of it."""

LAYERS = [
    {"cli"},
    {"cli_control", "cli_install", "cli_oncall"},
    {"cli_say"},
    {"cli_options"},
    {"commands"},
    {"live"},
    {"screen"},
    {"client"},
    {"controller", "results"},
    {"render", "cluster"},
    {"profile"},
    {"sweep"},
    {"errors"},
]
"""Rooms of the orchestrator: each imports only from itself and from the layers below it."""

DOORS = {
    "kubernetes": ("orchestrator/cluster/kube/", "orchestrator/render/schema.py"),
    # trainer/data.py knows only the error that a model's own chat template raises.
    "jinja2": ("orchestrator/render/", "trainer/data.py"),
    "typer": ("orchestrator/cli",),
    "bitsandbytes": ("trainer/quant.py", "trainer/bnb"),
    "peft": ("trainer/adapter.py",),
    "gguf": ("trainer/export/",),
    "matplotlib": ("trainer/report/plots.py",),
    "scipy": ("trainer/report/contrast.py",),
    "vllm": ("trainer/vllm_rollouts.py",),
    "lm_eval": ("trainer/evaluate.py", "trainer/harness.py"),
}
"""Outside things and the only files, or folders, that import them."""
WITHOUT_TORCH = {"folder", "gc", "volume"}
"""What else of the trainer answers before torch is there, from the contract and one another."""
TORCH_FREE = [f"trainer/{name}.py" for name in sorted(CONTRACT | WITHOUT_TORCH)] + [
    "trainer/__init__.py",
    "trainer/__main__.py",
]
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "lm_eval", "numpy"}

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("orchestrator", "trainer")
    for path in (ROOT / package).rglob("*.py")
)


def _imports(file: str, *, top_only: bool = False) -> Iterator[str]:
    """Modules a file imports, in full: `from a import b` is `a.b` too; those for types alone are left out."""
    for node in _statements(ast.parse((ROOT / file).read_text(encoding="utf-8")), top_only):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(tree: ast.AST, top_only: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield node
        yield from _statements(node, top_only)


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _room_of_file(file: str) -> str:
    return Path(file).parts[1].removesuffix(".py")


def _allowed(room: str, other: str) -> bool:
    level = next(i for i, rooms in enumerate(LAYERS) if room in rooms)
    below = next(i for i, rooms in enumerate(LAYERS) if other in rooms)
    return room == other or below > level


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("orchestrator/")])
def test_imports_go_one_way(file: str) -> None:
    room = _room_of_file(file)
    if room == "__init__":
        assert list(_imports(file)) == []
        return
    back = [
        module
        for module in _imports(file)
        if module.startswith("orchestrator.")
        and not module.endswith("__")  # the version
        and not _allowed(room, _room(module))
    ]
    assert back == []


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("orchestrator/")])
def test_the_orchestrator_knows_only_the_trainers_contract(file: str) -> None:
    beyond = [
        module
        for module in _imports(file)
        if module.split(".")[0] == "trainer" and _room(module) not in CONTRACT
    ]
    assert beyond == []
    assert [module for module in _imports(file) if module.split(".")[0] in HEAVY] == []


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("trainer/")])
def test_the_trainer_never_imports_the_orchestrator(file: str) -> None:
    assert [module for module in _imports(file) if module.split(".")[0] == "orchestrator"] == []


@pytest.mark.parametrize("file", TORCH_FREE)
def test_the_contract_is_torch_free(file: str) -> None:
    modules = list(_imports(file, top_only=file.endswith("__main__.py")))
    assert [module for module in modules if module.split(".")[0] in HEAVY] == []
    ours = {_room(module) for module in modules if module.startswith("trainer.")}
    known = CONTRACT if Path(file).stem in CONTRACT else CONTRACT | WITHOUT_TORCH
    assert file.endswith("__main__.py") or ours <= known


@pytest.mark.parametrize("package", sorted(DOORS))
def test_each_outside_thing_has_one_door(package: str) -> None:
    strangers = [
        file
        for file in FILES
        if any(module.split(".")[0] == package for module in _imports(file))
        and not file.startswith(DOORS[package])
    ]
    assert strangers == []


@pytest.mark.parametrize("file", FILES)
def test_no_relative_imports(file: str) -> None:
    assert [module for module in _imports(file) if module.startswith(".")] == []


LOADED = "import json, sys; from orchestrator.cli import main; code = main({argv!r}); " + (
    "print(json.dumps([code, sorted({{name.split('.')[0] for name in sys.modules}})]))"
)


@pytest.mark.parametrize(
    ("argv", "unwanted"),
    [
        (["--help"], {"kubernetes", "jinja2", "pydantic", "yaml"}),
        (["submit", "--help"], {"kubernetes", "jinja2", "yaml"}),
        (["plan", str(ROOT / "sweeps" / "lmbda0.yaml")], {"kubernetes"}),
    ],
    ids=["help", "a command's help", "plan"],
)
def test_commands_load_nothing_heavy(
    argv: list[str], unwanted: set[str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(argv=["--dump", str(tmp_path / "dump"), *argv])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Told, not asserted: it depends on the machine.
    record_property("cpu_s", after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert (HEAVY | unwanted) & set(loaded) == set()
