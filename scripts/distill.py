"""Distil a trained teacher into a one-step student. Start it with `accelerate launch -m scripts.distill`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distill.config import DistillConfig
from distill.methods import METHODS
from distill.presets import student_debug, student_demo, student_mf_mjt
from distill.runs import train
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Distil:
    """Distil the student; the same command on the same folder resumes."""

    run: Annotated[DistillConfig, tyro.conf.arg(name="")]
    out: Path = Path("runs/demo/student")
    """Run folder: configuration, weights, averages, metrics.jsonl, TensorBoard events."""
    weights_dir: Path | None = None
    """Folder of converted official weights, where the features come from them and they lie elsewhere by now."""


def _presets() -> dict[str, tuple[str, Distil]]:
    """Recipes by name: the demo's, the full-scale one, and every other objective in its place."""
    own = {"demo": student_demo, "mf-mjt": student_mf_mjt, "debug": student_debug}
    table = {name: ((make.__doc__ or "").strip().splitlines()[0], Distil(run=make())) for name, make in own.items()}
    for name, method in METHODS.items():
        table[name] = (method.says, Distil(run=method.run(), out=Path("runs") / name))
    return table


PRESETS = _presets()


@one_line_errors
def cli() -> None:
    """Entry point."""
    command = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
    print(f"student in {train(command.run, command.out, weights_dir=command.weights_dir)}")


if __name__ == "__main__":
    cli()
