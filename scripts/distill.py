"""Distil a teacher into a one-step student: `accelerate launch --config_file FILE -m scripts.distill PRESET`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distill.config import DistillRun
from distill.presets import (
    student_debug,
    student_demo,
    student_large_44k_v2,
    student_large_44k_v2_heal,
    student_mf_mjt,
    student_mf_mjt_guided,
    student_mf_mjt_lora,
    student_mf_mjt_unguided,
)
from distill.presets.methods import METHODS
from distill.processes import this_process
from distill.tasks import distil
from scripts.errors import one_line_errors
from scripts.scores import embedded_scores


@dataclass(frozen=True, kw_only=True)
class DistillCommand:
    """Distil the student; the same command on the same folder resumes."""

    run: Annotated[DistillRun, tyro.conf.arg(name="")]
    out: Path = Path("runs/demo/student")
    """Run folder: configuration, weights, averages, metrics.jsonl, TensorBoard events."""
    weights_dir: Path | None = None
    """Folder of converted official weights, where the features come from them and they lie elsewhere by now."""


def _presets() -> dict[str, tuple[str, DistillCommand]]:
    """Recipes by name: the demo's, the full-scale ones, and every other objective in the place of MeanFlow."""
    table = {"demo": _preset(student_demo), "debug": _preset(student_debug)}
    full = {
        "mf-mjt": student_mf_mjt,
        "mf-mjt-unguided": student_mf_mjt_unguided,
        "mf-mjt-guided": student_mf_mjt_guided,
        "mf-mjt-lora": student_mf_mjt_lora,
        "mf-mjt-large-44k-v2-heal": student_large_44k_v2_heal,
        "mf-mjt-large-44k-v2": student_large_44k_v2,
    }
    table |= {name: _preset(make, Path("runs") / name) for name, make in full.items()}
    for name, method in METHODS.items():
        table[name] = (method.says, DistillCommand(run=method.run(), out=Path("runs") / name))
    return table


def _preset(make: Callable[[], DistillRun], out: Path = Path("runs/demo/student")) -> tuple[str, DistillCommand]:
    """What the help says of a recipe, and the recipe."""
    return (make.__doc__ or "").strip().splitlines()[0], DistillCommand(run=make(), out=out)


PRESETS = _presets()


@one_line_errors
def cli() -> None:
    """Entry point."""
    command = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
    made = distil(command.run, command.out, weights_dir=command.weights_dir, scores=embedded_scores())
    if this_process().main:
        print(f"student in {made}")


if __name__ == "__main__":
    cli()
