"""The sampling configuration: steps, guidance, solver and seed; and the precisions of the network."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from meanflow import Adaptive, Guidance
from meanflow.guidance import GuidanceRule, JointGuidance
from meanflow.sampling import check_zero_init

FixedSolver: TypeAlias = Literal["euler", "heun", "midpoint"]
Solver: TypeAlias = FixedSolver | Adaptive
"""Integrator of an instantaneous velocity (a teacher); an average velocity (a student) jumps and needs none."""
Precision: TypeAlias = Literal["float32", "bfloat16", "demo"]
"""Arithmetic of the flow network. float32 throughout; bfloat16: float32 weights and state, products in bfloat16 (how
MMAudio is evaluated); demo: weights, state, times and the table of time frequencies in bfloat16 (how MMAudio's own
demo runs, which for v2 networks scrambles the time embedding: teacher/network/embeddings.py)."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How latents are sampled: number of steps, guidance, seed, and a teacher's solver."""

    steps: int = 1
    """Number of sampling steps; students are trained for 1, a teacher is usually sampled with 25."""
    guidance: GuidanceRule = field(default_factory=Guidance)
    """Classifier-free guidance; scale 1 is off and needs a single evaluation per step."""
    seed: int = 0
    solver: Solver = "euler"
    """Integrator of a teacher's velocity; for a student it must stay euler."""
    shift: float = 1.0
    """Shift of the time grid: above 1 the steps near the noise are smaller, below 1 those near the data."""
    zero_init_steps: int = 0
    """Number of first steps whose velocity is zero (CFG-Zero*); meant for 25 or more steps."""

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Adaptive) and self.solver not in get_args(FixedSolver):
            choices = ", ".join(get_args(FixedSolver))
            raise ValueError(f"solver must be {choices} or an Adaptive(...), got {self.solver!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.shift > 0:
            raise ValueError(f"shift must be positive (1 = uniform), got {self.shift}")
        check_zero_init(self.zero_init_steps, self.steps)

    def __str__(self) -> str:
        """Steps and guidance as text, such as "25 step(s), guidance 4.5"."""
        solver, rule = self.solver, self.guidance
        steps = f"adaptive to {solver.rtol:g}" if isinstance(solver, Adaptive) else f"{self.steps} step(s)"
        if isinstance(rule, JointGuidance):
            return f"{steps}, guidance {rule.video:g} for video, {rule.text:g} for text"
        return f"{steps}, guidance {rule.omega:g}"
