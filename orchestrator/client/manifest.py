"""`orch render`: the Kubernetes manifest of one run's first attempt."""

from __future__ import annotations

from pathlib import Path

import yaml

from orchestrator.client.session import Stored, find
from orchestrator.controller.requests import train_request
from orchestrator.controller.retry import Overrides
from orchestrator.profile import Profile
from orchestrator.render import render_job
from orchestrator.sweep.expand import expand
from orchestrator.sweep.load import load


def manifest(profile: Profile, file: Path, text: str) -> str:
    """The YAML of the Job that run `text` of a sweep file becomes. UserError or RenderError."""
    sweep = load(file)
    found = find(text, [Stored({}, sweep, expand(sweep, str(file)))])
    request = train_request(sweep, None, found.run, 1, Overrides())
    return yaml.safe_dump(render_job(request, profile), sort_keys=False, width=1000)
