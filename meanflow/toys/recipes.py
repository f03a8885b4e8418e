"""How each objective is trained in the toy bench: one table. Budget, network and loss are the same for all."""

import importlib
from dataclasses import dataclass, field, replace
from typing import get_args

from meanflow.density import Uniform
from meanflow.loss import AdaptiveL2, Loss
from meanflow.objectives import ImprovedMeanFlow, Needs, Objective, ObjectiveLike, TerminalVelocity
from meanflow.time_sampling import MixedTimes, Ordered


def times(fm_fraction: float, *, zero_fraction: float = 0.0, corner_fraction: float = 0.0) -> MixedTimes:
    """Uniform times: a fraction of rows has r = t with t ~ U(0, 1); the others are ordered pairs of U(0, 1).

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

    objective: ObjectiveLike
    with_teacher: ObjectiveLike | None = None
    """The form that takes its place where the exact velocity stands for a teacher; None = the same."""
    times: MixedTimes = field(default_factory=lambda: times(0.5))
    loss: Loss = field(default_factory=lambda: AdaptiveL2(p=0.0))

    @classmethod
    def of(cls, objective: ObjectiveLike, with_teacher: ObjectiveLike | None = None) -> "Recipe":
        """The recipe that follows from what the objective declares: half of the rows have r = t where it learns u for
        every r <= t; else r is not read, and t is uniform on all rows."""
        return cls(
            objective=objective,
            with_teacher=with_teacher,
            times=times(0.5 if _learns_u(objective.needs) else 1.0),
        )


def _learns_u(needs: Needs) -> bool:
    """Whether u(x_t, r, t) is learnt for every r <= t, and not for r = t or for r = 0 alone."""
    return needs.learns_boundary and needs.learns_intervals


def _recipes() -> dict[str, Recipe]:
    """Every objective of the union in its order, and variants beside it."""
    found = {kind.__name__: Recipe.of(kind()) for kind in get_args(Objective)}
    order = list(found)
    found["ImprovedMeanFlow-head"] = Recipe.of(ImprovedMeanFlow(head=True))
    found["TerminalVelocity"] = Recipe.of(TerminalVelocity(), with_teacher=TerminalVelocity(source="teacher"))
    return dict(sorted(found.items(), key=lambda item: order.index(item[0].partition("-")[0])))


RECIPES = _recipes()
"""How each objective is trained, by the name in the table."""


FLOW_MATCHING = RECIPES["PlainFlowMatching"]
"""What a warm start is trained with."""


def recipe(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"objective must be one of {list(RECIPES)}, got {name!r}")
    return RECIPES[name]


def imported(path: str) -> tuple[str, Recipe]:
    """Name and default recipe of an objective given as `module:name`, a class that needs no arguments or an instance.

    Raises ValueError where there is no such module or name, and for what is no objective.
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
    if not isinstance(objective, ObjectiveLike):
        raise ValueError(f"{path} declares no `needs`; add needs = meanflow.Needs(), as in meanflow.ObjectiveLike")
    return attribute, Recipe.of(objective)


def with_fm_fraction(chosen: Recipe, fm_fraction: float | None) -> Recipe:
    """Recipes with another fraction of rows with r = t, where the objective learns u; None = the recipe's own."""
    if fm_fraction is None or not _learns_u(chosen.objective.needs):
        return chosen
    return replace(chosen, times=replace(chosen.times, fm_fraction=fm_fraction))
