"""The reference page."""

from pathlib import Path

from orchestrator.sweep.params import PARAMS
from orchestrator.sweep.reference import SECTIONS, page

PAGE = Path(__file__).parents[3] / "docs" / "sweeps.md"


def test_page_in_docs_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python -m orchestrator.sweep.reference > docs/sweeps.md"
    )


def test_page_names_every_field_and_param():
    text = page()
    names = [name for _, model in SECTIONS for name in model.model_fields]
    assert [name for name in (*names, *PARAMS) if f"| `{name}` |" not in text] == []
