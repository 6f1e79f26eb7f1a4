"""The official client's models as an offline schema: what the API server would refuse is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


def schema_faults(manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with a batch/v1 Job by the client's strict models; empty when it is valid.

    The first call imports the client's models (seconds).
    """
    from kubernetes.client import V1Job

    try:
        job = V1Job.model_validate(dict(manifest), strict=True)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'][0].lower()}{fault['msg'][1:]}, "
            f"got {fault.get('input')!r}"
            for fault in error.errors(include_url=False)
        ]
    return _misspelt(manifest, job.model_dump(by_alias=True, exclude_none=True), "")


def _misspelt(given: Any, known: Any, path: str) -> list[str]:
    """Fields that the models took under their Python name: the API server knows only camelCase."""
    if isinstance(given, Mapping) and isinstance(known, Mapping):
        faults = [f"{path}{key}: no such field" for key in given if key not in known]
        return faults + [
            fault
            for key in given
            if key in known
            for fault in _misspelt(given[key], known[key], f"{path}{key}.")
        ]
    if isinstance(given, list) and isinstance(known, list):
        pairs = enumerate(zip(given, known, strict=True))
        return [fault for index, (a, b) in pairs for fault in _misspelt(a, b, f"{path}{index}.")]
    return []
