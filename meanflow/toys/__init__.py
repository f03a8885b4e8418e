"""A bench that trains every objective on problems with exact answers, on a CPU, in minutes."""

from meanflow.toys.bench import (
    Job,
    Reference,
    Score,
    euler_score,
    flow_errors,
    markdown,
    reference,
    run,
    score,
    velocity_error,
    verdict,
)
from meanflow.toys.problems import PROBLEMS, Problem, problem
from meanflow.toys.recipes import RECIPES, Recipe, imported, recipe, with_fm_fraction
from meanflow.toys.train import Budget, Source, ToyConfig, ToyNetwork, Trained, train

__all__ = [
    "PROBLEMS", "RECIPES", "Budget", "Job", "Problem", "Recipe", "Reference", "Score", "Source", "ToyConfig",
    "ToyNetwork", "Trained", "euler_score", "flow_errors", "imported", "markdown", "problem", "recipe", "reference",
    "run", "score", "train", "velocity_error", "verdict", "with_fm_fraction",
]  # fmt: skip
