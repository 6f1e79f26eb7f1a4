"""The cluster's own kubectl, as its administrator, in its network."""

from __future__ import annotations

import subprocess

from tests.cluster.rig import tools
from tests.cluster.rig.network import inside_control
from tests.cluster.rig.settings import Rig, RigError


def kubectl(
    rig: Rig, *arguments: str, input: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run kubectl to its end; RigError with its last words when it fails and `check` is set."""
    command = [*inside_control(rig), str(tools.binaries() / "kubectl"), f"--kubeconfig={rig.kubeconfig}"]
    done = subprocess.run([*command, *arguments], input=input, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RigError(
            f"kubectl {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
    return done
