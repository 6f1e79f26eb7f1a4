"""An image in an OCI layout, read without an engine: its configuration and what lies in each layer."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layer:
    """Sizes in bytes by path, without a leading slash; folders are left out."""

    blob: Path
    files: dict[str, int]

    @property
    def size(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True)
class Image:
    """`config` is the image's configuration file: config, history, rootfs."""

    config: dict[str, Any]
    layers: list[Layer]

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)


def read_image(folder: Path) -> Image:
    """The image that build.sh wrote into a folder; FileNotFoundError where there is none."""
    document = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    while "manifests" in document:  # docker nests indexes
        document = _json(folder, document["manifests"][0])
    return Image(_json(folder, document["config"]), [_layer(folder, one) for one in document["layers"]])


def unpack(image: Image, folder: Path) -> None:
    """Lay the layers over each other, owners included, which needs root. No layer of ours deletes a file."""
    for layer in image.layers:
        with tarfile.open(layer.blob) as archive:
            archive.extractall(folder, numeric_owner=True, filter="fully_trusted")


def _layer(folder: Path, descriptor: dict[str, Any]) -> Layer:
    blob = _blob(folder, descriptor)
    with tarfile.open(blob) as archive:
        return Layer(blob, {one.name.removeprefix("./"): one.size for one in archive if not one.isdir()})


def _json(folder: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_blob(folder, descriptor).read_bytes())
    return document


def _blob(folder: Path, descriptor: dict[str, Any]) -> Path:
    return folder / "blobs" / str(descriptor["digest"]).replace(":", "/")
