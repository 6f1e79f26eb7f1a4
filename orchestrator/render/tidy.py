"""The Job that tidies the volume: of no sweep, so no controller makes or records it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.errors import RenderError
from orchestrator.profile import Profile
from orchestrator.render.policy import policy_faults
from orchestrator.render.render import JobRequest, context, secure
from orchestrator.render.schema import schema_faults
from orchestrator.render.template import fill
from orchestrator.sweep import naming
from orchestrator.sweep.spec import Resources, Scheduling

NEEDS = Resources(gpus=0, cpu=1, memory="1Gi", maxDuration="12h")


def render_tidy(args: Sequence[str], profile: Profile, namespace: str | None) -> dict[str, Any]:
    """A Job to `kubectl create` that runs `python -m trainer` with `args` on the volume, without a network.

    It goes by itself as long after its end as the profile keeps Jobs. Raises RenderError with every fault.
    """
    request = JobRequest(
        sweep="",
        sweep_uid=None,
        stage="gc",
        run_id="",
        attempt=1,
        args=tuple(args),
        digest="",
        resources=NEEDS,
        scheduling=Scheduling(),
    )
    manifest = fill("gc.yaml.j2", context(request, profile))
    labels = {naming.LABEL_MANAGED_BY: naming.MANAGED_BY, naming.LABEL_STAGE: request.stage}
    manifest["metadata"] = {"generateName": "orch-gc-", "labels": labels}
    manifest["metadata"] |= {"namespace": namespace} if namespace else {}
    manifest["spec"]["ttlSecondsAfterFinished"] = profile.keep_jobs_s
    manifest["spec"]["template"]["metadata"]["labels"] = dict(labels)
    secure(manifest, profile)
    faults = [*schema_faults(manifest), *policy_faults(manifest, profile)]
    if faults:
        raise RenderError("\n".join(f"job orch-gc: {fault}" for fault in faults))
    return manifest
