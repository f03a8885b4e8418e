"""One curve, whatever computes it: engines, numbers of processes, interruptions. By the real loop, over gloo."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distill.tasks import train_teacher
from teacher.files.errors import SAVED_AND_LEFT
from tests.distill import legs, tiny
from tests.distill.processes import launch

SPREAD = 1e-4
"""Relative difference of losses and gradient norms over 20 steps, between sums in another order. Rounding of 1e-7 grows
where Adam divides small gradients by their own size; 1e-2 as learning rate makes it 1e-2 by step 20, 1e-3 far less."""


def deepspeed(stage: int) -> dict[str, str]:
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}


ENGINES = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero1": deepspeed(1),
    "zero2": deepspeed(2),
    "zero3": deepspeed(3),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Features and a teacher, and per method the curve of a single process that nobody stopped."""
    folder = tmp_path_factory.mktemp("given")
    data = tiny.features(folder)
    start = {"data": str(data), "teacher": str(train_teacher(tiny.teacher_run(data), folder / "teacher"))}
    curves = {}

    def of(method):
        if method not in curves:
            run = folder / method
            assert legs.run(**start, method=method, legs=[{"run": str(run), "until": None}]) == [0]
            curves[method] = curve(run)
        return start | {"method": method}, curves[method]

    return of


def curve(run: Path) -> list[float]:
    """error and loss of every step; each is logged once, however often the run was stopped."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, legs.STEPS + 1))
    return [line[name] for line in lines for name in ("loss", "error", "error/instantaneous", "norm/gradient")]


def tensors(run: Path) -> dict[str, bytes]:
    folder = run / "trainer" / f"step-{legs.STEPS:07d}"
    files = [load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer", "ema-0.1", "ema-0.2")]
    return {f"{k}.{n}": t.numpy().tobytes() for k, file in enumerate(files) for n, t in file.items()}


SLOW = [(engine, "meanflow") for engine in ENGINES if engine != "zero2"]
SLOW += [(engine, "consistency") for engine in ("ddp", "fsdp2", "zero2", "zero3")]


@pytest.mark.parametrize(
    ("engine", "method"), [("zero2", "meanflow"), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_one_curve(given, tmp_path, engine, method):
    """Two processes follow one; stopped after 10 steps they go on bit for bit; and 2 -> 1 -> 2 processes follow too."""
    start, alone = given(method)
    straight, stopped, changing = (tmp_path / name for name in ("straight", "stopped", "changing"))

    def leg(run, until=None):
        return {"run": str(run), "until": until}

    first = [leg(straight), leg(stopped, 10), leg(stopped), leg(changing, 7)]
    statuses = launch("tests.distill.legs:run", start | {"legs": first}, environment=ENGINES[engine])
    assert statuses == [[0, SAVED_AND_LEFT, 0, SAVED_AND_LEFT]] * 2
    assert curve(straight) == pytest.approx(alone, rel=SPREAD)
    assert curve(stopped) == curve(straight)
    assert tensors(stopped) == tensors(straight)

    assert legs.run(**start, legs=[leg(changing, 14)]) == [SAVED_AND_LEFT]  # alone, and without that engine
    last = launch("tests.distill.legs:run", start | {"legs": [leg(changing)]}, environment=ENGINES[engine])
    assert last == [[0], [0]]
    assert curve(changing) == pytest.approx(alone, rel=SPREAD)


@pytest.mark.parametrize("method", ["consistency", "terminal"])
def test_targets_of_averaged_weights_come_back(given, tmp_path, method):
    """A run whose targets come from averaged weights, stopped after 7 steps, goes on bit for bit."""
    start, alone = given(method)
    stopped = tmp_path / "stopped"
    assert legs.run(**start, legs=[{"run": str(stopped), "until": 7}, {"run": str(stopped), "until": None}]) == [
        SAVED_AND_LEFT,
        0,
    ]
    assert curve(stopped) == alone
