"""How each objective is trained in the toy bench: one table. Budget, network and loss are the same for all."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from meanflow.density import Uniform
from meanflow.loss import AdaptiveL2, Loss
from meanflow.objectives import (
    AlphaFlow,
    ConsistencyTraining,
    ImprovedMeanFlow,
    MeanFlow,
    PlainFlowMatching,
    Residual,
    SplitMeanFlow,
    TerminalVelocity,
    TransitionModel,
)
from meanflow.time_sampling import MixedTimes, Ordered

AnyObjective: TypeAlias = Callable[..., Residual]
"""The call of `meanflow.ObjectiveLike`, spelt so that it can be checked at run time."""


def times(fm_fraction: float, *, zero_fraction: float = 0.0, corner_fraction: float = 0.0) -> MixedTimes:
    """Uniform times: rows with r = t in the given share, with t ~ U(0, 1); the others ordered pairs of U(0, 1).

    Uniform in place of the published logit-normal densities, since these almost never reach t = 1 or r = 0, where
    every one-step sample is taken; images and sounds forgive that, a comparison with an exact map does not.
    """
    return MixedTimes(
        pairs=Ordered(first=Uniform()),
        fm_fraction=fm_fraction,
        fm_density=Uniform(),
        zero_fraction=zero_fraction,
        corner_fraction=corner_fraction,
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An objective with the choices that belong to it.

    The loss is the plain squared error. An adaptive weight counts rows less where their error is large; with e - x in
    place of v that error is mostly the scatter of e - x, and where this differs from row to row, as it does in 2
    dimensions, the weighted mean that is learnt is not v.
    """

    objective: AnyObjective
    with_teacher: AnyObjective | None = None
    """The form that takes its place where the exact velocity stands for a teacher; None = the same."""
    times: MixedTimes = field(default_factory=lambda: times(0.5))
    loss: Loss = field(default_factory=lambda: AdaptiveL2(p=0.0))
    head: bool = False
    """Whether the network gets a velocity head."""
    learns: Literal["u", "v", "end"] = "u"
    """What the network ends up as: u(x_t, r, t) for all r; u(x_t, t, t) = v alone, sampled in Euler steps; or
    u(x_t, 0, t) alone, good for one step (in more, a consistency model adds fresh noise and leaves the flow)."""


RECIPES: dict[str, Recipe] = {
    "MeanFlow": Recipe(objective=MeanFlow()),
    "ImprovedMeanFlow": Recipe(objective=ImprovedMeanFlow()),
    "ImprovedMeanFlow-head": Recipe(objective=ImprovedMeanFlow(head=True), head=True),
    "AlphaFlow": Recipe(objective=AlphaFlow()),
    "SplitMeanFlow": Recipe(objective=SplitMeanFlow()),
    "TransitionModel": Recipe(objective=TransitionModel()),
    "TerminalVelocity": Recipe(objective=TerminalVelocity(), with_teacher=TerminalVelocity(source="teacher")),
    "ConsistencyTraining": Recipe(objective=ConsistencyTraining(), times=times(1.0), learns="end"),
    "PlainFlowMatching": Recipe(objective=PlainFlowMatching(), times=times(1.0), learns="v"),
}

FLOW_MATCHING = RECIPES["PlainFlowMatching"]
"""What a warm start is trained with."""


def recipe(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"objective must be one of {list(RECIPES)}, got {name!r}")
    return RECIPES[name]


def imported(path: str, *, head: bool = False) -> tuple[str, Recipe]:
    """Name and default recipe of an objective given as `module:name`, a class that needs no arguments or an instance.

    Raises ValueError when there is no such module or name, or when it cannot be called.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise ValueError(f"an objective is imported as module:name, got {path!r}")
    try:
        found = vars(importlib.import_module(module)).get(attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"no module for {path!r}: {error}") from error
    if found is None:
        raise ValueError(f"{module} has no {attribute!r}")
    try:
        objective = found() if isinstance(found, type) else found
    except TypeError as error:
        raise ValueError(f"{path} needs arguments; give an instance instead: {error}") from error
    if not callable(objective):
        raise ValueError(f"{path} cannot be called; see meanflow.ObjectiveLike, got {type(objective).__name__}")
    return attribute, Recipe(objective=objective, head=head)


def with_fm_fraction(chosen: Recipe, fm_fraction: float | None) -> Recipe:
    """Another share of rows with r = t, for the objectives that learn u; None = the recipe's own."""
    if fm_fraction is None or chosen.learns != "u":
        return chosen
    return replace(chosen, times=replace(chosen.times, fm_fraction=fm_fraction))
