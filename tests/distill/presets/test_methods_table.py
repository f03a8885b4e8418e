"""The table of objectives in docs/methods is what the union, the pages and the presets say."""

from pathlib import Path
from typing import get_args

import pytest

from distill.presets.methods_table import methods_table, render_methods
from meanflow import Objective

PAGES = Path(__file__).parents[3] / "docs" / "methods"


def test_the_document_has_the_table():
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    assert methods_table(PAGES) in text, "run `make tables`"
    assert render_methods(text, PAGES) == text


def test_every_objective_has_a_row_with_its_page_and_presets():
    rows = methods_table(PAGES).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [kind.__name__ for kind in get_args(Objective)]
    split = next(row for row in rows if "SplitMeanFlow" in row)
    assert split == "| `SplitMeanFlow` | `split` | none | 2 | yes | [split-meanflow](split-meanflow.md) |"


def test_an_objective_without_a_page_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"MeanFlow needs a page in .* that names `meanflow/objectives/meanflow.py`"):
        methods_table(tmp_path)


def test_other_documents_stay_as_they_are():
    assert render_methods("no marks", PAGES) == "no marks"
