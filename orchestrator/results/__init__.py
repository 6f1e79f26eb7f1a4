"""Records → a table that can be trusted. Pure; imports neither the controller nor the cluster."""

from orchestrator.results.collect import Results, Row, Table, collect
from orchestrator.results.export import to_csv, to_json
from orchestrator.results.table import markdown, show

__all__ = ["Results", "Row", "Table", "collect", "markdown", "show", "to_csv", "to_json"]
