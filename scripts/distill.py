"""Distil a teacher into a one-step student: `accelerate launch --config_file FILE -m scripts.distill PRESET`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distill.config import DistillRun
from distill.presets import STUDENTS, summary
from distill.processes import this_process
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class DistillCommand:
    """Distil the student; the same command on the same folder resumes."""

    run: Annotated[DistillRun, tyro.conf.arg(name="")]
    out: Path = Path("runs/demo/student")
    """Run folder: configuration, weights, averages, metrics.jsonl, TensorBoard events."""
    weights_dir: Path | None = None
    """Folder of converted official weights, if the features were made with them and they have been moved since."""


FOLDERS = {"demo": Path("runs/demo/student"), "debug": Path("runs/demo/student")}
"""Run folders of presets that do not write to runs/<name of the preset>."""


def commands() -> dict[str, tuple[str, DistillCommand]]:
    """For every preset, by name, its line of help and its command."""
    return {
        name: (summary(make), DistillCommand(run=make(), out=FOLDERS.get(name, Path("runs") / name)))
        for name, make in STUDENTS.items()
    }


@one_line_errors
def cli() -> None:
    """Entry point."""
    command = tyro.extras.overridable_config_cli(commands(), description=__doc__)
    from distill.tasks import distil  # the loop, TensorBoard and scores take seconds, which --help need not wait for
    from scripts.scores import embedded_scores

    made = distil(command.run, command.out, weights_dir=command.weights_dir, scores=embedded_scores())
    if this_process().main:
        print(f"student in {made}")


if __name__ == "__main__":
    cli()
