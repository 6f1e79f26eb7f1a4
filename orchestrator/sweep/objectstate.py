"""What a stored Sweep has besides its file: the user's commands (`spec.control`) and its status, as schemas.

Written by hand, for the controller's models lie in a layer above; a test holds them together. Bounds are
looser than what is written: one text over its bound would refuse the whole status. Fields that this schema
does not know are kept, so that a newer controller can write to an older definition.
"""

from __future__ import annotations

from typing import Any, Final

from orchestrator.sweep.naming import JOB_NAME_LIMIT
from orchestrator.sweep.spec import MAX_RUNS

Schema = dict[str, Any]

_KEEP = {"x-kubernetes-preserve-unknown-fields": True}
_ATOMIC_MAP = {"x-kubernetes-map-type": "atomic"}
MAX_EVALS = 100


def _text(limit: int, description: str = "") -> Schema:
    return {**_said(description), "type": "string", "maxLength": limit}


def _list(items: Schema, limit: int, description: str) -> Schema:
    return {
        **_said(description),
        "type": "array",
        "maxItems": limit,
        "items": items,
        "x-kubernetes-list-type": "atomic",
    }


def _number(kind: str, description: str) -> Schema:
    return {**_said(description), "type": kind}


def _said(description: str) -> Schema:
    return {"description": description} if description else {}


_EVAL: Schema = {
    "type": "object",
    "properties": {
        "tasks": _list(_text(200), 32, "lm-eval tasks instead of the sweep's."),
        "limit": {"description": "Items per task.", "type": "integer", "minimum": 1, "maximum": 1_000_000},
        "evalTeacher": _number("boolean", "Measure the teacher too. Default: true."),
    },
    **_ATOMIC_MAP,
}

CONTROL: Final[Schema] = {
    "description": "Commands of `orch suspend`, `cancel`, `retry`, `eval` and `submit --prune`. Not part of "
    "a sweep file, nor of what a sweep is.",
    "type": "object",
    "properties": {
        "suspend": _number("boolean", "Start no new Job; those that run go on."),
        "cancel": _list(_text(63), MAX_RUNS, "Runs that are ended: run ids, run names, or * for all."),
        "retry": _list(
            _text(JOB_NAME_LIMIT), MAX_RUNS, "Jobs whose failure, and those before, are forgiven."
        ),
        "evals": _list(_EVAL, MAX_EVALS, "Evaluations besides spec.eval."),
        "prune": _number("boolean", "End Jobs of runs that the sweep no longer has."),
    },
    **_ATOMIC_MAP,
}

_CONDITION: Schema = {
    "type": "object",
    "required": ["type", "status"],
    "properties": {
        "type": _text(316, "What it is about: Accepted, Complete, Suspended, Halted."),
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "reason": _text(1024, "Why, in one word."),
        "message": _text(32_768, "Why, for people."),
        "lastTransitionTime": {
            "description": "When its status changed last.",
            "type": "string",
            "format": "date-time",
        },
        "observedGeneration": _number("integer", "The generation of the Sweep that it is about."),
    },
    **_KEEP,
}

_FAILURE: Schema = {
    "type": "object",
    "properties": {
        "run": _text(253, "Run id."),
        "stage": _text(63, "fetch, baseline, train or eval."),
        "attempt": _number("integer", "Which attempt."),
        "class": _text(63, "What kind of failure."),
        "evidence": _text(8192, "What tells so."),
        "remedy": _text(8192, "What followed from it, or what someone can do."),
    },
    **_KEEP,
}

_OWED: Schema = {
    "type": "object",
    "properties": {
        "moment": _text(63, "ended or halted."),
        "reason": _text(1024, "The reason of its condition."),
        "message": _text(32_768, "What is told."),
        "since": _text(63, "Since when it is owed."),
    },
    **_KEEP,
}

STATUS: Final[Schema] = {
    "description": "Where the sweep is. Written by the controller alone; more runs do not make it longer.",
    "type": "object",
    "properties": {
        "observedGeneration": _number("integer", "The generation of the Sweep that this is about."),
        "counts": {
            "description": "Runs by state: total, pending, running, trained, evaluating, done, failed, "
            "cancelled.",
            "type": "object",
            "maxProperties": 64,
            "additionalProperties": {"type": "integer"},
            **_ATOMIC_MAP,
        },
        "conditions": {
            "description": "Accepted, Complete, and what keeps Jobs from starting; the newest is last.",
            "type": "array",
            "maxItems": 32,
            "items": _CONDITION,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
        "active": _number("integer", "Jobs that have not ended."),
        "finished": _number("boolean", "Nothing runs, and nothing will start by itself."),
        "best": {
            "description": "The run with the lowest KL to the teacher.",
            "type": "object",
            "properties": {
                "run": _text(253, "Run id."),
                "kl": _number("number", "KL(teacher ‖ adapter), nats per token."),
                "klStderr": _number("number", "Its standard error."),
            },
            **_KEEP,
        },
        "gpuHours": _number("number", "GPUs × hours of all its pods."),
        "failures": _list(_FAILURE, 100, "The last failures."),
        "owed": _list(_OWED, 100, "Notices that the webhook has not taken yet."),
        "control": _text(64, "Which commands of spec.control were seen."),
    },
    **_KEEP,
}
