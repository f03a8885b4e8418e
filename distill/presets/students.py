"""Presets of distillations: a function returns a complete configuration, and STUDENTS names it for the command line.

The objectives after `student_mf_mjt` stand in its place in the same full-scale run, each with its published times, loss
and guidance. docs/methods/recipes.md has the source of every number.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distill.config import (
    DistillRun,
    EvaluationConfig,
    FromData,
    FromTeacher,
    FromWeights,
    GuidedInput,
    LoopConfig,
    Method,
    OptimConfig,
)
from distill.presets.teachers import DATA, PRETRAINED, debug_loop, teacher_published
from meanflow import (
    AdaptiveL2,
    AlphaFlow,
    ConsistencyTraining,
    Correction,
    Guidance,
    ImprovedMeanFlow,
    LogitNormal,
    MeanFlow,
    MixedGuidance,
    PlainFlowMatching,
    SplitMeanFlow,
    TerminalVelocity,
    TimePairs,
    TransitionModel,
    Uniform,
)
from meanflow.time_sampling import PUBLISHED as PUBLISHED_TIMES
from meanflow.time_sampling import MixedTimes, Ordered
from teacher.flow_matching import ConditionDropout
from teacher.network.lora import LoRAConfig

TEACHER = Path("runs/demo/teacher")
FULL_DATA = (Path("features/vgg"),)
PRETRAINED_V2 = Path("runs/mmaudio-large-44k-v2")
UNGUIDED = Path("runs/mf-mjt-unguided")
HEALED = Path("runs/mf-mjt-large-44k-v2-heal")
UNGUIDED_FRACTION = 1 / 3
"""Fraction of a warm-started training before guidance: 20 of 60 epochs of MeanFlow from SiT-XL (zhuyu-cs/MeanFlow)."""
IMAGENET = AdaptiveL2(p=1.0, c=1e-2, reduction="sum")
"""The loss of MeanFlow and improved MeanFlow on ImageNet."""
AUDIO = AdaptiveL2(p=1.0, c=1e-3)
"""The loss of MeanAudio and alpha-Flow."""
SQUARED = AdaptiveL2(p=0.0)
"""The plain squared error."""
SCALE_3 = FromData(mixed=MixedGuidance(omega=0.3, kappa=0.9), predictions="student")
"""MeanAudio's guided target, of guidance scale 0.3 / (1 - 0.9) = 3; used for methods that publish none."""
GUIDED_TEACHER = FromTeacher(guidance=Guidance(omega=3.0, rescale=False))
"""The teacher's velocity at the same guidance scale, for objectives that do not train u(x_t, t, t) or build on it."""


def student_demo() -> DistillRun:
    """The demo's student, trained on two CPU cores in a few minutes."""
    return DistillRun(
        data=DATA,
        teacher=TEACHER,
        method=Method(
            objective=MeanFlow(correction=Correction(clip=2.0)),
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
            evaluation=EvaluationConfig(every=600),
        ),
    )


def student_mf_mjt() -> DistillRun:
    """A student of MMAudio small_16k: without guidance for a third of the run, then with guided targets.

    Published, by whom: from MeanAudio (arXiv 2508.06098, second stage) times, target, loss, rate and its steps,
    optimiser, clipping, averages, dropped conditions, 200,000 steps (its script; its configuration has 100,000) and a
    batch of 128 (its configuration; its script for AudioCaps has 32). omega 0.3 and kappa 0.9 on the student's own
    predictions are the scale 0.3 / (1 - 0.9) = 3; Adam's epsilon belongs to bfloat16 autocast. From MMAudio (arXiv
    2412.15322), whose trainer MeanAudio builds on: weight decay of every parameter, the exclusive warm-up and the
    corrected averages. The first third without guidance is the 20 of 60 epochs of a MeanFlow fine-tuned from SiT-XL.
    Ours: how often the run saves, evaluates and stores snapshots of the averages. The settings of MF-MJT itself (arXiv
    2509.06389) were not available. Nothing here was run at this size.
    """
    return DistillRun(
        data=FULL_DATA,
        teacher=PRETRAINED,
        method=Method(
            objective=MeanFlow(),
            times=PUBLISHED_TIMES["meanaudio"],
            velocity=FromData(mixed=MixedGuidance(omega=0.3, kappa=0.9), predictions="student"),
            loss=AdaptiveL2(p=1.0, c=1e-3),
            guided_from=UNGUIDED_FRACTION,
            dropout=ConditionDropout(video=0.1, text=0.1),
        ),
        loop=_full_loop(),
    )


def student_mf_mjt_unguided() -> DistillRun:
    """The first of two commands in place of mf-mjt: its first third, without guidance, as a run of its own.

    The milestones of the rate are fractions of a run, so here they are at 80 and 90 % of this third, as they were for
    the fine-tuned SiT-XL, whose parts were two runs.
    """
    full = student_mf_mjt()
    return replace(
        full,
        method=replace(full.method, guided_from=1.0),
        loop=replace(full.loop, steps=round(full.loop.steps * UNGUIDED_FRACTION)),
    )


def student_mf_mjt_guided() -> DistillRun:
    """The second of two commands: continues with the student of mf-mjt-unguided, every target guided."""
    full = student_mf_mjt()
    return replace(
        full,
        student=FromWeights(run=UNGUIDED),
        method=replace(full.method, guided_from=0.0),
        loop=replace(full.loop, steps=full.loop.steps - round(full.loop.steps * UNGUIDED_FRACTION)),
    )


def student_mf_mjt_lora() -> DistillRun:
    """mf-mjt with adapters beside the teacher's frozen weights; the embedding of t - r is trained in full.

    Published: rate 5e-5 without weight decay, 6,000 steps of 32 and 1,000 of warm-up are AnyFlow's (arXiv
    2605.13724), which trains adapters of rank 256 on a video network of 14 billion parameters. Ours: rank 64 for a
    network a hundred times smaller, and a constant rate. The method is that of mf-mjt. Never run at this size.
    """
    full = student_mf_mjt()
    optim = OptimConfig(lr=5e-5, weight_decay=0.0, adam_eps=1e-6, warmup_steps=1000)
    return replace(
        full,
        lora=LoRAConfig(rank=64, alpha=64.0),
        loop=replace(full.loop, steps=6000, batch_size=32, optim=optim, ema_snapshot_every=500, save_every=500),
    )


def student_large_44k_v2_heal() -> DistillRun:
    """The first of two commands for MMAudio large_44k_v2: flow matching to the teacher with a smooth time embedding.

    The second version embeds time with up to 10,000 rad per unit, whose derivative drowns the velocity. The student's
    embedding has none above 100 rad and is fitted to the teacher's, which is not exact; here every row has r = t,
    uniform in t since the embedding is needed everywhere, and the velocity to learn is the teacher's own, unguided, so
    that training corrects the error of the fit. The embedding of t - r stays at zero until the second command. All
    numbers are ours: a tenth of the published rate, since only the embedding is new. Never run at this size.
    """
    full = student_mf_mjt()
    return replace(
        full,
        teacher=PRETRAINED_V2,
        method=Method(
            objective=PlainFlowMatching(),
            loss=AdaptiveL2(p=0.0),
            times=MixedTimes(fm_fraction=1.0, fm_density=Uniform()),
            velocity=FromTeacher(guidance=Guidance(omega=1.0)),
            time_embedding="smooth",
            dropout=ConditionDropout(video=0.1, text=0.1, joint_video=False),
        ),
        loop=replace(
            full.loop,
            steps=10_000,
            optim=replace(full.loop.optim, lr=1e-5, schedule="cosine"),
            ema_snapshot_every=0,
            evaluation=EvaluationConfig(every=1000),
        ),
    )


def student_large_44k_v2() -> DistillRun:
    """The second of two commands for MMAudio large_44k_v2: mf-mjt from the healed student.

    Settings are those of mf-mjt, but image and synchronisation features are dropped independently, as in the training
    of MMAudio's second version. Never run at this size.
    """
    full = student_mf_mjt()
    return replace(
        full,
        teacher=PRETRAINED_V2,
        student=FromWeights(run=HEALED),
        method=replace(
            full.method,
            time_embedding="smooth",
            dropout=ConditionDropout(video=0.1, text=0.1, joint_video=False),
        ),
        loop=replace(full.loop, ema_snapshot_every=20_000),
    )


def _full_loop() -> LoopConfig:
    """MeanAudio's second stage; see `student_mf_mjt`."""
    published = teacher_published("small_16k").loop
    return replace(
        published,
        steps=200_000,
        batch_size=128,
        seed=0,
        ema_snapshot_every=10_000,
        save_every=2000,
        log_every=50,
        evaluation=EvaluationConfig(every=5000),
    )


def student_debug() -> DistillRun:
    """Seconds on a CPU; checks the machinery, learns little."""
    return DistillRun(data=DATA, teacher=TEACHER, method=Method(), loop=debug_loop())


def _with_method(method: Method) -> DistillRun:
    """The full-scale run of `student_mf_mjt` (data, batch, optimiser, length) by another method."""
    return replace(student_mf_mjt(), method=method)


def student_meanflow() -> DistillRun:
    """MeanFlow (2505.13447): exact derivative on a quarter of the rows, the target guided as in XL/2."""
    return _with_method(
        Method(
            objective=MeanFlow(),
            times=PUBLISHED_TIMES["meanflow_imagenet"],
            loss=IMAGENET,
            velocity=FromData(mixed=MixedGuidance(omega=0.2, kappa=0.92, interval=(0.0, 0.75)), predictions="student"),
        )
    )


def student_improved() -> DistillRun:
    """Improved MeanFlow (2512.02012), boundary form: tangent u(x_t, t, t), guidance scale as an input."""
    return _with_method(
        Method(
            objective=ImprovedMeanFlow(),
            times=PUBLISHED_TIMES["improved_meanflow"],
            loss=IMAGENET,
            velocity=GuidedInput(),
        )
    )


def student_improved_head() -> DistillRun:
    """Improved MeanFlow with a velocity head of 8 blocks, as published; the teacher needs as many fused ones."""
    return _with_method(
        Method(
            objective=ImprovedMeanFlow(head=True),
            times=PUBLISHED_TIMES["improved_meanflow"],
            loss=IMAGENET,
            velocity=GuidedInput(),
            velocity_head=8,
        )
    )


def student_alpha_flow() -> DistillRun:
    """AlphaFlow (2510.20771): from flow matching to MeanFlow over training."""
    return _with_method(
        Method(objective=AlphaFlow(), times=PUBLISHED_TIMES["improved_meanflow"], loss=AUDIO, velocity=SCALE_3)
    )


def student_split() -> DistillRun:
    """SplitMeanFlow (2507.16884): no derivative; the boundary is the guided teacher. Times and loss are ours."""
    return _with_method(
        Method(
            objective=SplitMeanFlow(), times=PUBLISHED_TIMES["improved_meanflow"], loss=AUDIO, velocity=GUIDED_TEACHER
        )
    )


def student_transition() -> DistillRun:
    """Transition model (2509.04394): central differences; only with the float32 launch files."""
    return _with_method(
        Method(
            objective=TransitionModel(),
            times=PUBLISHED_TIMES["transition"],
            loss=AdaptiveL2(p=1.0, c=1e-5),
            velocity=FromData(mixed=MixedGuidance(omega=1.0, kappa=0.75, interval=(0.3, 0.8)), predictions="student"),
        )
    )


def student_terminal() -> DistillRun:
    """Terminal velocity matching (2511.19797): computes four rows for each; only with the float32 launch files."""
    return _with_method(
        Method(objective=TerminalVelocity(), times=PUBLISHED_TIMES["terminal_velocity"], loss=SQUARED, velocity=SCALE_3)
    )


def student_consistency() -> DistillRun:
    """Consistency distillation (2303.01469) of the guided teacher, for one step. Times and loss are ours."""
    return _with_method(
        Method(
            objective=ConsistencyTraining(),
            times=MixedTimes(fm_fraction=1.0, fm_density=LogitNormal(mean=-0.4)),
            loss=AUDIO,
            velocity=GUIDED_TEACHER,
        )
    )


def student_flow_matching() -> DistillRun:
    """Plain flow matching (2210.02747) of the guided velocity: the baseline of many steps."""
    return _with_method(
        Method(
            objective=PlainFlowMatching(),
            times=MixedTimes(pairs=Ordered(), fm_fraction=1.0, fm_density=LogitNormal(mean=0.0)),
            loss=SQUARED,
            velocity=SCALE_3,
        )
    )


STUDENTS: dict[str, Callable[[], DistillRun]] = {
    "demo": student_demo,
    "debug": student_debug,
    "mf-mjt": student_mf_mjt,
    "mf-mjt-unguided": student_mf_mjt_unguided,
    "mf-mjt-guided": student_mf_mjt_guided,
    "mf-mjt-lora": student_mf_mjt_lora,
    "mf-mjt-large-44k-v2-heal": student_large_44k_v2_heal,
    "mf-mjt-large-44k-v2": student_large_44k_v2,
    "meanflow": student_meanflow,
    "improved": student_improved,
    "improved-head": student_improved_head,
    "alpha-flow": student_alpha_flow,
    "split": student_split,
    "transition": student_transition,
    "terminal": student_terminal,
    "consistency": student_consistency,
    "flow-matching": student_flow_matching,
}
"""Presets by their name in `mf-distill`, as functions whose docstring's first line is the help."""
