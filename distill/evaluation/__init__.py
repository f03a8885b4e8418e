"""What the trainer measures on held-out clips while it trains."""

from distill.evaluation.held_out import BEST_STUDENT, BEST_TEACHER, Evaluated, HeldOut, Scores
from distill.evaluation.reference import Reference, reference_guidance

__all__ = ["BEST_STUDENT", "BEST_TEACHER", "Evaluated", "HeldOut", "Reference", "Scores", "reference_guidance"]
