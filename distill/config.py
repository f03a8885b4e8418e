"""Configuration of training runs: the loop, the optimiser and what is learnt."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from meanflow import AdaptiveL2, Guidance, Loss, MeanFlow, MixedGuidance, TimePairs
from teacher.train import ConditionDropout, FlowMatching


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up; `cosine` decays to zero at the last step, `constant` does not decay."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-6
    warmup_steps: int = 1000
    schedule: Literal["constant", "cosine"] = "constant"
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
        if self.reference_fan_in is not None and self.reference_fan_in < 1:
            raise ValueError(f"reference_fan_in must be at least 1 or None, got {self.reference_fan_in}")


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
    log_every: int = 50
    save_every: int = 2000
    preview_every: int = 2000
    """Steps between sounds and spectrograms in TensorBoard; 0 = never."""
    max_bad_steps: int = 50
    """Steps with a non-finite loss or gradient that may be skipped in a row before the run stops."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for std in self.ema_std:
            if not 0.0 < std < 0.28:
                raise ValueError(f"ema_std must lie in (0, 0.28), got {std}")


@dataclass(frozen=True, kw_only=True)
class FromData:
    """v = e - x of the data, guided by the frozen teacher's two predictions where `mixed` asks for it."""

    mixed: MixedGuidance = field(default_factory=MixedGuidance)


@dataclass(frozen=True, kw_only=True)
class FromTeacher:
    """v = the frozen teacher's velocity at x_t, guided: the student averages the very flow the teacher samples."""

    guidance: Guidance = field(default_factory=Guidance)


VelocitySource: TypeAlias = FromData | FromTeacher


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the student is trained from the teacher."""

    objective: MeanFlow = field(default_factory=MeanFlow)
    loss: Loss = field(default_factory=AdaptiveL2)
    times: TimePairs = field(default_factory=TimePairs)
    velocity: VelocitySource = field(default_factory=FromData)
    dropout: ConditionDropout = field(default_factory=ConditionDropout)


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """A teacher training run: data, method, loop."""

    data: Path
    method: FlowMatching = field(default_factory=FlowMatching)
    loop: LoopConfig = field(default_factory=LoopConfig)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A distillation run: data, the teacher's run folder, method, loop."""

    data: Path
    teacher: Path
    method: Distillation = field(default_factory=Distillation)
    loop: LoopConfig = field(default_factory=LoopConfig)
