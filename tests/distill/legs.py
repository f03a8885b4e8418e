"""Trainings of a few steps by the real loop, inside the processes of a test: straight, stopped, and gone on with."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.config import DistillRun, FromData, FromTeacher, Method, OptimConfig
from distill.loop import fit as loop
from distill.tasks import distil
from meanflow import ConsistencyTraining, MixedGuidance, TerminalVelocity
from meanflow.time_sampling import TimePairs
from tests.distill import tiny

STEPS = 20
OPTIM = OptimConfig(lr=1e-3, adam_eps=1e-5, warmup_steps=0)
"""A large epsilon: without one Adam divides the smallest gradients by themselves, and with them their rounding."""


TIMES = TimePairs(fm_fraction=0.5, full_fraction=0.3)
METHODS = {
    "meanflow": Method(
        times=TIMES, velocity=FromData(mixed=MixedGuidance(omega=0.5, kappa=0.5), predictions="student")
    ),
    "consistency": Method(objective=ConsistencyTraining(), times=TIMES, velocity=FromTeacher()),
    "terminal": Method(objective=TerminalVelocity(), times=TIMES),
}
"""Derivatives on half of the rows, guided by itself; and two whose targets come from averaged weights."""


def distillation(data: Path, teacher: Path, method: str = "meanflow") -> DistillRun:
    """A run of 20 steps, in two passes per process where there are two, of two rows."""
    return DistillRun(
        data=(data,),
        teacher=teacher,
        method=METHODS[method],
        loop=replace(tiny.LOOP, steps=STEPS, batch_size=8, micro_batch=2, save_every=100, optim=OPTIM),
    )


def run(*, data: str, teacher: str, legs: list[dict[str, Any]], method: str = "meanflow") -> list[int]:
    """Train into run folders, one leg after the other; the status each left with.

    A leg is {"run": folder, "until": step or null}: there this process sends itself SIGTERM, as a scheduler does, in
    the middle of the step. In one process out of several that is enough.
    """
    return [_leg(distillation(Path(data), Path(teacher), method), Path(leg["run"]), leg["until"]) for leg in legs]


def _leg(config: DistillRun, run: Path, until: int | None) -> int:
    update = loop._Loop._update

    def interrupted(self: loop._Loop, step: int) -> int:
        if step + 1 == until and (not self.engine.main or self.engine.processes == 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, step)

    loop._Loop._update = interrupted  # type: ignore[method-assign]
    try:
        distil(config, run)
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        loop._Loop._update = update  # type: ignore[method-assign]
    return 0
