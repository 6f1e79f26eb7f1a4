"""Quantities, against the official client's own reader."""

from __future__ import annotations

import pytest
from kubernetes.utils.quantity import parse_quantity

from orchestrator.sweep.quantity import cpu_quantity, memory_bytes, memory_quantity, read_quantity

GI = 2**30


@pytest.mark.parametrize(
    "text", ["4", "0.5", "500m", "1.5", "64Gi", "1.5Gi", "100M", "7k", "3Ti", "2Ei", "9E", "8P"]
)
def test_every_spelling_is_read_as_the_official_client_reads_it(text: str) -> None:
    assert read_quantity(text) == parse_quantity(text)


@pytest.mark.parametrize("text", ["8GB", "", "Gi", "-1", "1e3", "4 Gi", "0x4"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number with a unit, got"):
        read_quantity(text)


@pytest.mark.parametrize(
    ("size", "text"), [(8 * GI, "8Gi"), (2**40, "1Ti"), (GI + 1, "1025Mi"), (3 * GI // 2, "1536Mi")]
)
def test_memory_is_written_in_the_largest_whole_unit(size: int, text: str) -> None:
    assert memory_quantity(size) == text
    assert size <= memory_bytes(text) < size + 2**20


@pytest.mark.parametrize(("cores", "text"), [(4.0, "4"), (0.5, "500m"), (1.25, "1250m")])
def test_cores_are_written_whole_or_in_thousandths(cores: float, text: str) -> None:
    assert cpu_quantity(cores) == text
    assert float(read_quantity(text)) == cores
