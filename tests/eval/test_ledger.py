"""Figures come from the ledger: documents say what it says, and what is recorded is read back and rendered."""

import json
import math
import re
import subprocess
from pathlib import Path

import pytest

from eval import ledger
from eval.ledger import LedgerEntry, NumberTable, quoted, record, render
from scripts.tables import documents

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"


def test_documents_say_what_the_ledger_says():
    for path in documents(ROOT):
        text = path.read_text(encoding="utf-8")
        assert render(text, RESULTS) == text, f"{path}: run `make tables`"


def test_every_entry_is_quoted_and_says_where_it_comes_from():
    named = set().union(*(quoted(path.read_text(encoding="utf-8")) for path in documents(ROOT)))
    entries = {path.stem: LedgerEntry.read(path) for path in RESULTS.glob("*.json")}
    assert set(entries) == named
    for name, entry in entries.items():
        assert re.fullmatch(r"[0-9a-f]{40}", entry.commit), name
        assert entry.modified is False, f"{name} was recorded with changes that no commit holds"
        assert entry.machine["device"], name
        assert entry.versions["torch"], name
        assert entry.command.startswith(("python -m ", "OMP_NUM_THREADS=")), name


def test_markdown():
    table = NumberTable(
        columns=("a", "b", "c"), formats=("", ".2f", ".1f"), rows=(("x", 1.005, [2.0, 0.25]), ("y", None, 3))
    )
    assert table.markdown() == "| a | b | c |\n|---|---|---|\n| x | 1.00 | 2.0 ± 0.2 |\n| y |  | 3.0 |"
    with pytest.raises(ValueError, match="as many formats"):
        NumberTable(columns=("a",), formats=(), rows=())


def test_what_is_recorded_is_read_and_rendered(tmp_path):
    table = NumberTable(columns=("n",), formats=("d",), rows=((3,),))
    made = record(tmp_path / "t.json", tables={"n": table}, text={"said": "So it is.\n"}, seeds={"training": [0, 1]})
    assert LedgerEntry.read(tmp_path / "t.json").tables == made.tables
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
    record(tmp_path / "t.json", tables={"n": NumberTable(columns=("n",), formats=("",), rows=())})
    with pytest.raises(ValueError, match=words):
        render(block, tmp_path)


def test_numbers_that_are_none_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        record(tmp_path / "t.json", tables={"n": NumberTable(columns=("n",), formats=("",), rows=((math.nan,),))})
    assert not (tmp_path / "t.json").exists()


def test_a_damaged_entry_is_named(tmp_path):
    for plain in ({"format": 2}, {"format": 1}, {"format": 1, "tables": []}):
        (tmp_path / "t.json").write_text(json.dumps(plain))
        with pytest.raises(ValueError, match=r"t\.json is no entry"):
            LedgerEntry.read(tmp_path / "t.json")


def test_the_commit_is_that_of_this_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert ledger._commit()[0] == head.stdout.strip()
