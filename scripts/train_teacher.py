"""Train the teacher on extracted features: `accelerate launch --config_file FILE -m scripts.train_teacher PRESET`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distill.config import TeacherRun
from distill.presets import (
    PUBLISHED,
    teacher_debug,
    teacher_demo,
    teacher_finetune,
    teacher_lora,
    teacher_published,
)
from distill.presets.ablations import ABLATIONS, ablation
from distill.processes import this_process
from distill.tasks import train_teacher
from scripts.errors import one_line_errors
from scripts.scores import embedded_scores


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """Train the teacher; the same command on the same folder resumes."""

    run: Annotated[TeacherRun, tyro.conf.arg(name="")]
    out: Path = Path("runs/demo/teacher")
    """Run folder: configuration, weights, averages, metrics.jsonl, TensorBoard events."""
    weights_dir: Path | None = None
    """Folder of converted official weights, where the features come from them and they lie elsewhere by now."""


def _presets() -> dict[str, tuple[str, TrainTeacher]]:
    """Recipes by name: the demo's, the published sizes, own data, and the paper's comparisons."""
    demo = {"demo": teacher_demo, "debug": teacher_debug}
    own = {"finetune": teacher_finetune, "lora": teacher_lora}
    table = {name: (_first_line(make), TrainTeacher(run=make())) for name, make in demo.items()}
    for variant in PUBLISHED:
        name = variant.replace("_", "-")
        text = f"MMAudio {variant} as published: batch 512, 300,000 steps."
        table[name] = (text, TrainTeacher(run=teacher_published(variant), out=Path("runs") / name))
    for name, make in own.items():
        table[name] = (_first_line(make), TrainTeacher(run=make(), out=Path("runs/own") / name))
    for name, entry in ABLATIONS.items():
        text, out = f"small-16k as published but for one thing: {entry.says}.", Path("runs") / f"ablate-{name}"
        table[f"ablate-{name}"] = (text, TrainTeacher(run=ablation(name), out=out))
    return table


def _first_line(make: Callable[[], TeacherRun]) -> str:
    return (make.__doc__ or "").strip().splitlines()[0]


PRESETS = _presets()


@one_line_errors
def cli() -> None:
    """Entry point."""
    command = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
    made = train_teacher(command.run, command.out, weights_dir=command.weights_dir, scores=embedded_scores())
    if this_process().main:
        print(f"teacher in {made}")


if __name__ == "__main__":
    cli()
