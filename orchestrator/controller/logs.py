"""Log lines as JSON, one object each: what log collectors of a cluster read."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

EXTRA = ("sweep", "job")
"""Fields that a line may carry besides its message."""


class JsonLines(logging.Formatter):
    """`{"time": …, "level": "info", "logger": …, "message": …, "sweep": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        value: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        value |= {name: getattr(record, name) for name in EXTRA if hasattr(record, name)}
        if record.exc_info:
            value["trace"] = self.formatException(record.exc_info)
        return json.dumps(value, ensure_ascii=False)


def setup() -> None:
    """Send everything from INFO on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
