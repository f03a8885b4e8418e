"""cross-check.json: values computed twice stand on the page, each metric with the pair that differs most."""

import json

import pytest

from eval.report.cross_check import read_cross_check
from tests.eval.report.comparison import page_of, row


def checked(model, steps, ours, theirs):
    return {"task": "vta", "model": model, "steps": steps, "guidance": 1.4, "seed": 0, "metric": "frechet",
            "ours": ours, "theirs": theirs}  # fmt: skip


def test_the_pair_that_differs_most_is_shown_for_each_metric(tmp_path):
    rows = [checked("teacher", 25, 10.0, 10.0), checked("student", 1, 4.0, 5), checked("gone", 1, 1.0, 9.0)]
    rows += [checked("student", 1, 3.0, 9.0)]  # of a row that was made again since
    plain = {"package": "torch-fidelity 0.4.0", "rows": rows}
    (tmp_path / "cross-check.json").write_text(json.dumps(plain))
    page, markdown = page_of(tmp_path, [row(), row("student", 1, metrics={"frechet": 4.0})])
    assert "| Score | Values | Ours | torch-fidelity 0.4.0 | Largest difference | In |" in markdown
    assert "| FD (embedded) | 2 | 4 | 5 | 1.00 | Student, 1 step, seed 0 |" in markdown
    assert "Cross-check by torch-fidelity 0.4.0</summary>" in page


def test_without_the_file_nothing_is_said_and_a_damaged_one_is_named(tmp_path):
    assert read_cross_check(tmp_path / "cross-check.json") is None
    assert "Cross-check" not in page_of(tmp_path, [row()])[1]
    for text in ("[]", "{", '{"package": "x", "rows": [{"task": "vta"}]}'):
        (tmp_path / "cross-check.json").write_text(text)
        with pytest.raises(ValueError, match=r"cross-check\.json is not a cross-check"):
            read_cross_check(tmp_path / "cross-check.json")
