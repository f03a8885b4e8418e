"""A short siege; the long one is a command (see kill.py)."""

import os
import re
import subprocess
import sys

import pytest

from tests.distill.processes import ROOT


@pytest.mark.parametrize(
    ("kills", "processes"), [(6, 1), pytest.param(6, 2, marks=pytest.mark.slow)], ids=["one", "two"]
)
def test_killed_runs_end_like_the_untouched_one(kills, processes):
    command = [sys.executable, "-m", "tests.stress.kill", "--kills", str(kills), "--processes", str(processes)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(
        r"(\d+) kills of \d process.*: (\d+) left a checkpoint, \d+ an unfinished one; (\d+) runs ended", done.stdout
    )
    assert found, done.stdout
    struck, resumed, ended = map(int, found.groups())
    assert struck >= kills
    assert resumed >= 1
    assert ended >= 1
