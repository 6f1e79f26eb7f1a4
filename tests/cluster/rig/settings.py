"""What one cluster is: its name, its folder, its addresses, and how it was asked to behave."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

KUBERNETES = "v1.36.3"
PAUSE_IMAGE = "orch.test/pause:1"
TOOLS_IMAGE = "orch.test/tools:1"
"""busybox and kubectl: what a test's own pods run."""

CONTROL_ADDRESS = "10.77.0.1"
API_SERVER = f"https://{CONTROL_ADDRESS}:6443"
SERVICES = "10.79.0.0/16"
API_SERVICE_ADDRESS = "10.79.0.1"
DNS_SERVICE_ADDRESS = "10.79.0.10"
PODS = "10.78.0.0/16"

GPU_RESOURCE = "nvidia.com/gpu"
GPUS_PER_NODE = 8
NODE_LABELS = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


class RigError(Exception):
    """The cluster could not be brought where it was asked to be; the message says what to look at."""


@dataclass(frozen=True)
class Options:
    """How `up` was asked to start: number of nodes, limits of the controller manager, loss of a node."""

    nodes: int = 2
    scale: bool = False
    """Raise the controller manager's limits (its defaults finish about 3 Jobs a second)."""
    node_grace: int | None = None
    """Seconds after which a silent node is NotReady; None leaves Kubernetes' 50."""


@dataclass(frozen=True)
class Node:
    """One node's addresses and folder; `number` counts from 1."""

    number: int
    home: Path

    @property
    def name(self) -> str:
        return f"orch-node-{self.number}"

    @property
    def address(self) -> str:
        return f"10.77.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        return f"10.78.{self.number}.0/24"

    @property
    def folder(self) -> Path:
        return self.home / self.name


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whenever we are interrupted."""
    aside = beside(path)
    aside.write_text(text)
    os.replace(aside, path)


def beside(path: Path) -> Path:
    """Where `path` is written before it has its name."""
    return path.with_name(f"{path.name}.new")


@dataclass(frozen=True)
class Rig:
    """A cluster by name and folder; two of them share nothing but the cached binaries."""

    name: str
    home: Path

    @classmethod
    def from_environment(cls) -> Rig:
        """ORCH_CLUSTER_NAME (default `orch`) and ORCH_CLUSTER_HOME (default /var/tmp/NAME-cluster)."""
        name = os.environ.get("ORCH_CLUSTER_NAME", "orch")
        return cls(name, Path(os.environ.get("ORCH_CLUSTER_HOME", f"/var/tmp/{name}-cluster")))

    @property
    def kubeconfig(self) -> Path:
        return self.home / "kubeconfig"

    @property
    def netns(self) -> Path:
        """A link to the network namespace of the control plane, where the tests run too."""
        return self.home / "netns"

    @property
    def options(self) -> Options:
        return Options(**json.loads(self.mark.read_text()))

    @property
    def nodes(self) -> list[Node]:
        return [Node(number, self.home) for number in range(1, self.options.nodes + 1)]

    def node(self, name: str) -> Node:
        """The node of that name; RigError when there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise RigError(f"node: no such node, got {name!r}; there are {[node.name for node in self.nodes]}")

    def create(self, options: Options) -> None:
        """Make the folder: first the mark without which `down` removes nothing, whole or not at all."""
        self.home.mkdir(parents=True, exist_ok=True)
        write_whole(self.mark, json.dumps(asdict(options)))
        for folder in ("logs", "processes", "pki", "volumes"):
            (self.home / folder).mkdir(exist_ok=True)

    @property
    def mark(self) -> Path:
        """The file that makes a folder a cluster's: made first, removed last."""
        return self.home / "options.json"
