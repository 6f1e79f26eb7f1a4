"""What images/build.sh asks of docker or buildah: two stand-ins on the PATH write down what they got."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "cp", "cut", "dirname", "git", "grep", "head", "mkdir", "rm", "sed", "tar")
ENGINE = r"""#!/bin/sh
here=${0%/*}
printf '%s\n' "${0##*/}" "$@" --- >> "$here/calls"
case "${0##*/} $1 $*" in
  "docker info"*) test -e "$here/docker-runs" ;;
  "docker save"*) tar --create --directory "$here/saved" . ;;
  "skopeo copy"*) for last; do :; done; last=${last#oci:}; cp -r "$here/saved/." "${last%%:*}" ;;
  "ctr --namespace"*" content ls"*) cat "$here/known" ;;
  "ctr --namespace"*" images import -")  tar --list > "$here/sent" ;;
esac
"""
PINS = ["VERSION=0.1.0", "SOURCE="]


@dataclass
class Machine:
    """A PATH with some engines on it, and what they were called with."""

    bin: Path

    def engine(self, name: str) -> None:
        (self.bin / name).write_text(ENGINE, encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def run(self, *targets: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.script("build.sh", *targets, **env)

    def script(self, name: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "images" / name, *words],
            env={"PATH": str(self.bin), "HOME": str(self.bin), **env},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        text = (self.bin / "calls").read_text(encoding="utf-8")
        return [call.split("\n") for call in text.split("\n---\n") if call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"{tool} is not installed"
        (tmp_path / tool).symlink_to(found)
    return Machine(tmp_path)


def values(call: list[str], flag: str) -> list[str]:
    return [value for given, value in pairwise(call) if given == flag]


def test_docker_builds_both_images_when_it_runs(machine: Machine) -> None:
    machine.engine("docker")
    machine.engine("buildah")
    (machine.bin / "docker-runs").touch()

    assert machine.run().returncode == 0

    info, controller, trainer = machine.calls()
    assert info == ["docker", "info"]
    assert controller[:4] == ["docker", "build", "--tag", "localhost/orch-controller:dev"]
    assert values(controller, "--target") == ["controller"]
    assert values(trainer, "--tag") == ["localhost/orch-trainer:dev"]
    assert values(trainer, "--target") == ["trainer"]
    assert trainer[-1] == "."


def test_buildah_builds_where_docker_has_no_daemon(machine: Machine) -> None:
    machine.engine("docker")
    machine.engine("buildah")

    assert machine.run("controller").returncode == 0

    _, build = machine.calls()
    # Without --layers a change of the code would install everything again.
    assert build[:6] == [
        "buildah",
        "build",
        "--layers",
        "--force-rm",
        "--tag",
        "localhost/orch-controller:dev",
    ]
    assert values(build, "--file") == ["images/Dockerfile"]


def test_without_an_engine_it_says_what_to_do(machine: Machine) -> None:
    done = machine.run()

    assert done.returncode == 2
    assert done.stderr == (
        "images: no running docker and no buildah found; start docker or install buildah\n"
    )


def test_an_unknown_engine_is_refused(machine: Machine) -> None:
    done = machine.run(ENGINE="podman")

    assert done.returncode == 2
    assert "got podman" in done.stderr


def test_nothing_is_passed_on_that_was_not_asked_for(machine: Machine) -> None:
    machine.engine("buildah")

    machine.run("controller")

    (build,) = machine.calls()
    assert values(build, "--secret") == []
    arguments = values(build, "--build-arg")
    assert [one for one in arguments if not one.startswith("REVISION=")] == PINS


def test_a_proxys_certificates_and_the_index_are_secrets(machine: Machine) -> None:
    machine.engine("buildah")

    machine.run("controller", SSL_CERT_FILE="/ca.pem", PIP_CONFIG_FILE="/pip.conf", UV_CONFIG_FILE="/uv.toml")

    (build,) = machine.calls()
    assert values(build, "--secret") == [
        "id=ca.pem,src=/ca.pem",
        "id=pip.conf,src=/pip.conf",
        "id=uv.toml,src=/uv.toml",
    ]
    assert "SSL_CERT_FILE=/run/secrets/ca.pem" in values(build, "--build-arg")
    assert not any("/ca.pem" in one and "/run/secrets" not in one for one in values(build, "--build-arg"))


def test_base_image_extras_and_names_are_the_callers(machine: Machine) -> None:
    machine.engine("buildah")

    machine.run(
        "trainer",
        BASE_IMAGE="localhost/python:bookworm",
        EXTRAS="quickstart",
        PREFIX="registry.example/ml",
        TAG="v1",
        SOURCE="https://git.example/orch",
        BUILDAH_ROOT="/var/tmp/store",
    )

    (build,) = machine.calls()
    assert build[:6] == [
        "buildah",
        "--root",
        "/var/tmp/store/storage",
        "--runroot",
        "/var/tmp/store/run",
        "build",
    ]
    assert values(build, "--tag") == ["registry.example/ml/orch-trainer:v1"]
    wanted = {"BASE_IMAGE=localhost/python:bookworm", "EXTRAS=quickstart", "SOURCE=https://git.example/orch"}
    assert wanted <= set(values(build, "--build-arg"))


def test_the_trainer_with_vllm_is_asked_for_by_its_name(machine: Machine) -> None:
    machine.engine("buildah")

    assert machine.run("trainer", VARIANT="vllm", TAG="vllm").returncode == 0

    (build,) = machine.calls()
    assert "VARIANT=vllm" in values(build, "--build-arg")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"VARIANT": "vllm", "EXTRAS": "quickstart"},
            "VARIANT: vllm has no extras, got EXTRAS=quickstart; leave one of them out\n",
        ),
        ({"VARIANT": "trl"}, "VARIANT: must be vllm, got trl; leave it out for the usual trainer\n"),
    ],
)
def test_another_variant_or_one_with_extras_is_refused(
    machine: Machine, asked: dict[str, str], said: str
) -> None:
    machine.engine("buildah")

    done = machine.run("trainer", **asked)

    assert (done.returncode, done.stderr) == (2, said)


def save(folder: Path, annotations: dict[str, str]) -> str:
    """An OCI layout of one layer; returns its manifest's digest."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    config, layer, manifest = ("a" * 64, "b" * 64, "c" * 64)
    (blobs / config).write_text("{}", encoding="utf-8")
    (blobs / layer).write_text("a tar", encoding="utf-8")
    descriptors = {"config": {"digest": f"sha256:{config}"}, "layers": [{"digest": f"sha256:{layer}"}]}
    (blobs / manifest).write_text(json.dumps(descriptors), encoding="utf-8")
    index = {"manifests": [{"digest": f"sha256:{manifest}", "annotations": annotations}]}
    (folder / "index.json").write_text(json.dumps(index, separators=(",", ":")), encoding="utf-8")
    (folder / "oci-layout").write_text("{}", encoding="utf-8")
    return f"sha256:{manifest}"


@pytest.mark.parametrize("engine", ["docker", "buildah"])
def test_an_image_is_written_where_a_folder_is_given_and_old_layers_go(machine: Machine, engine: str) -> None:
    machine.engine(engine)
    machine.engine("skopeo")
    save(machine.bin / "saved", {})
    folder = machine.bin / "out" / "controller"
    stale = folder / "blobs" / "sha256" / ("d" * 64)
    stale.parent.mkdir(parents=True)
    stale.touch()

    done = machine.run("controller", ENGINE=engine, IMAGE_DIR=str(machine.bin / "out"))

    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in stale.parent.iterdir()) == ["a" * 64, "b" * 64, "c" * 64]
    assert (folder / "index.json").exists()


def test_buildahs_layers_are_copied_uncompressed_so_that_those_there_are_known_again(
    machine: Machine,
) -> None:
    machine.engine("buildah")
    machine.engine("skopeo")
    save(machine.bin / "saved", {})

    machine.run("controller", IMAGE_DIR=str(machine.bin / "out"), BUILDAH_ROOT="/store")

    assert machine.calls()[1] == [
        "skopeo",
        "copy",
        "--quiet",
        "--dest-oci-accept-uncompressed-layers",
        "containers-storage:[overlay@/store/storage+/store/run]localhost/orch-controller:dev",
        f"oci:{machine.bin}/out/controller:localhost/orch-controller:dev",
    ]


def test_without_skopeo_it_says_what_to_do(machine: Machine) -> None:
    machine.engine("buildah")

    done = machine.run("controller", IMAGE_DIR=str(machine.bin / "out"))

    assert (done.returncode, done.stderr) == (
        2,
        "IMAGE_DIR: buildah needs skopeo to write there; install skopeo\n",
    )


@pytest.mark.parametrize(
    "annotations",
    [
        {"org.opencontainers.image.ref.name": "localhost/orch-trainer:dev"},
        {
            "io.containerd.image.name": "localhost/orch-trainer:dev",
            "org.opencontainers.image.ref.name": "dev",
        },
    ],
    ids=["skopeo", "docker"],
)
def test_only_what_a_containerd_lacks_is_sent(machine: Machine, annotations: dict[str, str]) -> None:
    machine.engine("ctr")
    digest = save(machine.bin / "saved", annotations)
    (machine.bin / "known").write_text(f"sha256:{'b' * 64}\n", encoding="utf-8")

    done = machine.script("load.sh", str(machine.bin / "saved"), "ctr", "--namespace", "k8s.io")

    assert done.returncode == 0, done.stderr
    sent = (machine.bin / "sent").read_text(encoding="utf-8").split()
    assert {
        "./index.json",
        "./oci-layout",
        f"./blobs/sha256/{'a' * 64}",
        f"./blobs/{digest.replace(':', '/')}",
    } <= {*sent}
    assert not [name for name in sent if "b" * 64 in name]
    assert machine.calls()[-1][3:] == [
        "images",
        "tag",
        "--force",
        "localhost/orch-trainer:dev",
        f"localhost/orch-trainer@{digest}",
    ]


def test_make_calls_it() -> None:
    recipe = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "images"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert recipe.strip() == "images/build.sh"
