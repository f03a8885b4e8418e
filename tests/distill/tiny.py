"""A tiny feature folder and tiny runs on it, shared by the tests of training."""

import json
from dataclasses import replace
from pathlib import Path

from distill.config import EvaluationConfig, Fresh, LoopConfig, OptimConfig, TeacherRun
from distill.presets import STUDENTS
from teacher.features.config import ExtractConfig
from teacher.features.extract import extract
from teacher.lists.manifest import read_manifest
from teacher.network.variants import MMAudioConfig
from teacher.world.render import WorldConfig, render_world

NETWORK = MMAudioConfig(num_heads=1, head_dim=16, joint_depth=1, fused_depth=1, latent_channels=20, mlp_multiple_of=16)
LOOP = LoopConfig(
    steps=3,
    batch_size=4,
    optim=OptimConfig(lr=1e-2, warmup_steps=0),
    ema_std=(0.1, 0.2),
    log_every=1,
    save_every=100,
    evaluation=EvaluationConfig(every=0),
)
METHODS = {
    name: make().method
    for name, make in STUDENTS.items()
    if name not in ("demo", "debug") and not name.startswith("mf-mjt")
}
"""The presets that put another objective in the place of MeanFlow."""


def features(folder: Path, *, seed: int = 0, num_clips: int = 12) -> Path:
    """Features of a procedural world of clips of one second."""
    manifest = render_world(folder / "world", WorldConfig(num_clips=num_clips, seed=seed, duration_s=1.0), workers=0)
    config = ExtractConfig(duration_s=1.0, workers=0)
    extract(read_manifest(manifest), folder / "features", config)
    return folder / "features"


def teacher_run(data: Path, **changes: object) -> TeacherRun:
    """A run of three steps."""
    return replace(TeacherRun(data=(data,), start=Fresh(network=NETWORK, init="unit"), loop=LOOP), **changes)


def losses(run: Path) -> list[float]:
    """The logged loss of every step, rounded to six digits."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
