"""Folders made by the first house (commit cc7b9e3) still serve: features, runs, a stopped training, a comparison.

tests/golden/house-1.tar.xz was made there: a world of ten clips of one second, its features, a teacher of four steps, a
student stopped after two of its four, its comparison, a sound, and what that commit went on to log and to report.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.config import DistillRun, with_current_names
from distill.tasks import distil
from meanflow.config import from_plain

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(ROOT / "tests" / "golden" / "house-1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(folder, *arguments):
    """A command in a folder; its standard output."""
    command = [sys.executable, "-m", *map(str, arguments)]
    ended = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_recorded_digest_still_agrees(former):
    assert "39 files" in (said := run(former, "scripts.check", "."))
    assert "none damaged" in said


def test_a_sound_is_made_again_from_the_former_student(former):
    run(former, "scripts.sample", "--run", "student", "--prompt", "a ball bounces", "--video", "world/clips/00000.mp4",
        "--out", "again")  # fmt: skip
    before, _ = soundfile.read(former / "sounds" / "00000.flac")
    after, _ = soundfile.read(former / "again" / "00000.flac")
    assert after.shape == before.shape
    # Four steps of training and Griffin-Lim: rounding differs by processor, a wrong weight or clock by the whole sound.
    assert np.linalg.norm(after - before) < 1e-2 * np.linalg.norm(before)


def test_a_training_stopped_then_goes_on_with_the_same_losses(former, monkeypatch):
    """config.json is read under the names it was written with, and the same run is not found to differ."""
    monkeypatch.chdir(former)
    plain = with_current_names(json.loads(Path("student/config.json").read_text())["run"])
    distil(from_plain(DistillRun, plain), Path("student"))
    logged = [json.loads(line) for line in Path("student/metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in Path("expected-metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4]
    for name in ("loss", "error", "norm/u", "norm/v", "norm/correction", "norm/gradient"):
        # float32 through four small steps: processors differ in the sixth digit, the log has six decimals.
        assert [entry[name] for entry in logged] == pytest.approx([entry[name] for entry in expected], rel=1e-3)


def test_cells_of_the_former_comparison_agree(former):
    said = run(former, "scripts.verify", "--rows", "compared/rows.jsonl", "--all", "--data", "features")
    assert "0 differ" in said


def test_the_former_rows_give_the_same_tables(former):
    run(former, "scripts.report", "--rows", "compared/rows.jsonl")
    numbers = [_tables((former / name).read_text()) for name in ("expected-results.md", "compared/results.md")]
    assert numbers[0] == numbers[1]


def _tables(markdown):
    """The numbers of every row of a table; heads and verdicts are words, which may change."""
    return [re.findall(r"[+−-]?\d+(?:\.\d+)?", line) for line in markdown.splitlines() if line.startswith("|")]
