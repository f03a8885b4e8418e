"""Configuration of training runs: the loop, the optimiser and what is learnt."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from distill.method.velocity_source import FromData, FromTeacher, GuidedInput, VelocitySource
from meanflow import AdaptiveL2, Loss, MeanFlow, Objective, TimePairs
from meanflow.time_sampling import Times
from teacher.features.joint import Modalities
from teacher.flow_matching import ConditionDropout, FlowMatching
from teacher.network.lora import LoRAConfig
from teacher.network.variants import MMAudioConfig, variant

__all__ = [
    "DistillConfig", "Distillation", "EvaluationConfig", "Fresh", "FromData", "FromTeacher", "FromWeights",
    "GuidedInput", "LoopConfig", "OptimConfig", "Start", "TeacherRun", "VelocitySource",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up; `cosine` decays to zero at the last step, `step` drops at the milestones, `constant`
    does not decay."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-6
    decay_all: bool = False
    """Decay every parameter, as MMAudio was trained, instead of matrices alone."""
    adam_eps: float = 1e-8
    """Adam's epsilon; 1e-6 goes with bfloat16 autocast, whose gradients are too coarse for less."""
    warmup_steps: int = 1000
    warmup_inclusive: bool = True
    """Whether the last step of the warm-up already has the full rate: (step + 1) / warmup_steps. Otherwise, as MMAudio
    was trained, the first step after it: (step + 1) / (warmup_steps + 1)."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    milestones: tuple[float, ...] = (0.8, 0.9)
    """Under `step`, the shares of all steps at which the rate is multiplied by `decay`, counted from the end of the
    warm-up: of 300,000 steps with 1,000 of warm-up, steps 241,000 and 271,000."""
    decay: float = 0.1
    """Factor at each milestone."""
    clip_norm: float = 1.0
    reference_fan_in: int | None = None
    """Matrices with a larger fan-in learn more slowly, at lr * reference / fan_in (maximal-update rule,
    arXiv 2203.03466, table 3). None, as published recipes have it, gives every parameter the same rate."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {self.warmup_steps}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if not self.adam_eps > 0:
            raise ValueError(f"adam_eps must be positive, got {self.adam_eps}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay}")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones must be rising shares in (0, 1), got {self.milestones}")
        if self.reference_fan_in is not None and self.reference_fan_in < 1:
            raise ValueError(f"reference_fan_in must be at least 1 or None, got {self.reference_fan_in}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is generated and measured on held-out clips while training goes on."""

    every: int = 2000
    """Steps between evaluations; 0 = never."""
    num_clips: int = 16
    """Held-out clips that are generated, always the same ones from the same noise."""
    num_sounds: int = 3
    """How many of them go into TensorBoard as sound and spectrogram."""
    teacher_steps: int = 25
    """Euler steps of the teacher that the student's one step is held against."""

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("num_clips", 1), ("num_sounds", 0), ("teacher_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation {name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, batch and bookkeeping of a run; the same for teacher and student."""

    steps: int = 300_000
    batch_size: int = 512
    """Sounds per step over all processes together."""
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_std: tuple[float, ...] = (0.05, 0.1)
    """Relative widths of the power-function averages kept beside the weights (arXiv 2312.02696, eq. 123)."""
    ema_correction: bool = False
    """MMAudio's step-size correction of the averages: the geometric mean of two neighbouring decays."""
    ema_snapshot_every: int = 0
    """Steps between snapshots of the averages kept for good in ema_ckpts/, from which `mf-ema` makes averages of any
    width afterwards; 0 = none. Each takes as much disk as the trained weights in float32, once per width."""
    log_every: int = 50
    save_every: int = 2000
    keep_last: int = 2
    """Checkpoints kept for resuming, the newest ones; should one be damaged, the one before serves."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    max_bad_steps: int = 50
    """Steps with a non-finite loss or gradient that may be skipped in a row before the run stops."""
    timeout_s: float = 1800.0
    """Seconds without a finished step after which a process gives up instead of waiting for the others for ever."""
    micro_batch: int | None = None
    """Sounds per process in one forward and backward pass, whose gradients add up to the step's; None = the process's
    whole share at once."""
    checkpoint_blocks: bool = False
    """Recompute every block in the backward pass instead of keeping its activations: less memory, a third more time."""
    compile_blocks: bool = False
    """Compile every block with torch.compile; the derivative runs uncompiled."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every", "keep_last", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1 or None, got {self.micro_batch}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}")
        if self.ema_snapshot_every < 0:
            raise ValueError(f"ema_snapshot_every must be at least 0, got {self.ema_snapshot_every}")
        if self.ema_snapshot_every and not self.ema_std:
            raise ValueError("ema_snapshot_every needs at least one width in ema_std")
        for std in self.ema_std:
            if not 0.0 < std < 0.28:
                raise ValueError(f"ema_std must lie in (0, 0.28), got {std}")


NEUTRAL = ("log_every", "save_every", "keep_last", "evaluation", "max_bad_steps", "timeout_s", "micro_batch",
           "checkpoint_blocks", "compile_blocks")  # fmt: skip
"""Settings of the loop that change no number but by rounding: a run may go on with others."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the student is trained from the teacher."""

    objective: Objective = field(default_factory=MeanFlow)
    loss: Loss = field(default_factory=AdaptiveL2)
    times: Times = field(default_factory=TimePairs)
    velocity: VelocitySource = field(default_factory=FromData)
    velocity_head: int = 0
    """Fused blocks of the student's velocity head, which objectives with a head learn from; 0 = no head."""
    time_embedding: Literal["auto", "teacher", "smooth"] = "auto"
    """The student's embeddings of t and t - r. teacher: as the teacher's; smooth: without frequencies above 100 rad per
    unit, fitted to the teacher's (which changes the student's start; train it at r = t first); auto: smooth where the
    teacher's are faster, which is in MMAudio v2, and the teacher's otherwise."""
    guided_from: float = 0.0
    """Share of training before which targets are not guided: a warm start without guidance, 0 = guided from the first
    step, 1 = never."""
    dropout: ConditionDropout = field(default_factory=ConditionDropout)

    def __post_init__(self) -> None:
        if not 0.0 <= self.guided_from <= 1.0:
            raise ValueError(f"guided_from must lie in [0, 1], got {self.guided_from}")
        if self.time_embedding not in ("auto", "teacher", "smooth"):
            raise ValueError(f"time_embedding must be one of auto, teacher, smooth, got {self.time_embedding!r}")
        needs, name = self.objective.needs, type(self.objective).__name__
        if self.velocity_head < 0 or needs.head != (self.velocity_head > 0):
            raise ValueError(
                "velocity_head must be above 0 with an objective that trains a head, such as "
                f"ImprovedMeanFlow(head=True), and 0 with any other; got {self.velocity_head} with {name}"
            )
        if self.velocity.asks_student and not needs.learns_boundary:
            raise ValueError(
                f"velocity.predictions must be teacher with {name}, which never trains the student's u(x_t, t, t), "
                "got student"
            )


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Train from the first step: a network of this size."""

    network: MMAudioConfig = field(default_factory=lambda: variant("small_16k"))
    init: Literal["published", "unit"] = "published"
    """Starting weights: as MMAudio's, or with signals of unit size throughout, which learns far sooner when small."""


@dataclass(frozen=True, kw_only=True)
class FromWeights:
    """Go on from the network of a run folder, official or own, keeping its size and its latent statistics."""

    run: Path
    """Run folder to start from."""
    weights: str = "auto"
    """Which of its weights: model, ema-0.05 and so on; auto is the narrowest average, else the last step."""


Start: TypeAlias = Fresh | FromWeights


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """A teacher training run: data, start, method, loop."""

    data: tuple[Path, ...]
    """Feature folders, learnt from together. The first one's codec and latent statistics become the run's."""
    repeat: tuple[int, ...] = ()
    """How often each folder is repeated in an epoch, one number per folder; without any, once each. MMAudio repeats
    its videos 5 times (3 in the medium and large sizes) beside the sets of sounds with captions."""
    modalities: Modalities = "AVT+AT"
    """What training shows of rows with pictures + of rows without (arXiv 2412.15322, table 4)."""
    start: Start = field(default_factory=Fresh)
    lora: LoRAConfig | None = None
    """Train low-rank adapters beside frozen weights instead of the weights themselves."""
    method: FlowMatching = field(default_factory=FlowMatching)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _check_sets(self.data, self.repeat)
        if self.lora is not None and isinstance(self.start, Fresh):
            raise ValueError("lora adapts trained weights: it needs start.run, a run folder to start from")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A distillation run: data, the teacher's run folder, what the student starts from, method, loop."""

    data: tuple[Path, ...]
    """Feature folders, learnt from together."""
    repeat: tuple[int, ...] = ()
    """How often each folder is repeated in an epoch, one number per folder; without any, once each."""
    teacher: Path
    student: FromWeights | None = None
    """Go on from the student of an earlier run, second time included; without it, start from the teacher's weights."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters beside frozen weights, and in full only what the teacher has not: the embedding of t - r
    and whatever else is new or fitted anew."""
    method: Distillation = field(default_factory=Distillation)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _check_sets(self.data, self.repeat)


def _check_sets(data: tuple[Path, ...], repeat: tuple[int, ...]) -> None:
    if not data:
        raise ValueError("data must name at least one feature folder")
    if repeat and len(repeat) != len(data):
        raise ValueError(f"repeat needs one number per folder of data ({len(data)}), got {repeat}")
    if any(count < 1 for count in repeat):
        raise ValueError(f"repeat must be at least 1 everywhere, got {repeat}")


def decisive(config: object) -> object:
    """A run's configuration with what is NEUTRAL at its default; anything else as it is."""
    if not isinstance(config, TeacherRun | DistillConfig):
        return config
    usual = LoopConfig()
    return replace(config, loop=replace(config.loop, **{name: getattr(usual, name) for name in NEUTRAL}))


def without_places(config: object) -> object:
    """`decisive`, without where the folders lie that a run reads: features, teacher, starting weights. What was in them
    is a matter of their digests, which are compared by themselves, so that a run goes on after they were moved."""
    found = decisive(config)
    if not isinstance(found, TeacherRun | DistillConfig):
        return found
    data = tuple(Path(str(k)) for k in range(len(found.data)))
    if isinstance(found, TeacherRun):
        start = replace(found.start, run=Path()) if isinstance(found.start, FromWeights) else found.start
        return replace(found, data=data, start=start)
    student = None if found.student is None else replace(found.student, run=Path())
    return replace(found, data=data, teacher=Path(), student=student)
