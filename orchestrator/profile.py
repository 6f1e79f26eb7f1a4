"""The lab's defaults (`orch.toml`): image, storage, node labels, so that a sweep holds only the question."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from orchestrator.errors import UserError
from trainer.flags import describe, nearest

PROFILE_FILE = "orch.toml"
UNPUBLISHED_IMAGE = "localhost/orch-trainer:dev"
"""The image of a lab that has published none: a name nobody else can serve, enough for local Jobs."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}(Mi|Gi|Ti)$")]
Span = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[smhd]$")]
SubPath = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*)?$", max_length=200)
]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]

OUR_VOLUMES = frozenset({"data", "shm", "tmp", "hub-token"})
OUR_MOUNTS = ("/data", "/dev", "/proc", "/sys", "/tmp", "/var/run/secrets", "/opt/venv")
"""Where a Job has something of its own."""

GPU_PRODUCTS = {
    "B200": ["NVIDIA-B200"],
    "H200": ["NVIDIA-H200", "NVIDIA-H200-NVL"],
    "H100": ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"],
    "A100": [
        "NVIDIA-A100-SXM4-80GB",
        "NVIDIA-A100-SXM4-40GB",
        "NVIDIA-A100-80GB-PCIe",
        "NVIDIA-A100-PCIE-40GB",
    ],
    "L40S": ["NVIDIA-L40S"],
    "L4": ["NVIDIA-L4"],
    "A10": ["NVIDIA-A10", "NVIDIA-A10G"],
    "T4": ["Tesla-T4"],
}
"""Values of the label nvidia.com/gpu.product, as NVIDIA's GPU feature discovery spells them."""


class Toleration(BaseModel):
    """A taint that Jobs tolerate, as in a pod."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None


class Volume(BaseModel):
    """A volume of the lab that every Job gets besides: a claim (datasets), or a ConfigMap (certificates)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    mountPath: str = Field(pattern=r"^(/[A-Za-z0-9_.-]+)+$", max_length=200)
    claim: Name | None = None
    configMap: Name | None = None
    subPath: SubPath = ""
    readOnly: bool = True

    @model_validator(mode="after")
    def _checked(self) -> Volume:
        if (self.claim is None) == (self.configMap is None):
            raise ValueError("must name a claim or a configMap, and not both")
        taken = [
            place for place in OUR_MOUNTS if _within(self.mountPath, place) or _within(place, self.mountPath)
        ]
        if ".." in self.mountPath.split("/") or self.name in OUR_VOLUMES or taken:
            raise ValueError(
                f"name and mountPath must leave {', '.join(OUR_MOUNTS)} and orch's volumes alone"
            )
        return self


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


class Notify(BaseModel):
    """Where it is told that a sweep ended or halted: a webhook of a chat program, or of the lab's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    url: str | None = Field(None, pattern=r"^https?://[^\s]+$", max_length=2000)
    urlFile: str | None = Field(None, min_length=1, max_length=1000)
    on: list[Literal["ended", "halted"]] = Field(default=["ended", "halted"])

    @model_validator(mode="after")
    def _checked(self) -> Notify:
        if (self.url is None) == (self.urlFile is None):
            raise ValueError("must have a url or a urlFile, and not both")
        return self


class Profile(BaseModel):
    """What all Jobs of a lab have in common; never part of a run's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image: str = Field(
        UNPUBLISHED_IMAGE, pattern=r"^[^\s]+$", description="Trainer image, NAME@sha256:DIGEST."
    )
    allowImageTags: bool = Field(False, description="Accept an image that is not pinned by digest.")
    imagePullSecrets: list[Name] = Field(default_factory=list, description="Secrets to pull it with.")
    serviceAccount: Name = Field("orch-trainer", description="Account of the Jobs; it gets no token.")
    volumeClaim: Name = Field("orch", description="Shared (ReadWriteMany) claim that holds dump/.")
    dumpSubPath: SubPath = Field(
        "",
        description="Folder of the claim that is dump/; it must exist and be writable by uid 10001, for "
        "Kubernetes would make it as root. '': the claim's root.",
    )
    modelsSubPath: SubPath = Field("", description="Folder of the models in the claim; '': in dump/.models.")
    hubTokenSecret: Name | None = Field(
        None, description="Secret whose key `token` is the hub token; mounted into fetch Jobs only."
    )
    priorityClasses: dict[str, Name] = Field(
        default={"low": "orch-low", "normal": "orch-normal", "high": "orch-high"},
        description="scheduling.priority: PriorityClass.",
    )
    gpuTypes: dict[str, list[str]] = Field(
        default=GPU_PRODUCTS, description="resources.gpuType: values of the node label gpuTypeLabel."
    )
    gpuTypeLabel: str = Field("nvidia.com/gpu.product", description="Node label that names the GPU.")
    nodeSelector: dict[str, str] = Field(default_factory=dict, description="Labels every node must have.")
    tolerations: list[Toleration] = Field(
        default=[Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")],
        description="Taints that Jobs tolerate.",
    )
    fsGroup: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="Group that the volume's root gets if it has another, for storage whose new volumes "
        "belong to root; a volume that is full already then takes long to mount.",
    )
    volumes: list[Volume] = Field(
        default_factory=list, max_length=16, description="Volumes that every Job gets besides."
    )
    env: dict[EnvName, str] = Field(default_factory=dict, description="Environment of every Job.")
    maxMemory: Quantity | None = Field(None, description="Most memory a Job may ask, retries included.")
    shmSize: Quantity = Field("2Gi", description="/dev/shm; it counts against the Job's memory.")
    tmpSize: Quantity = Field("20Gi", description="/tmp of a Job.")
    notify: Notify | None = Field(
        None,
        description="Webhook that is told of ended and halted sweeps: `url`, or `urlFile` where the address "
        "is a secret; `on`: which of the two.",
    )
    keepJobs: Span = Field("24h", description="A recorded Job and its pod's log go this long after its end.")

    @property
    def keep_jobs_s(self) -> int:
        """`keepJobs` in seconds."""
        return int(self.keepJobs[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[self.keepJobs[-1]]


def load_profile(path: Path | None = None) -> Profile:
    """The profile in `path`, else in ./orch.toml, else the defaults.

    Raises UserError with every fault of the file.
    """
    if path is None:
        path = Path(PROFILE_FILE)
        if not path.exists():
            return Profile()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read, got {error}; give a TOML file of defaults") from error
    return parse_profile(text, str(path))


def parse_profile(text: str, place: str) -> Profile:
    """The profile in `text`; `place` heads every message. UserError with every fault."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{place}: cannot be read, got {error}; give a TOML file of defaults") from error
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        unknown = [key for key in table if key not in Profile.model_fields]
        faults = [
            f"{place}: {key} is no profile field{nearest(key, Profile.model_fields)}" for key in unknown
        ]
        faults += [f"{place}: {fault}" for fault in describe(error, "", table) if not _names(fault, unknown)]
        raise UserError("\n".join(faults)) from error


def _names(fault: str, keys: list[str]) -> bool:
    return any(fault.startswith(f"{key}: ") for key in keys)
