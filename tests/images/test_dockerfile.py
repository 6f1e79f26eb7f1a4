"""What both images are made of, as the Dockerfile says it; test_images.py looks at what came out."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tests.images.dockerfile import GLOBAL, lineage, read_stages

ROOT = Path(__file__).resolve().parents[2]
STAGES = read_stages(ROOT / "images/Dockerfile")
IMAGES = ("controller", "trainer")
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "LABEL", "RUN", "USER", "WORKDIR"}
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def instructions(image: str) -> list[tuple[str, str]]:
    return [pair for stage in lineage(STAGES, image) for pair in stage.instructions]


def assignments(image: str, word: str) -> dict[str, str]:
    """Every KEY=VALUE of an image's ENV, LABEL or ARG instructions; an ARG without a value gives ''."""
    words = [part for given, rest in instructions(image) if given == word for part in shlex.split(rest)]
    return {key: value for key, _, value in (part.partition("=") for part in words)}


def test_only_plain_instructions_are_used() -> None:
    # ADD fetches from anywhere and unpacks; a `# syntax=` line fetches a frontend before anything is built.
    used = {word for stage in STAGES.values() for word, _ in stage.instructions}

    assert used <= KNOWN
    assert "syntax=" not in (ROOT / "images/Dockerfile").read_text(encoding="utf-8")


def test_every_stage_starts_from_the_base_image_or_another_stage() -> None:
    assert STAGES[GLOBAL].all("ARG") == ["BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm"]
    assert {stage.base for name, stage in STAGES.items() if name} <= {"${BASE_IMAGE}", *STAGES}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_numbered_user_without_a_home(image: str) -> None:
    # Kubernetes refuses a name under runAsNonRoot: it cannot tell whether it is root's.
    users = [rest for word, rest in instructions(image) if word == "USER"]

    assert users == ["10001:10001"]
    assert assignments(image, "ENV")["HOME"] == "/tmp"
    words = [word for word, _ in instructions(image)]
    assert "RUN" not in words[words.index("USER") :]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_labelled(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = assignments(image, "LABEL")
    prefix = "org.opencontainers.image."

    assert set(labels) == {
        prefix + name for name in ("title", "description", "version", "revision", "source", "licenses")
    }
    assert labels[prefix + "title"] == f"orch {image}"
    assert labels[prefix + "licenses"] == project["license"]
    given = {labels[prefix + name] for name in ("version", "revision", "source")}
    assert given == {"${VERSION}", "${REVISION}", "${SOURCE}"}


@pytest.mark.parametrize("image", IMAGES)
def test_code_is_the_last_layer_and_nothing_that_changes_with_a_commit_stands_before_it(image: str) -> None:
    words = [word for word, _ in instructions(image)]
    code = next(
        number
        for number, (word, rest) in enumerate(instructions(image))
        if "--from=code" in rest and word == "COPY"
    )

    assert "RUN" in words[:code]
    assert "RUN" not in words[code:]
    before = [rest.split("=")[0] for word, rest in instructions(image)[:code] if word == "ARG"]
    assert before == ["SSL_CERT_FILE"]


def test_secrets_are_mounted_and_never_copied_or_kept() -> None:
    for stage in STAGES.values():
        assert not {
            name for rest in stage.all("ENV") for name in re.findall(r"(\w*(?:CERT|PROXY|INDEX)\w*)=", rest)
        }
        for rest in stage.all("RUN"):
            if "install" in rest and "--offline" not in rest:
                assert "--mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem" in rest
                assert "SSL_CERT_FILE" in stage.all("ARG")


def test_everything_installed_is_pinned_by_hash() -> None:
    installs = [
        rest
        for rest in (rest for stage in STAGES.values() for rest in stage.all("RUN"))
        if "pip install" in rest and "--offline" not in rest
    ]
    script = (ROOT / "images/install.sh").read_text(encoding="utf-8")

    assert len(installs) == 1
    assert "--require-hashes" in installs[0]
    assert "--require-hashes" in script
    assert "--frozen" in (ROOT / "images/export.sh").read_text(encoding="utf-8")
    pins = (ROOT / "images/tools.txt").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    for pin in pins:
        assert pin.startswith("#") or re.match(r"[\w-]+==[\w.]+ .*--hash=sha256:", pin), pin


def test_vllm_is_in_its_own_variant_alone_and_pinned_with_what_the_trainer_needs() -> None:
    pins = (ROOT / "images/vllm.txt").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    for pin in pins:
        assert pin.startswith("#") or re.match(r"[\w.-]+==[\w.+]+ .*--hash=sha256:", pin), pin
    found = dict(pin.split()[0].split("==") for pin in pins if not pin.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for wanted in project["dependencies"] + extras["trainer"] + extras["eval"]:
        name, least = wanted.split(">=")
        if name != "kubernetes":
            version = [int(part) for part in re.findall(r"\d+", found[name])]
            assert version >= [int(part) for part in least.split(".")], wanted
    assert "vllm" in found
    assert "kubernetes" not in found
    assert not re.search(r"^name = .vllm", (ROOT / "uv.lock").read_text(encoding="utf-8"), re.MULTILINE)


def copied_from_the_context() -> set[str]:
    return {
        source
        for stage in STAGES.values()
        for rest in stage.all("COPY")
        if not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }


def test_the_context_is_what_the_dockerfile_copies_and_nothing_else() -> None:
    rules = [line for line in IGNORED if line and not line.startswith("#")]

    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied_from_the_context()
    assert rules[-2:] == ["**/__pycache__", "**/*.pyc"]


@pytest.mark.parametrize(
    "path",
    [
        "dump",
        ".venv",
        ".git",
        "tests",
        "docs",
        "sweeps",
        "bench",
        ".ci",
        "dist",
        "orch.toml",
        ".env",
        "Makefile",
    ],
)
def test_what_is_no_part_of_an_image_stays_out_of_the_context(path: str) -> None:
    allowed = [rule[1:] for rule in IGNORED if rule.startswith("!")]

    assert not any(fnmatch.fnmatch(path, rule) or rule.startswith(f"{path}/") for rule in allowed)


@pytest.mark.parametrize("source", sorted(copied_from_the_context()))
def test_what_is_copied_exists(source: str) -> None:
    assert (ROOT / source).exists()
