"""`import teacher`: what stands at the front door, and that nothing is loaded before it is asked for."""

import subprocess
import sys

import pytest

import teacher
from teacher.sampling.pipeline import Pipeline

LIGHT = """
import sys
import teacher, teacher.sampling.stages, eval.speed.budget
assert "torch" not in sys.modules, "torch was imported"
"""


def test_every_name_at_the_front_door_is_there():
    assert {name: getattr(teacher, name).__name__ for name in teacher.__all__} == {n: n for n in teacher.__all__}
    assert teacher.Pipeline is Pipeline
    assert set(teacher.__all__) <= set(dir(teacher))
    with pytest.raises(AttributeError, match="no attribute 'Pipe'"):
        _ = teacher.Pipe


def test_the_front_door_loads_nothing_before_it_is_asked():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_import_of_former_model_cards_still_works():
    """A folder saved before says `from teacher.pipeline import Pipeline` in its README."""
    import teacher
    import teacher.pipeline

    assert teacher.pipeline.Pipeline is teacher.Pipeline
    assert teacher.pipeline.Card is teacher.ModelCard
