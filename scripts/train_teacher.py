"""Train the flow-matching teacher on extracted features. Start it with `accelerate launch -m scripts.train_teacher`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distill.config import TeacherRun
from distill.presets import teacher_debug, teacher_demo, teacher_small_16k
from distill.runs import train_teacher
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """Train the teacher; the same command on the same folder resumes."""

    run: Annotated[TeacherRun, tyro.conf.arg(name="")]
    out: Path = Path("runs/demo/teacher")
    """Run folder: configuration, weights, averages, metrics.jsonl, TensorBoard events."""


PRESETS = {
    name: (preset.__doc__ or "", TrainTeacher(run=preset()))
    for name, preset in {"demo": teacher_demo, "small-16k": teacher_small_16k, "debug": teacher_debug}.items()
}


@one_line_errors
def cli() -> None:
    """Entry point."""
    command = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
    print(f"teacher in {train_teacher(command.run, command.out)}")


if __name__ == "__main__":
    cli()
