"""Run → Job manifest: Jinja with JSON scalars, an overlay in code, then the schema and the policy."""

from orchestrator.render.render import DUMP_MOUNT as DUMP_MOUNT
from orchestrator.render.render import MODELS_MOUNT as MODELS_MOUNT
from orchestrator.render.render import READY_FILE as READY_FILE
from orchestrator.render.render import STAGES as STAGES
from orchestrator.render.render import JobRequest as JobRequest
from orchestrator.render.render import render_job as render_job
from orchestrator.render.schema import schema_faults as schema_faults
