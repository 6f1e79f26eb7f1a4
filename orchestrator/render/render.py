"""JobRequest + Profile → a complete batch/v1 Job, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.errors import RenderError
from orchestrator.profile import Profile, Volume
from orchestrator.render.policy import policy_faults
from orchestrator.render.schema import schema_faults
from orchestrator.render.template import fill
from orchestrator.sweep import naming
from orchestrator.sweep.spec import API_VERSION, KIND, Resources, Scheduling
from trainer.flags import nearest
from trainer.layout import ATTEMPT_ENV, READY_FILE_ENV, TERMINATION_LOG_ENV
from trainer.results import ExitCode, Stage

DUMP_MOUNT = "/data/dump"
MODELS_MOUNT = f"{DUMP_MOUNT}/.models"
READY_FILE = "/tmp/ready"
TERMINATION_LOG = "/dev/termination-log"
HUB_TOKEN = "/var/run/secrets/hub/token"

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
USER_ID = 10001
_FIXED_ENV = {ATTEMPT_ENV, "HF_HUB_OFFLINE"}
"""Set in the template; Kubernetes takes no name twice."""
STAGES: tuple[Stage, ...] = ("fetch", "baseline", "train", "eval")


@dataclass(frozen=True)
class JobRequest:
    """One attempt of one stage of one run.

    `run_id` is the run's id, or the hash-name of a fetch, baseline or evaluation; `args` follow
    `python -m trainer`; `memory` overrides `resources.memory`; `avoid_nodes` are host names.
    """

    sweep: str
    sweep_uid: str | None
    stage: Stage
    run_id: str
    attempt: int
    args: tuple[str, ...]
    digest: str
    resources: Resources
    scheduling: Scheduling
    memory: str | None = None
    avoid_nodes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The Job's name."""
        return naming.job_name(self.sweep, self.run_id, self.stage, self.attempt)


def render_job(request: JobRequest, profile: Profile, *, check_schema: bool = True) -> dict[str, Any]:
    """The Job of `request`: filled template, overlaid with identity and security, checked by the policy.

    `check_schema` also checks it against the official client's strict models, whose import takes seconds.
    Raises RenderError with every fault.
    """
    faults = _request_faults(request, profile)
    if faults:
        raise RenderError("\n".join(f"job {request.name}: {fault}" for fault in faults))
    manifest = fill(f"{request.stage}.yaml.j2", context(request, profile))
    _overlay(manifest, request, profile)
    faults = schema_faults(manifest) if check_schema else []
    faults += policy_faults(manifest, profile)
    if faults:
        raise RenderError("\n".join(f"job {request.name}: {fault}" for fault in faults))
    return manifest


def _request_faults(request: JobRequest, profile: Profile) -> list[str]:
    faults = []
    if request.stage not in STAGES:
        faults.append(f"stage: must be one of {', '.join(STAGES)}, got {request.stage!r}")
    for kind in request.resources.gpuType:
        if kind not in profile.gpuTypes:
            hint = nearest(kind, profile.gpuTypes) or "; add it to gpuTypes in orch.toml"
            faults.append(f"resources.gpuType: the profile does not know it, got {kind!r}{hint}")
    priority = request.scheduling.priority
    if priority is not None and priority not in profile.priorityClasses:
        hint = nearest(priority, profile.priorityClasses) or "; add it to priorityClasses in orch.toml"
        faults.append(f"scheduling.priority: the profile does not know it, got {priority!r}{hint}")
    return faults


def context(request: JobRequest, profile: Profile) -> dict[str, Any]:
    """Plain data for the templates: text, numbers, booleans, lists and maps of them."""
    priority = request.scheduling.priority
    return {
        "suspend": request.scheduling.queue is not None,
        "exit_codes": [int(code) for code in ExitCode if code != ExitCode.DONE],
        "deadline_s": request.resources.max_duration_s,
        "priority_class": profile.priorityClasses[priority] if priority else "",
        "pull_secrets": list(profile.imagePullSecrets),
        "node_selector": dict(profile.nodeSelector),
        "tolerations": [one.model_dump(exclude_none=True) for one in profile.tolerations],
        "node_affinity": _node_affinity(request, profile),
        "image": profile.image,
        "args": [_literal(arg) for arg in request.args],
        "env": _env(request, profile),
        "cpu": request.resources.cpu_quantity,
        "memory": request.memory or request.resources.memory,
        "gpus": str(request.resources.gpus or ""),
        "ready_file": READY_FILE,
        "dump_mount": DUMP_MOUNT,
        "dump_sub_path": profile.dumpSubPath,
        "models_mount": MODELS_MOUNT,
        "models_sub_path": profile.modelsSubPath,
        "claim": profile.volumeClaim,
        "shm_size": profile.shmSize,
        "tmp_size": profile.tmpSize,
        "token_secret": profile.hubTokenSecret or "",
        "extra_mounts": [_mount(one) for one in profile.volumes],
        "extra_volumes": [_volume(one) for one in profile.volumes],
    }


def _mount(one: Volume) -> dict[str, Any]:
    mount = {"name": one.name, "mountPath": one.mountPath, "readOnly": one.readOnly}
    return mount | ({"subPath": one.subPath} if one.subPath else {})


def _volume(one: Volume) -> dict[str, Any]:
    if one.claim:
        return {"name": one.name, "persistentVolumeClaim": {"claimName": one.claim}}
    return {"name": one.name, "configMap": {"name": one.configMap}}


def _literal(text: str) -> str:
    """Kubernetes expands `$(NAME)` and `$$` in args and env: a doubled `$` is one."""
    return text.replace("$", "$$")


def _env(request: JobRequest, profile: Profile) -> list[list[str]]:
    ours = {
        TERMINATION_LOG_ENV: TERMINATION_LOG,
        READY_FILE_ENV: READY_FILE,
        "HF_HOME": f"{DUMP_MOUNT}/.hub",
    }
    if request.stage == "fetch" and profile.hubTokenSecret:
        ours["HF_TOKEN_PATH"] = HUB_TOKEN
    theirs = {name: value for name, value in profile.env.items() if name not in _FIXED_ENV}
    return [[name, _literal(value)] for name, value in {**theirs, **ours}.items()]


def _node_affinity(request: JobRequest, profile: Profile) -> dict[str, Any]:
    """Nodes with any of the GPU types, the earlier ones preferred, without those to avoid."""
    kinds = request.resources.gpuType if request.resources.gpus else []
    required = []
    if kinds:
        products = [product for kind in kinds for product in profile.gpuTypes[kind]]
        required.append({"key": profile.gpuTypeLabel, "operator": "In", "values": products})
    if request.avoid_nodes:
        values = list(request.avoid_nodes)
        required.append({"key": "kubernetes.io/hostname", "operator": "NotIn", "values": values})
    affinity: dict[str, Any] = {}
    if required:
        terms = [{"matchExpressions": required}]
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    if len(kinds) > 1:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {
                "weight": 100 - 10 * place,
                "preference": {
                    "matchExpressions": [
                        {"key": profile.gpuTypeLabel, "operator": "In", "values": profile.gpuTypes[kind]}
                    ]
                },
            }
            for place, kind in enumerate(kinds[:-1])
        ]
    return affinity


def _overlay(manifest: dict[str, Any], request: JobRequest, profile: Profile) -> None:
    """Identity and security come from here, whatever the template says."""
    labels = naming.labels(request.sweep, request.run_id, request.stage, request.attempt)
    queue = request.scheduling.queue
    meta = manifest["metadata"]
    meta["name"] = request.name
    meta["labels"] = labels | ({QUEUE_LABEL: queue} if queue else {})
    meta["annotations"] = naming.job_annotations(request.run_id, request.digest)
    if request.sweep_uid:
        meta["ownerReferences"] = [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": request.sweep,
                "uid": request.sweep_uid,
                "controller": True,
            }
        ]
    manifest["spec"]["template"]["metadata"]["labels"] = dict(labels)
    secure(manifest, profile)


def secure(manifest: dict[str, Any], profile: Profile) -> None:
    """Give the Job's pod its account and the restricted Pod Security standard."""
    pod = manifest["spec"]["template"]["spec"]
    pod["serviceAccountName"] = profile.serviceAccount
    pod["automountServiceAccountToken"] = False
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "supplementalGroups": [USER_ID],
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if profile.fsGroup is not None:
        # Without OnRootMismatch every mount would go through every file of the volume.
        pod["securityContext"] |= {"fsGroup": profile.fsGroup, "fsGroupChangePolicy": "OnRootMismatch"}
    for container in pod["containers"]:
        container["securityContext"] = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
