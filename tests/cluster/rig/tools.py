"""What the cluster is made of: Debian's packages, and programs built from their Go modules."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path

from tests.cluster.rig.settings import KUBERNETES, RigError
from tests.cluster.rig.shell import run

MODULES = Path(__file__).resolve().parents[1] / "tools"
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "openssl": "openssl",
    "buildah": "buildah",
    "busybox": "busybox-static",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""A program that shows a Debian package to be there, and the package."""
IMAGE_PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "skopeo": "skopeo"}
"""The same, for building our images without docker."""

_MAJOR, _MINOR = re.findall(r"\d+", KUBERNETES)[:2]
_STAMPS = {"gitVersion": KUBERNETES, "gitMajor": _MAJOR, "gitMinor": _MINOR}
LINK = "-s -w " + " ".join(
    f"-X k8s.io/component-base/version.{key}={value}" for key, value in _STAMPS.items()
)
PROGRAMS = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    **{
        name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}")
        for name in (
            "kubectl",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
        )
    },
}
"""Program → (folder of its Go module, package)."""


def why_not() -> str | None:
    """Why no cluster can run on this machine, None when one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a cluster needs Linux and root"
    if shutil.which("go") is None and not _all_built():
        return "a cluster needs Go 1.26 on PATH to build Kubernetes"
    missing = _missing(PACKAGES)
    if missing and shutil.which("apt-get") is None:
        return f"a cluster needs {', '.join(missing)}, and there is no apt-get to install them"
    return None


def cache() -> Path:
    """Where built programs and images are kept: outside the tree and the cluster's folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orch-cluster"


def binaries() -> Path:
    """The folder of the programs; named by all that they are built from."""
    digest = hashlib.sha256(LINK.encode())
    for file in sorted(MODULES.glob("*/go.*")):
        digest.update(file.read_bytes())
    return cache() / "bin" / f"{KUBERNETES}-{digest.hexdigest()[:12]}"


def install_packages(packages: dict[str, str] = PACKAGES) -> None:
    """Install the Debian packages that are not there."""
    missing = _missing(packages)
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(install, env=environment)
    except RigError:  # package lists of another day
        run(["apt-get", "update"], env=environment)
        run(install, env=environment)


def build() -> Path:
    """Build the programs that are not in the cache; returns their folder."""
    folder = binaries()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0"}
    for name, (module, package) in PROGRAMS.items():
        if (folder / name).exists():
            continue
        began = time.monotonic()
        # Named when complete, so that an interrupted build leaves nothing that looks built.
        partial = folder / f".{name}.{os.getpid()}"
        flags: list[str | Path] = ["-trimpath", "-buildvcs=false", f"-ldflags={LINK}", "-o", partial]
        run(["go", "build", *flags, package], cwd=MODULES / module, env=environment)
        partial.rename(folder / name)
        say(f"built {name} in {time.monotonic() - began:.0f} s")
    return folder


def say(text: str) -> None:
    """Tell the one who waits."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _missing(packages: dict[str, str]) -> list[str]:
    return sorted({package for program, package in packages.items() if shutil.which(program) is None})


def _all_built() -> bool:
    return all((binaries() / name).exists() for name in PROGRAMS)
