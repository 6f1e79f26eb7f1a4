"""Templates that values cannot break out of: everything printed becomes a JSON scalar.

The only importer of jinja2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import yaml

from orchestrator.errors import RenderError

# YAML reads these as line breaks or refuses them raw, where JSON lets them stand.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class _Json(str):
    """Text that is JSON already."""

    __slots__ = ()


def to_json(value: Any) -> str:
    """A JSON scalar that YAML reads as the same value; TypeError for lists, maps, objects and undefined."""
    if isinstance(value, _Json):
        return value
    if isinstance(value, jinja2.Undefined):
        value = str(value)  # raises, and names what is undefined
    if not isinstance(value, (str, bool, int, float)):
        raise TypeError(f"template: must emit text, numbers or booleans, got {type(value).__name__}")
    return _dump(value)


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # YAML 1.1 reads 1e-05 as text: a number there needs its dot.
    if isinstance(value, float) and "." not in text:
        text = text.replace("e", ".0e")
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _json_list(values: Any) -> str:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"template: json_list takes a list, got {type(values).__name__}")
    return _Json(_dump(list(values)))


def _json_map(value: Any) -> str:
    if not isinstance(value, Mapping):
        raise TypeError(f"template: json_map takes a map, got {type(value).__name__}")
    return _Json(_dump(dict(value)))


def manifests_folder() -> Path:
    """The manifests of a source checkout (beside the package) or of an installed wheel (inside it)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "manifests"
    return inside if inside.is_dir() else package.parent / "manifests"


@lru_cache(maxsize=4)
def environment(folder: Path) -> jinja2.Environment:
    """The Jinja environment over the templates in `folder`."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        finalize=to_json,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"json_list": _json_list, "json_map": _json_map}
    return made


def fill(name: str, context: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """The one YAML document that template `name` makes of plain data.

    Raises RenderError when the template is missing, names something undefined or makes no YAML map.
    """
    try:
        text = environment(folder or manifests_folder() / "jobs").get_template(name).render(context)
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except jinja2.TemplateNotFound as error:
        raise RenderError(f"manifests/jobs/{name}: no such template, got {error}") from error
    except (jinja2.TemplateError, TypeError, ValueError, yaml.YAMLError) as error:
        raise RenderError(f"manifests/jobs/{name}: cannot be rendered, got {error}") from error
    if not isinstance(value, dict):
        raise RenderError(f"manifests/jobs/{name}: must make a map, got {type(value).__name__}")
    return value
