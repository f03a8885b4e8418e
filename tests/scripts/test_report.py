"""`mf-report` turns rows into a page and into tables and figures for a paper, without the networks."""

import subprocess
import sys

import pytest

from scripts.report import report
from teacher.files.lines import append_lines
from tests.eval.report.comparison import row

HEAVY = (
    "torch",
    "av",
    "transformers",
    "matplotlib",
    "scipy.linalg",
    "scipy.stats",
    "soundfile",
    "PIL",
    "safetensors.torch",
)
OWN = ("meanflow", "teacher", "distill", "eval", "scripts")


def test_the_command_imports_no_network_and_about_thirty_modules_of_ours():
    """Beside them one for each metric that METRICS declares."""
    code = "import sys, scripts.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = done.stdout.split()
    assert not set(HEAVY) & set(modules)
    own = [name for name in modules if name.split(".")[0] in OWN and not name.startswith("eval.metrics.")]
    assert len(own) <= 40, own


def test_everything_is_written_beside_the_rows(tmp_path, capsys):
    append_lines(tmp_path / "rows.jsonl", [row().to_json(), row("student", 1).to_json()])
    report(tmp_path / "rows.jsonl")
    names = {"report.html", "results.md", "paper.tex", "paper.md"}
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", *names}
    report(tmp_path / "rows.jsonl", figures=True)
    figures = sorted(path.suffix for path in (tmp_path / "figures").iterdir())
    assert figures == [".md", *[".pdf"] * 3, *[".svg"] * 3]
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert f"wrote 6 figures and their captions to {tmp_path / 'figures'}" in out


def test_a_changed_line_is_pointed_at_and_options_that_miss_another_are_refused(tmp_path, capsys):
    line = row().to_json()
    append_lines(tmp_path / "rows.jsonl", [f'{line[:-1]}, "check": "00000000"}}'])
    report(tmp_path / "rows.jsonl")
    assert "rows.jsonl, line 1 is not as the comparison wrote it" in capsys.readouterr().out
    with pytest.raises(ValueError, match="needs --data too"):
        report(tmp_path / "rows.jsonl", runs=(tmp_path,))
    with pytest.raises(ValueError, match="run the comparison first"):
        report(tmp_path / "absent.jsonl")
