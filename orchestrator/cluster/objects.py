"""Sweep objects and attempt records of the local cluster: JSON files, each written whole under one lock."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.base import Change
from orchestrator.cluster.statefiles import checked_name, read_state
from orchestrator.errors import NotFoundError
from trainer.durable import write_json

ADDED = frozenset({"uid", "generation", "createdAt", "annotations"})
"""Metadata that is not the file's; who submitted it first stays."""


@dataclass(frozen=True)
class Objects:
    """Files sweeps/NAME.json and records/SWEEP/JOB.json in `root`; writers hold `lock()`."""

    root: Path
    lock: Callable[[], AbstractContextManager[Any]]

    def sweep_file(self, name: str) -> Path:
        return self.root / "sweeps" / f"{checked_name(name)}.json"

    def put_sweep(self, sweep: Mapping[str, Any]) -> bool:
        """As Cluster.put_sweep; control and status of a stored one stay."""
        name = str(sweep["metadata"]["name"])
        spec = {key: value for key, value in sweep["spec"].items() if key != "control"}
        with self.lock():
            stored = read_state(self.sweep_file(name))
            new = {**sweep, "spec": spec, "metadata": {**sweep["metadata"]}}
            new.pop("status", None)
            if stored is None:
                new["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "createdAt": time.time()}
            else:
                if canonical(_given(stored)) == canonical(_given(new)):
                    return False
                for key in ADDED & stored["metadata"].keys():
                    new["metadata"][key] = stored["metadata"][key]
                new["metadata"]["generation"] += 1
                if "control" in stored["spec"]:
                    new["spec"]["control"] = stored["spec"]["control"]
                new["status"] = stored.get("status", {})
            write_json(self.sweep_file(name), new)
            return True

    def sweeps(self) -> list[dict[str, Any]]:
        """All stored Sweep objects, by name."""
        files = sorted((self.root / "sweeps").glob("[!.]*.json"))
        return [sweep for sweep in map(read_state, files) if sweep is not None]

    def sweep(self, name: str) -> dict[str, Any] | None:
        """The stored Sweep object, None when there is none."""
        stored: dict[str, Any] | None = read_state(self.sweep_file(name))
        return stored

    def put_control(self, name: str, change: Change) -> bool:
        """Change spec.control; False when that changes nothing."""
        return self._replace(name, lambda sweep: sweep["spec"], "control", change)

    def put_status(self, name: str, status: Mapping[str, Any]) -> bool:
        """Replace status; False when it is that already."""
        return self._replace(name, lambda sweep: sweep, "status", lambda _: dict(status))

    def _replace(
        self,
        name: str,
        part: Callable[[dict[str, Any]], dict[str, Any]],
        key: str,
        change: Change,
    ) -> bool:
        with self.lock():
            stored = read_state(self.sweep_file(name))
            if stored is None:
                raise NotFoundError(f"sweep {name}: is not submitted here; submit it with `orch submit FILE`")
            before = part(stored).get(key)
            after = change(dict(before or {}))
            if canonical(before) == canonical(after):
                return False
            part(stored)[key] = after
            write_json(self.sweep_file(name), stored)
            return True

    def records(self, sweep: str) -> dict[str, dict[str, Any]]:
        """Records of a sweep by Job name."""
        files = sorted((self.root / "records" / checked_name(sweep)).glob("[!.]*.json"))
        found = {file.stem: read_state(file) for file in files}
        return {job: record for job, record in found.items() if record is not None}

    def recorded(self, sweep: str, job: str) -> bool:
        """Whether a Job has a record."""
        return self._record_file(sweep, job).exists()

    def put_record(self, sweep: str, job: str, record: Mapping[str, Any]) -> bool:
        """Store a record once; the first writer wins."""
        with self.lock():
            if self.recorded(sweep, job):
                return False
            write_json(self._record_file(sweep, job), record)
            return True

    def _record_file(self, sweep: str, job: str) -> Path:
        return self.root / "records" / checked_name(sweep) / f"{checked_name(job)}.json"


def canonical(value: Any) -> str:
    """JSON in which equal typed values are equal text: 1.0 is 1, but true is not."""
    return json.dumps(_typed(value), sort_keys=True, allow_nan=False)


def _typed(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_typed(item) for item in value]
    return value


def _given(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """What its user wrote: without what the cluster adds."""
    spec = {key: item for key, item in sweep["spec"].items() if key != "control"}
    metadata = {key: item for key, item in sweep["metadata"].items() if key not in ADDED}
    rest = {key: item for key, item in sweep.items() if key not in ("spec", "metadata", "status")}
    return {**rest, "spec": spec, "metadata": metadata}
