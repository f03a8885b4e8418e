"""The method of a distillation: objective, loss, times, velocity and guidance, as one configuration."""

from dataclasses import dataclass, field
from typing import Literal

from distill.method.velocity_source import FromData, VelocitySource
from meanflow import AdaptiveL2, Loss, MeanFlow, Objective, TimePairs
from meanflow.time_sampling import Times
from teacher.flow_matching import ConditionDropout


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the student is trained from the teacher."""

    objective: Objective = field(default_factory=MeanFlow)
    loss: Loss = field(default_factory=AdaptiveL2)
    times: Times = field(default_factory=TimePairs)
    velocity: VelocitySource = field(default_factory=FromData)
    velocity_head: int = 0
    """Number of fused blocks of the student's velocity head, which some objectives train; 0 = no head."""
    time_embedding: Literal["auto", "teacher", "smooth"] = "auto"
    """The student's embeddings of t and t - r. teacher: as the teacher's; smooth: without frequencies above 100 rad per
    unit, fitted to the teacher's (which changes the student's start; train it at r = t first); auto: smooth where the
    teacher's are faster, which is in MMAudio v2, and the teacher's otherwise."""
    guided_from: float = 0.0
    """Fraction of training before which targets are not guided, for a warm start; 0 = guided from the first step, 1 =
    never guided."""
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
