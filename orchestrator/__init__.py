"""Sweep YAML to Kubernetes Jobs to a table of results; never imports torch, never the heavy trainer.

Imports go one way: cli → controller, results → render, cluster → sweep → trainer's torch-free contract.
"""

__version__ = "0.1.0"
"""As in pyproject.toml (a test compares): images hold no package metadata."""
