"""The former place of `teacher.Pipeline` and `teacher.ModelCard`: model cards of folders saved before name it."""

from teacher.sampling.model_card import ModelCard as Card
from teacher.sampling.pipeline import Pipeline

__all__ = ["Card", "Pipeline"]
