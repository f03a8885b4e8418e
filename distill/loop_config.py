"""The part of a run's configuration that the training loop reads: length, batch, optimiser, log, evaluation."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up; `cosine` decays to zero at the last step, `step` drops at the milestones, `constant`
    does not decay."""

    lr: float = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decays of Adam's averages of the gradient and of its square."""
    weight_decay: float = 1e-6
    """Weight decay of AdamW, multiplied by the learning rate in every step."""
    decay_all: bool = False
    """Decay every parameter, as MMAudio was trained, instead of matrices alone."""
    adam_eps: float = 1e-8
    """Adam's epsilon; under bfloat16 autocast, whose gradients are coarse, use 1e-6."""
    warmup_steps: int = 1000
    """Steps in which the learning rate rises linearly; 0 = none."""
    warmup_inclusive: bool = True
    """Whether the last step of the warm-up already has the full rate: (step + 1) / warmup_steps. Otherwise, as in
    MMAudio's training, the first step after it has: (step + 1) / (warmup_steps + 1)."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Course of the rate after the warm-up: constant, cosine (to zero at the last step) or step (at the milestones)."""
    milestones: tuple[float, ...] = (0.8, 0.9)
    """Under `step`, the fractions of all steps at which the rate is multiplied by `decay`, counted from the end of the
    warm-up: of 300,000 steps with 1,000 of warm-up, steps 241,000 and 271,000."""
    decay: float = 0.1
    """Factor by which the rate is multiplied at each milestone."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    reference_fan_in: int | None = None
    """Matrices with a larger fan-in get the lower rate lr * reference / fan_in (maximal-update rule, arXiv 2203.03466,
    table 3). None, as in published recipes, gives every parameter the same rate."""

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
            raise ValueError(f"milestones must be rising fractions in (0, 1), got {self.milestones}")
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
    """How many of these clips are written to TensorBoard as sound and spectrogram."""
    teacher_steps: int = 25
    """Euler steps of the teacher that the student's one step is compared with."""

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("num_clips", 1), ("num_sounds", 0), ("teacher_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation {name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, batch and bookkeeping of a run; the same for teacher and student."""

    steps: int = 300_000
    """Optimiser steps of the run."""
    batch_size: int = 512
    """Sounds per step over all processes together."""
    seed: int = 0
    """Seed of data order, noise, times and dropped conditions, and of the initial weights."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_std: tuple[float, ...] = (0.05, 0.1)
    """Relative widths of the power-function averages of the weights that training computes (arXiv 2312.02696, eq. 123).
    """
    ema_correction: bool = False
    """MMAudio's step-size correction of the averages: the geometric mean of two neighbouring decays."""
    ema_snapshot_every: int = 0
    """Steps between snapshots of the averages, stored in ema_ckpts/, from which `mf-ema` computes averages of any width
    after training; 0 = none. Each takes as much disk as the trained weights in float32, once per width."""
    log_every: int = 50
    """Steps between lines of the log."""
    save_every: int = 2000
    """Steps between checkpoints."""
    keep_last: int = 2
    """How many of the newest checkpoints stay on disk; where one is damaged, the run resumes from the one before."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    max_bad_steps: int = 50
    """Steps with a non-finite loss or gradient that may be skipped in a row before the run stops."""
    timeout_s: float = 1800.0
    """Seconds without a finished step after which a process ends with an error, as another process may hang."""
    micro_batch: int | None = None
    """Sounds per process in one forward and backward pass; a step adds up the gradients of several passes. None = all
    sounds of the process at once."""
    checkpoint_blocks: bool = False
    """Recompute every block in the backward pass instead of storing its activations: less memory, a third more time."""
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

    def without_operational_fields(self) -> Self:
        """This configuration with every OPERATIONAL field at its default."""
        usual = LoopConfig()
        return replace(self, **{name: getattr(usual, name) for name in OPERATIONAL})


OPERATIONAL = ("log_every", "save_every", "keep_last", "evaluation", "max_bad_steps", "timeout_s", "micro_batch",
           "checkpoint_blocks", "compile_blocks")  # fmt: skip
"""Settings of the loop that change numbers by rounding at most, so that a run may be resumed with other values."""
