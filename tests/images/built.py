"""Where the built images are: the folder IMAGE_DIR, or one of the tests' own, into which they are built."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.cluster.rig import tools

ROOT = Path(__file__).resolve().parents[2]
HOME = Path("/var/tmp/orch-images")


def folder() -> Path:
    """`make images IMAGE_DIR=DIR` wrote it and DIR is in the environment, else the images are built here.

    Built as a lab without a registry does it, on a base image of Debian's packages, below ORCH_IMAGES_HOME.
    What was built there before is taken from its cache.
    """
    given = os.environ.get("IMAGE_DIR")
    return Path(given) if given else _build(Path(os.environ.get("ORCH_IMAGES_HOME") or HOME))


def _build(home: Path) -> Path:
    tools.install_packages(tools.IMAGE_PACKAGES)
    env = {
        **os.environ,
        "ENGINE": "buildah",
        "BUILDAH_ROOT": str(home / "buildah"),
        "BASE_IMAGE": "localhost/python:bookworm",
        "EXTRAS": "quickstart",
        "IMAGE_DIR": str(home),
    }
    if not (home / "buildah" / "storage").is_dir():
        subprocess.run(["images/base.sh", env["BASE_IMAGE"]], cwd=ROOT, env=env, check=True)
    subprocess.run(["images/build.sh"], cwd=ROOT, env=env, check=True)
    return home
