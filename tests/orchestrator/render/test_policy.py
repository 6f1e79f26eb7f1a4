"""Each rule of the policy, broken one at a time in a good Job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.profile import Profile
from orchestrator.render import render_job
from orchestrator.render.policy import policy_faults

Break = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], object]

# j is the Job, p its pod, c its container.
BREAKS: dict[str, tuple[Break, str]] = {
    "another kind": (lambda j, p, c: j.update(kind="CronJob"), "kind: "),
    "not ours": (lambda j, p, c: j["metadata"]["labels"].clear(), "metadata.labels: "),
    "retries in the Job": (lambda j, p, c: j["spec"].update(backoffLimit=1), "spec.backoffLimit"),
    "two pods at once": (lambda j, p, c: j["spec"].pop("podReplacementPolicy"), "spec.podRep"),
    "several pods": (lambda j, p, c: j["spec"].update(parallelism=2), "spec.parallelism"),
    "a deadline over the queue": (
        lambda j, p, c: j["spec"].update(activeDeadlineSeconds=1),
        "spec.activeDeadlineSeconds",
    ),
    "a TTL before the record": (
        lambda j, p, c: j["spec"].update(ttlSecondsAfterFinished=1),
        "spec.ttlSecondsAfterFinished",
    ),
    "an ignored failure": (
        lambda j, p, c: j["spec"]["podFailurePolicy"]["rules"][0].update(action="Ignore"),
        "spec.podFailurePolicy",
    ),
    "restart in place": (lambda j, p, c: p.update(restartPolicy="OnFailure"), "pod.restartPolicy"),
    "an account's token": (lambda j, p, c: p.pop("automountServiceAccountToken"), "pod.automount"),
    "the host's network": (lambda j, p, c: p.update(hostNetwork=True), "pod.hostNetwork"),
    "the host's processes": (lambda j, p, c: p.update(hostPID=True), "pod.hostPID"),
    "no deadline": (lambda j, p, c: p.pop("activeDeadlineSeconds"), "pod.activeDeadlineSeconds"),
    "root allowed": (
        lambda j, p, c: p["securityContext"].pop("runAsNonRoot"),
        "pod.securityContext",
    ),
    "root by number": (lambda j, p, c: p["securityContext"].update(runAsUser=0), "pod.securityC"),
    "no seccomp": (
        lambda j, p, c: p["securityContext"].pop("seccompProfile"),
        "pod.securityContext",
    ),
    "a host path": (
        lambda j, p, c: p["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
        "volume h: must be one of",
    ),
    "an account's token as volume": (
        lambda j, p, c: p["volumes"].append(
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
        ),
        "volume t: must not carry",
    ),
    "a Secret outside fetch": (
        lambda j, p, c: p["volumes"].append({"name": "s", "secret": {"secretName": "hub"}}),
        "volume s: only fetch Jobs",
    ),
    "an image by tag": (lambda j, p, c: c.update(image="trainer:latest"), "trainer: image"),
    "a short digest": (lambda j, p, c: c.update(image="trainer@sha256:ab"), "trainer: image"),
    "privilege escalation": (
        lambda j, p, c: c["securityContext"].update(allowPrivilegeEscalation=True),
        "trainer: securityContext.allowPrivilegeEscalation",
    ),
    "privileged": (
        lambda j, p, c: c["securityContext"].update(privileged=True),
        "trainer: securityContext.privileged",
    ),
    "a writable root": (
        lambda j, p, c: c["securityContext"].pop("readOnlyRootFilesystem"),
        "trainer: securityContext.readOnlyRootFilesystem",
    ),
    "a capability": (
        lambda j, p, c: c["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "trainer: securityContext.capabilities",
    ),
    "root in the container": (
        lambda j, p, c: c["securityContext"].update(runAsUser=0),
        "trainer: securityContext: must not run as root",
    ),
    "a shell": (lambda j, p, c: c.update(command=["/bin/bash", "-c"]), "trainer: command"),
    "a shell behind env": (
        lambda j, p, c: c.update(command=["/usr/bin/env", "x"]),
        "trainer: command",
    ),
    "the image's command": (lambda j, p, c: c.pop("command"), "trainer: command"),
    "a Secret in the environment": (
        lambda j, p, c: c["env"].append({"name": "T", "valueFrom": {"secretKeyRef": {"name": "hub"}}}),
        "trainer: env T",
    ),
    "no memory limit": (
        lambda j, p, c: c["resources"]["limits"].clear(),
        "trainer: resources.limits",
    ),
    "no cpu request": (
        lambda j, p, c: c["resources"]["requests"].pop("cpu"),
        "trainer: resources.req",
    ),
    "memory that is no quantity": (
        lambda j, p, c: c["resources"]["limits"].update(memory="64GB"),
        "trainer: resources.limits.memory: quantity: must be a number with a unit, got '64GB'",
    ),
    "cores that are none": (
        lambda j, p, c: c["resources"]["requests"].update(cpu="four"),
        "trainer: resources.requests.cpu: quantity: must be",
    ),
    "a port of the host": (lambda j, p, c: c.update(ports=[{"hostPort": 80}]), "trainer: ports"),
    "a bad init container": (
        lambda j, p, c: p.update(initContainers=[{**c, "name": "init", "image": "x:1"}]),
        "container init: image",
    ),
    "no container": (lambda j, p, c: p["containers"].clear(), "spec.template.spec.containers"),
}


@pytest.mark.parametrize(("breaks", "place"), BREAKS.values(), ids=BREAKS.keys())
def test_policy_refuses(request_of, profile, breaks, place):
    job = render_job(request_of(), profile, check_schema=False)
    assert policy_faults(job, profile) == []
    pod = job["spec"]["template"]["spec"]
    breaks(job, pod, pod["containers"][0])
    (fault,) = policy_faults(job, profile)
    assert place in fault


def test_policy_takes_a_tag_where_the_profile_does(request_of):
    profile = Profile(image="trainer:latest", allowImageTags=True)
    assert render_job(request_of(), profile, check_schema=False)
