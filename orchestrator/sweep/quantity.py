"""Kubernetes quantities: read in every spelling without an exponent, written in the one orch uses.

The official client's reader is exact too, but its import takes seconds.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

_BINARY = {f"{prefix}i": 2 ** (10 * power) for power, prefix in enumerate("KMGTPE", 1)}
_DECIMAL = {prefix: 1000**power for power, prefix in enumerate(("", "k", "M", "G", "T", "P", "E"))}
_FACTORS: dict[str, Decimal | int] = {"m": Decimal("0.001")} | _DECIMAL | _BINARY
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)")


def read_quantity(text: str) -> Decimal:
    """The number a quantity is: 500m → 0.5, 4Gi → 4294967296. ValueError for what is none."""
    found = _QUANTITY.fullmatch(text)
    if not found or found[2] not in _FACTORS:
        raise ValueError(f"quantity: must be a number with a unit, got {text!r}; write 64Gi, 4 or 500m")
    return Decimal(found[1]) * _FACTORS[found[2]]


def memory_bytes(text: str) -> int:
    """Whole bytes of a quantity, rounded up. ValueError for what is none."""
    return math.ceil(read_quantity(text))


def memory_quantity(size: int) -> str:
    """Bytes in whole Mi, Gi or Ti, rounded up to a Mi: 12884901888 → 12Gi."""
    size = -(-size // _BINARY["Mi"]) * _BINARY["Mi"]
    unit = next(unit for unit in ("Ti", "Gi", "Mi") if size % _BINARY[unit] == 0)
    return f"{size // _BINARY[unit]}{unit}"


def cpu_quantity(cores: float) -> str:
    """Cores whole or in thousandths: 4.0 → 4, 0.5 → 500m."""
    return str(int(cores)) if cores == int(cores) else f"{round(cores * 1000)}m"
