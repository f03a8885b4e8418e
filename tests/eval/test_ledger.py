"""Figures come from the ledger: documents say what it says, and what is recorded is read back and rendered."""

import json
import math
import re
import subprocess
from pathlib import Path

import pytest

from eval import ledger
from eval.compare.rows import Row
from eval.ledger import Entry, Table, quoted, record, render
from eval.report.summary import over_trainings, what_one_step_is_worth
from scripts.tables import documents

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"


def test_documents_say_what_the_ledger_says():
    for path in documents(ROOT):
        text = path.read_text(encoding="utf-8")
        assert render(text, RESULTS) == text, f"{path}: run `make tables`"


def test_every_entry_is_quoted_and_says_where_it_comes_from():
    named = set().union(*(quoted(path.read_text(encoding="utf-8")) for path in documents(ROOT)))
    entries = {path.stem: Entry.read(path) for path in RESULTS.glob("*.json")}
    assert set(entries) == named
    for name, entry in entries.items():
        assert re.fullmatch(r"[0-9a-f]{40}", entry.commit), name
        assert entry.modified is False, f"{name} was recorded with changes that no commit holds"
        assert entry.machine["device"], name
        assert entry.versions["torch"], name
        assert entry.command.startswith(("python -m ", "OMP_NUM_THREADS=")), name


def test_markdown():
    table = Table(columns=("a", "b", "c"), formats=("", ".2f", ".1f"), rows=(("x", 1.005, [2.0, 0.25]), ("y", None, 3)))
    assert table.markdown() == "| a | b | c |\n|---|---|---|\n| x | 1.00 | 2.0 ± 0.2 |\n| y |  | 3.0 |"
    with pytest.raises(ValueError, match="as many formats"):
        Table(columns=("a",), formats=(), rows=())


def test_what_is_recorded_is_read_and_rendered(tmp_path):
    table = Table(columns=("n",), formats=("d",), rows=((3,),))
    made = record(tmp_path / "t.json", tables={"n": table}, text={"said": "So it is.\n"}, seeds={"training": [0, 1]})
    assert Entry.read(tmp_path / "t.json").tables == made.tables
    text = "before\n<!-- results t n said -->\nold\n<!-- end of results -->\nafter"
    assert render(text, tmp_path) == (
        "before\n<!-- results t n said -->\n| n |\n|---|\n| 3 |\n\nSo it is.\n<!-- end of results -->\nafter"
    )
    assert render(render(text, tmp_path), tmp_path) == render(text, tmp_path)
    assert quoted(text) == {"t"}
    shown = render(text.replace("n said", "source"), tmp_path)
    assert max(map(len, shown.splitlines())) <= 120
    assert "".join(made.command.split()) in "".join(shown.split())


END = "<!-- end of results -->"


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (f"<!-- results u n -->\n{END}", "has no"),
        (f"<!-- results t m -->\n{END}", "'m'"),
        ("<!-- results t n -->\n", "no end"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, block, words):
    record(tmp_path / "t.json", tables={"n": Table(columns=("n",), formats=("",), rows=())})
    with pytest.raises(ValueError, match=words):
        render(block, tmp_path)


def test_numbers_that_are_none_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        record(tmp_path / "t.json", tables={"n": Table(columns=("n",), formats=("",), rows=((math.nan,),))})
    assert not (tmp_path / "t.json").exists()


def test_a_damaged_entry_is_named(tmp_path):
    for plain in ({"format": 2}, {"format": 1}, {"format": 1, "tables": []}):
        (tmp_path / "t.json").write_text(json.dumps(plain))
        with pytest.raises(ValueError, match=r"t\.json is no entry"):
            Entry.read(tmp_path / "t.json")


def test_the_commit_is_that_of_this_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert ledger._commit()[0] == head.stdout.strip()


def row(model, steps, frechet, seed=0, kind=None):
    scores = {"frechet": frechet, "kl": 1.0, "inception_score": 2.0, "onset_f1": 0.5}
    return Row(
        task="vta", model=model, steps=steps, seed=seed, nfe=2 * steps, guidance=1.4, metrics=scores, num_clips=4,
        config_digest="x", run_id="r", command="c", kind=kind, rtf={"flow network": 0.5 * steps, "video-to-audio": 1.0},
    )  # fmt: skip


def training(student, offset=0.0):
    teacher = [row("teacher", n, f + offset, s) for n, f in ((1, 70.0), (2, 40.0), (25, 38.0)) for s in (0, 1)]
    return [*teacher, *(row("student", 1, student + d, s) for d, s in ((-1.0, 0), (1.0, 1))), row("codec", 0, 26.0)]


def test_results_over_trainings():
    """Student 50 -+ 1 and 60 -+ 1: mean 55, sample deviation sqrt((36 + 16 + 16 + 36) / 3) = sqrt(104 / 3)."""
    table = over_trainings([training(50.0), training(60.0)], "vta")
    lines = {(line[0], line[1]): dict(zip(table.columns, line, strict=True)) for line in table.rows}
    student = lines["student", 1]
    assert student["FD ↓"] == pytest.approx([55.0, math.sqrt(104 / 3)])
    assert student["FD by training"] == "50.0 / 60.0"
    assert student["evaluations"] == 2
    assert student["RTF, flow network"] == 0.5
    assert lines["teacher", 25]["FD ↓"] == [38.0, 0.0]
    assert lines["codec round trip", None]["FD ↓"] == 26.0
    with pytest.raises(ValueError, match="same steps"):
        over_trainings([training(50.0), training(50.0)[2:]], "vta")


def test_sentences_say_whichever_way_it_comes_out():
    said = what_one_step_is_worth([training(50.0), training(60.0)], "vta")
    assert "(2 evaluations) has an FD 0.71 and 0.86 times that of the teacher's 1" in said
    assert "1.32 and 1.58 times that of the teacher's 25 steps" in said
    assert "The teacher is better in every training at 2, 25 steps (4 evaluations at 2)." in said
    assert "The student is better in every training than the teacher at 1 step." in said
    assert "teacher is better" not in what_one_step_is_worth([training(30.0)], "vta")
    assert what_one_step_is_worth([[row("codec", 0, 26.0)]], "vta") == ""
