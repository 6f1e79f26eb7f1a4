"""Volumes that many pods of both nodes write at once: a folder of the machine behind a claim."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.cluster.rig.kubectl import kubectl
from tests.cluster.rig.settings import Rig

OWNER = 10001
"""The user of our images."""
LABEL = "orch.test/namespace"


def create(rig: Rig, namespace: str, claim: str, storage_class: str = "", size: str = "100Gi") -> Path:
    """A ReadWriteMany volume that only NAMESPACE/CLAIM can bind; returns its folder on the machine."""
    name = f"{namespace}-{claim}"
    folder = rig.home / "volumes" / name
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, OWNER, OWNER)
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {LABEL: namespace}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": size},
            "storageClassName": storage_class,
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }
    kubectl(rig, "apply", "-f", "-", input=json.dumps(volume))
    return folder


def claims(rig: Rig, namespace: str) -> list[str]:
    """Claims of a namespace for which a volume was made."""
    listing = kubectl(
        rig, "get", "persistentvolumes", f"--selector={LABEL}={namespace}", "--output=json"
    ).stdout
    return [volume["spec"]["claimRef"]["name"] for volume in json.loads(listing)["items"]]


def delete(rig: Rig, namespace: str, claim: str) -> None:
    """Delete the volume and all that was written to it."""
    name = f"{namespace}-{claim}"
    kubectl(rig, "delete", "persistentvolume", name, "--ignore-not-found")
    shutil.rmtree(rig.home / "volumes" / name, ignore_errors=True)
