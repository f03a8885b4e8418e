"""Train the teacher on extracted features: `accelerate launch --config_file FILE -m scripts.train_teacher PRESET`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distill.config import TeacherRun
from distill.presets import TEACHERS, summary
from distill.processes import this_process
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """Train the teacher; the same command on the same folder resumes."""

    run: Annotated[TeacherRun, tyro.conf.arg(name="")]
    out: Path = Path("runs/demo/teacher")
    """Run folder: configuration, weights, averages, metrics.jsonl, TensorBoard events."""
    weights_dir: Path | None = None
    """Folder of converted official weights, if the features were made with them and they have been moved since."""


FOLDERS = {
    "demo": Path("runs/demo/teacher"),
    "debug": Path("runs/demo/teacher"),
    "finetune": Path("runs/own/finetune"),
    "lora": Path("runs/own/lora"),
}
"""Run folders of presets that do not write to runs/<name of the preset>."""


def commands() -> dict[str, tuple[str, TrainTeacher]]:
    """For every preset, by name, its line of help and its command."""
    return {
        name: (summary(make), TrainTeacher(run=make(), out=FOLDERS.get(name, Path("runs") / name)))
        for name, make in TEACHERS.items()
    }


@one_line_errors
def cli() -> None:
    """Entry point."""
    command = tyro.extras.overridable_config_cli(commands(), description=__doc__)
    from distill.tasks import (
        train_teacher,
    )  # the loop, TensorBoard and scores take seconds, which --help need not wait for
    from scripts.scores import embedded_scores

    made = train_teacher(command.run, command.out, weights_dir=command.weights_dir, scores=embedded_scores())
    if this_process().main:
        print(f"teacher in {made}")


if __name__ == "__main__":
    cli()
