"""The only place that makes or parses the names, labels and annotations of what orch creates.

Pure. A run id is `<name>-<8 hex of its digest>`; a Job name is
`<sweep>--<name>-<8 hex>-<stage>-<attempt>` with the readable name cut to fit, never the rest.
"""

from __future__ import annotations

import re

from trainer.results import Stage

MANAGED_BY = "orch"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_SWEEP = "orch.dev/sweep"
LABEL_RUN = "orch.dev/run"
LABEL_STAGE = "orch.dev/stage"
LABEL_ATTEMPT = "orch.dev/attempt"
ANNOTATION_DIGEST = "orch.dev/config-digest"
ANNOTATION_RUN = "orch.dev/run-id"
ANNOTATION_RUNS = "orch.dev/runs"
"""Run ids whose adapters an eval Job measures, comma-separated: its own id is only a hash of them."""
ANNOTATIONS = (ANNOTATION_DIGEST, ANNOTATION_RUN, ANNOTATION_RUNS)
ANNOTATION_SUBMITTER = "orch.dev/submitted-by"
LABEL_RECORD = "orch.dev/record"
"""On the ConfigMaps that hold records of attempts."""

PART_OF = "orch"
LABEL_PART_OF = "app.kubernetes.io/part-of"
"""On what `orch install` makes: LABEL_MANAGED_BY marks only what the controller makes."""
ANNOTATION_VERSION = "orch.dev/version"
"""Of the CustomResourceDefinition: version of the orch that made it, `+`, and 8 hex over its schema."""

DEFAULT_NAMESPACE = "orch"
CONTROLLER_LEASE = "orch-controller"
PROFILE_CONFIG_MAP = "orch-profile"

JOB_NAME_LIMIT = 52
"""Pods and indexed Jobs append up to 11 characters to it, and a label holds 63."""
SWEEP_NAME_LIMIT = 28
RUN_NAME_LIMIT = 54
"""With a dash and 8 hex it is a label value of 63 characters."""
MAX_ATTEMPT = 9999
DIGEST_CHARS = 8

SWEEP_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""A DNS label without a double dash, which parts the sweep from the run in a Job name."""
RUN_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$"
TAG = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"

_RUN_ID = re.compile(r"(?:(?P<name>[A-Za-z0-9_-]+)-)?(?P<digest>[0-9a-f]{8})")


def run_id(name: str, digest: str) -> str:
    """`<name>-<first 8 hex of digest>`: the id, folder name and label value of a run (≤ 63 characters)."""
    return f"{name}-{digest[:DIGEST_CHARS]}"


def split_run_id(run_id: str) -> tuple[str, str]:
    """(name, 8 hex) of a run id; the name of a bare digest is empty. ValueError for anything else."""
    match = _RUN_ID.fullmatch(run_id)
    if not match:
        raise ValueError(f"run id: must end in 8 hex digits, got {run_id!r}; make it with naming.run_id")
    return match["name"] or "", match["digest"]


def job_name(sweep: str, run_id: str, stage: Stage, attempt: int) -> str:
    """The one name of an attempt's Job: DNS-1123, ≤ 52 characters; another sweep, digest, stage or attempt
    has another name.

    Raises ValueError for a sweep name, run id or attempt (0 … 9999) that no checked sweep can have.
    """
    if len(sweep) > SWEEP_NAME_LIMIT or not re.fullmatch(SWEEP_NAME, sweep):
        raise ValueError(f"sweep name: must match {SWEEP_NAME}, at most {SWEEP_NAME_LIMIT}, got {sweep!r}")
    if not 0 <= attempt <= MAX_ATTEMPT:
        raise ValueError(f"attempt: must be 0 to {MAX_ATTEMPT}, got {attempt}")
    name, digest = split_run_id(run_id)
    end = f"{digest}-{stage}-{attempt}"
    room = JOB_NAME_LIMIT - len(f"{sweep}--{end}") - 1
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[: max(room, 0)].rstrip("-")
    return f"{sweep}--{readable}-{end}" if readable else f"{sweep}--{end}"


def sweep_of(job: str) -> str:
    """The sweep in a Job's name: a sweep's own name holds no double dash."""
    return job.partition("--")[0]


def labels(sweep: str, run_id: str, stage: Stage, attempt: int) -> dict[str, str]:
    """Labels of an attempt's Job and pods: sweep, run id, stage, attempt, and that orch made them."""
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_SWEEP: sweep,
        LABEL_RUN: run_id,
        LABEL_STAGE: stage,
        LABEL_ATTEMPT: str(attempt),
    }


def job_annotations(run_id: str, digest: str) -> dict[str, str]:
    """Annotations of an attempt's Job: the exact run id and the whole digest (64 hex) of its config."""
    return {ANNOTATION_RUN: run_id, ANNOTATION_DIGEST: digest}
