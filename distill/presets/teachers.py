"""Presets of teachers: a function returns a complete configuration, and TEACHERS names it for the command line.

Flags then change numbers, not kinds. The paper's comparisons (arXiv 2412.15322, tables 4, 6, 7 and A3) are small_16k as
published with one thing changed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from distill.config import EvaluationConfig, Fresh, FromWeights, LoopConfig, OptimConfig, TeacherRun
from teacher.features.dataset import Modalities
from teacher.flow_matching import ConditionDropout, FlowMatching
from teacher.network.lora import LoRAConfig
from teacher.network.variants import MMAudioConfig, variant

DATA = (Path("runs/demo/features"),)
OWN_DATA = (Path("runs/own/features"),)
PRETRAINED = Path("runs/mmaudio-small-16k")
BASE = "small_16k"
"""The network size with which the paper's comparisons are made."""
PUBLISHED = ("small_16k", "small_44k", "medium_44k", "large_44k", "large_44k_v2")


def debug_loop() -> LoopConfig:
    """Twenty steps, everything on the schedule at least once."""
    return LoopConfig(
        steps=20,
        batch_size=8,
        optim=OptimConfig(lr=1e-3, warmup_steps=5),
        ema_std=(0.1,),
        log_every=5,
        save_every=10,
        evaluation=EvaluationConfig(every=20, num_clips=4, teacher_steps=5),
    )


def teacher_demo() -> TeacherRun:
    """A small teacher, trained on two CPU cores in a few minutes."""
    return TeacherRun(
        data=DATA,
        start=Fresh(network=variant("tiny_16k"), init="unit"),
        method=FlowMatching(dropout=ConditionDropout(video=0.1, text=0.1, text_only=0.2)),
        loop=LoopConfig(
            steps=2600,
            batch_size=16,
            optim=OptimConfig(lr=4e-3, warmup_steps=100, schedule="cosine", reference_fan_in=64),
            ema_std=(0.08,),
            save_every=500,
            evaluation=EvaluationConfig(every=1000),
        ),
    )


def teacher_published(name: str) -> TeacherRun:
    """MMAudio as published (arXiv 2412.15322, appendix H), one of the five sizes.

    Batch 512, 300,000 steps, learning rate 1e-4 falling to 1e-5 and 1e-6; use it with bfloat16 mixed precision,
    that of the launch file ddp_8gpu. The second version drops image and sync independently.
    """
    network = variant(name)
    return TeacherRun(
        data=DATA,
        start=Fresh(network=network),
        method=FlowMatching(dropout=ConditionDropout(video=0.1, text=0.1, joint_video=network.version == "v1")),
        loop=LoopConfig(
            steps=300_000,
            batch_size=512,
            seed=14159265,
            optim=OptimConfig(
                lr=1e-4,
                betas=(0.9, 0.95),
                weight_decay=1e-6,
                decay_all=True,
                adam_eps=1e-6,
                warmup_steps=1000,
                warmup_inclusive=False,
                schedule="step",
                milestones=(0.8, 0.9),
                decay=0.1,
                clip_norm=1.0,
            ),
            ema_std=(0.05, 0.1),
            ema_correction=True,
            ema_snapshot_every=5000,
            log_every=200,
            save_every=10_000,
            evaluation=EvaluationConfig(every=20_000),
        ),
    )


def teacher_debug() -> TeacherRun:
    """Seconds on a CPU; checks the machinery, learns little."""
    return TeacherRun(data=DATA, start=Fresh(network=variant("debug_16k")), loop=debug_loop())


def teacher_finetune() -> TeacherRun:
    """Fine-tune all weights of a trained network on a small data set of your own.

    The rate is a tenth of the published one, as in its second stage, so that little is forgotten. The warm-up gives
    Adam time to estimate its moments, and the cosine ends at a rate of zero. Both dropouts stay, since guidance needs
    the unconditional branch. 3,000 steps of 32 pass a thousand clips about a hundred times, after which a small set is
    overfitted; the snapshots let `mf-ema --step` compute an earlier average if the training was too long.
    """
    return TeacherRun(
        data=OWN_DATA,
        start=FromWeights(run=PRETRAINED),
        loop=LoopConfig(
            steps=3000,
            batch_size=32,
            optim=OptimConfig(lr=1e-5, warmup_steps=200, schedule="cosine"),
            ema_std=(0.1, 0.2),
            ema_snapshot_every=500,
            save_every=500,
            evaluation=EvaluationConfig(every=500),
        ),
    )


def teacher_lora() -> TeacherRun:
    """Train low-rank adapters beside the frozen weights of a trained network, on a set too small for fine-tuning.

    A few percent of the weights are trained, so a hundred clips change little of what the network has learnt, and
    frozen weights need no optimiser state. Adapters start at zero and need larger updates: the rate is ten times that
    of fine-tuning, and weight decay, which would pull them back to zero, is off.
    """
    return replace(
        teacher_finetune(),
        lora=LoRAConfig(),
        loop=LoopConfig(
            steps=2000,
            batch_size=16,
            optim=OptimConfig(lr=1e-4, weight_decay=0.0, warmup_steps=100, schedule="cosine"),
            ema_std=(0.1, 0.2),
            ema_snapshot_every=250,
            save_every=500,
            evaluation=EvaluationConfig(every=500),
        ),
    )


def ablation(*, network: MMAudioConfig | None = None, modalities: Modalities = "AVT+AT") -> TeacherRun:
    """The published recipe of small_16k with another network, or with other modalities in training."""
    start = Fresh(network=network or variant(BASE))
    return replace(teacher_published(BASE), start=start, modalities=modalities)


ABLATIONS: dict[str, tuple[str, Callable[[], TeacherRun]]] = {
    "av-at": ("no text beside pictures (table 4)", lambda: ablation(modalities="AV+AT")),
    "avt-a": ("no text beside sounds without pictures (table 4)", lambda: ablation(modalities="AVT+A")),
    "avt": ("only sets with pictures (table 4)", lambda: ablation(modalities="AVT")),
    "av": ("only sets with pictures, without text (table 4)", lambda: ablation(modalities="AV")),
    "sum-sync": (
        "sync features added to image features (table 6)",
        lambda: ablation(network=replace(variant(BASE), sync="sum")),
    ),
    "no-sync": ("no sync features (table 6)", lambda: ablation(network=replace(variant(BASE), sync="none"))),
    "rope-none": ("no positions (table 6)", lambda: ablation(network=replace(variant(BASE), rope="none"))),
    "rope-default": (
        "positions not aligned in time (table 6)",
        lambda: ablation(network=replace(variant(BASE), rope="default")),
    ),
    "mlp": ("MLP in place of ConvMLP, wider and deeper (table 7)", lambda: ablation(network=variant("mlp_16k"))),
    "n2-13": ("2 joint and 13 fused blocks (table 7)", lambda: ablation(network=variant("n2_13_16k"))),
    "n6-3": ("6 joint and 3 fused blocks (table 7)", lambda: ablation(network=variant("n6_3_16k"))),
    "missing-learned": (
        "learned tokens for every absent modality (table A3)",
        lambda: ablation(network=replace(variant(BASE), missing="learned")),
    ),
    "missing-zeros": (
        "zeros for every absent modality (table A3)",
        lambda: ablation(network=replace(variant(BASE), missing="zeros")),
    ),
}
"""What differs from the published recipe, as a description and as a run, by the name after ablate- in TEACHERS."""


def _described(text: str, make: Callable[[], TeacherRun]) -> Callable[[], TeacherRun]:
    """A function that has no docstring of its own, with one."""
    make.__doc__ = text
    return make


TEACHERS: dict[str, Callable[[], TeacherRun]] = {
    "demo": teacher_demo,
    "debug": teacher_debug,
    **{
        name.replace("_", "-"): _described(
            f"MMAudio {name} as published: batch 512, 300,000 steps.", partial(teacher_published, name)
        )
        for name in PUBLISHED
    },
    "finetune": teacher_finetune,
    "lora": teacher_lora,
    **{
        f"ablate-{name}": _described(f"small-16k as published but for one thing: {difference}.", make)
        for name, (difference, make) in ABLATIONS.items()
    },
}
"""Presets by their name in `mf-train-teacher`, as functions whose docstring's first line is the help."""
