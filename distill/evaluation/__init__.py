"""Evaluation of a training run on held-out clips, during training."""

from distill.evaluation.clips import Reference
from distill.evaluation.held_out import BEST_STUDENT, BEST_TEACHER, Evaluated, HeldOut, Preview, Scores

__all__ = [
    "BEST_STUDENT", "BEST_TEACHER", "Evaluated", "HeldOut", "Preview", "Reference", "Scores",
]  # fmt: skip
