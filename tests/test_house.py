"""benchmarks.house counts from the syntax, and a trip holds the files of which a function ran, not those imported."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.house import count

HOUSE = Path(__file__).resolve().parents[1] / "benchmarks" / "house.py"


def test_counts_are_of_public_names_and_of_every_function(tmp_path):
    (tmp_path / "a.py").write_text("class A:\n    def f(self):\n        return 1\n\n\ndef _g():\n    return 2\n")
    (tmp_path / "b.py").write_text("def h(x):\n    y = x\n    y += 1\n    return y\n")
    found = count([tmp_path / "a.py", tmp_path / "b.py"])
    assert (found.files, found.lines, found.classes, found.functions) == (2, 11, 1, 1)
    assert (found.median, found.max) == (2, 4)  # of 2, 2 and 4 lines


def test_a_trip_is_what_runs(tmp_path):
    """scripts.go runs `used`, imports `idle`, and calls `early` while it is being imported."""
    files = {
        "scripts/go.py": "from meanflow import idle, used\nprint(used.f())\n",
        "meanflow/used.py": "from teacher import early\nVALUE = early.f()\n\n\ndef f():\n    return VALUE\n",
        "meanflow/idle.py": "def f():\n    return 0\n",
        "teacher/early.py": "def f():\n    return 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).parent.joinpath("__init__.py").touch()
        (tmp_path / name).write_text(text)
    out = tmp_path / "trip.json"
    command = [sys.executable, str(HOUSE), "--trace", str(out), "scripts.go"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads(out.read_text())["ran"] == ["meanflow/used.py"]
