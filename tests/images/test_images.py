"""The built images: those of IMAGE_DIR where `make images IMAGE_DIR=DIR` wrote them, else built here."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.images.layout import Image, read_image, unpack

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000
SITE = re.compile(r"opt/venv/lib/python3\.\d+/site-packages/(?P<path>.+)")
OURS = ("orchestrator/", "trainer/", "orch-")


@pytest.fixture(scope="module", params=["controller", "trainer"])
def image(request: pytest.FixtureRequest, built_images: Path) -> Image:
    return read_image(built_images / request.param)


@pytest.fixture(scope="module")
def controller(built_images: Path) -> Image:
    return read_image(built_images / "controller")


@pytest.fixture(scope="module")
def trainer(built_images: Path) -> Image:
    return read_image(built_images / "trainer")


def packages(image: Image) -> set[str]:
    """Top-level names in site-packages."""
    found = (SITE.fullmatch(path) for layer in image.layers for path in layer.files)
    return {match["path"].split("/")[0] for match in found if match}


def test_it_runs_as_a_numbered_user(image: Image) -> None:
    assert image.config["config"]["User"] == "10001:10001"


def test_nothing_of_the_machine_that_built_it_is_kept(image: Image) -> None:
    env = dict(one.split("=", 1) for one in image.config["config"]["Env"])

    assert not [name for name in env if re.search(r"PROXY|CERT|INDEX|_URL", name, re.IGNORECASE)]
    paths = [path for layer in image.layers for path in layer.files]
    assert not [path for path in paths if path.startswith(("run/", "tmp/"))]
    assert not [path for path in paths if path.endswith(("/pip.conf", "/uv.toml", "/.netrc"))]
    # Arguments of a build are part of its history: only where a secret is mounted may be told.
    history = " ".join(one.get("created_by", "") for one in image.config["history"])
    assert set(re.findall(r"SSL_CERT_FILE=(\S+)", history)) <= {"/run/secrets/ca.pem"}
    assert not re.search(r"(HTTPS?_PROXY|INDEX_URL|INDEX)=", history, re.IGNORECASE)


def test_it_says_what_it_is(image: Image) -> None:
    labels = image.config["config"]["Labels"]

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", labels["org.opencontainers.image.revision"])


def test_a_change_of_code_is_a_layer_of_megabytes(image: Image) -> None:
    def is_ours(path: str) -> bool:
        match = SITE.fullmatch(path)
        return path == "opt/venv/bin/orch" or (match is not None and match["path"].startswith(OURS))

    holding = [any(map(is_ours, layer.files)) for layer in image.layers]
    first = holding.index(True)

    assert all(holding[first:])
    for layer in image.layers[first:]:
        assert not [path for path in layer.files if not is_ours(path)]
        assert layer.size < 5 * MB


def test_our_code_is_compiled_since_a_read_only_root_keeps_no_bytecode(image: Image) -> None:
    files = set(image.layers[-1].files)
    sources = {path for path in files if path.endswith(".py")}

    assert sources
    for source in sources:
        folder, _, name = source.rpartition("/")
        assert any(
            path.startswith(f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-") for path in files
        ), f"{source} is not compiled"


def test_the_controller_is_small_and_has_no_torch(controller: Image) -> None:
    assert controller.size < 200 * MB
    assert {"orchestrator", "trainer", "kubernetes", "pydantic"} <= packages(controller)
    assert not packages(controller) & {"torch", "numpy", "transformers", "nvidia", "aiohttp"}


def test_the_trainer_has_what_its_stages_import_and_its_task_files(trainer: Image) -> None:
    assert {"torch", "transformers", "peft", "datasets", "bitsandbytes", "lm_eval"} <= packages(trainer)
    assert "kubernetes" not in packages(trainer)
    paths = {match["path"] for path in trainer.layers[-1].files if (match := SITE.fullmatch(path))}
    assert {"trainer/tasks/everyday.yaml", "trainer/tasks/everyday.jsonl"} <= paths


def test_torch_lies_in_a_layer_that_nothing_else_changes(trainer: Image) -> None:
    holding = [
        {match["path"].split("/")[0] for path in layer.files if (match := SITE.fullmatch(path))}
        for layer in trainer.layers
    ]
    (torch,) = (names for names in holding if "torch" in names)

    plain = {name for name in torch if not name.endswith(".dist-info")}
    assert not plain & {"transformers", "orchestrator", "trainer", "kubernetes"}
    assert {"nvidia", "triton"} <= plain


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot and a network namespace need root")
@pytest.mark.parametrize("uid", [10001, 54321])
def test_the_controllers_program_answers_as_any_user_without_a_network(
    controller: Image, tmp_path_factory: pytest.TempPathFactory, uid: int
) -> None:
    root = tmp_path_factory.mktemp("root")
    root.chmod(0o755)  # pytest gives its folders to root alone
    unpack(controller, root)
    env = dict(one.split("=", 1) for one in controller.config["config"]["Env"])
    modules = "import kubernetes.client; from kubernetes.client import V1Job; import orchestrator.cli"

    for command in ([*controller.config["config"]["Entrypoint"], "--help"], ["python", "-c", modules]):
        done = subprocess.run(
            ["unshare", "--net", "chroot", f"--userspec={uid}:{uid}", str(root), "/usr/bin/env", "-i"]
            + [f"{name}={value}" for name, value in env.items()]
            + command,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
