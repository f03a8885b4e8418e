"""Recipes: functions that return a complete configuration. Flags then change numbers, not kinds."""

from pathlib import Path

from distill.config import Distillation, DistillConfig, FromData, FromTeacher, LoopConfig, OptimConfig, TeacherRun
from meanflow import AdaptiveL2, Guidance, LogitNormal, MeanFlow, MixedGuidance, TimePairs
from teacher.train import ConditionDropout, FlowMatching
from teacher.variants import variant

DATA = Path("runs/demo/features")
TEACHER = Path("runs/demo/teacher")


def teacher_demo() -> TeacherRun:
    """A small teacher on two CPU cores in a few minutes."""
    return TeacherRun(
        data=DATA,
        method=FlowMatching(
            network=variant("tiny_16k"),
            dropout=ConditionDropout(video=0.1, text=0.1, text_only=0.2),
            init="unit",
        ),
        loop=LoopConfig(
            steps=2600,
            batch_size=16,
            optim=OptimConfig(lr=4e-3, warmup_steps=100, schedule="cosine", reference_fan_in=64),
            ema_std=(0.08,),
            save_every=500,
            preview_every=1000,
        ),
    )


def teacher_small_16k() -> TeacherRun:
    """MMAudio small_16k as published: batch 512, 300,000 steps, learning rate 1e-4."""
    return TeacherRun(data=DATA, method=FlowMatching(network=variant("small_16k")), loop=LoopConfig())


def teacher_debug() -> TeacherRun:
    """Seconds on a CPU; checks the machinery, learns little."""
    return TeacherRun(
        data=DATA,
        method=FlowMatching(network=variant("debug_16k")),
        loop=_debug_loop(),
    )


def student_demo() -> DistillConfig:
    """The demo's student on two CPU cores in a few minutes."""
    return DistillConfig(
        data=DATA,
        teacher=TEACHER,
        method=Distillation(
            objective=MeanFlow(clip_dudt=2.0),
            loss=AdaptiveL2(p=0.5, c=1e-2),
            times=TimePairs(density=LogitNormal(mean=0.0), fm_fraction=0.3, full_fraction=0.5),
            velocity=FromTeacher(guidance=Guidance(omega=1.0)),
            dropout=ConditionDropout(video=0.1, text=0.1, text_only=0.2),
        ),
        loop=LoopConfig(
            steps=1000,
            batch_size=16,
            optim=OptimConfig(lr=2e-3, warmup_steps=100, schedule="cosine", reference_fan_in=64),
            ema_std=(0.05,),
            save_every=300,
            preview_every=600,
        ),
    )


def student_mf_mjt() -> DistillConfig:
    """A full-scale student of a published-size teacher: guided MeanFlow targets, a quarter of the rows with r < t.

    Guidance weights are those of MeanFlow audio training (omega 0.3, kappa 0.9: effective scale 3).
    """
    return DistillConfig(
        data=DATA,
        teacher=TEACHER,
        method=Distillation(
            times=TimePairs(density=LogitNormal(mean=-0.4), fm_fraction=0.75),
            velocity=FromData(mixed=MixedGuidance(omega=0.3, kappa=0.9)),
            loss=AdaptiveL2(p=1.0, c=1e-3),
        ),
        loop=LoopConfig(steps=200_000, batch_size=128),
    )


def student_debug() -> DistillConfig:
    """Seconds on a CPU; checks the machinery, learns little."""
    return DistillConfig(data=DATA, teacher=TEACHER, method=Distillation(), loop=_debug_loop())


def _debug_loop() -> LoopConfig:
    return LoopConfig(
        steps=20,
        batch_size=8,
        optim=OptimConfig(lr=1e-3, warmup_steps=5),
        ema_std=(0.1,),
        log_every=5,
        save_every=10,
        preview_every=20,
    )
