"""Errors of trained networks against the exact flow map, the grid of trainings, and tables with a computed verdict."""

import functools
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from meanflow.path import interpolate
from meanflow.sampling import euler, sample, time_grid
from meanflow.shapes import AverageVelocity, Latent, Time, Velocity
from meanflow.toys.problems import problem
from meanflow.toys.recipes import Recipe
from meanflow.toys.train import Budget, Source, train

EULER = "exact v, Euler"
"""Name of the row that needs no training: the problem's own v in Euler steps, what plain flow matching tends to."""


class Reference(NamedTuple):
    """Where errors are measured: the same points for every objective, seed and step count."""

    e: Latent
    x: Latent
    """flow(e, 0, 1): where the exact flow takes the noise e."""
    x_t: Latent
    t: Time
    v: Latent
    """v(x_t, t)."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Errors of one training; lower is better, 0 is the exact flow map."""

    objective: str
    problem: str
    seed: int
    errors: dict[int, float]
    """Errors by number of steps n: rms(x_n - x) / rms(x - e), both over points and coordinates. n steps lead from e to
    x_n, the exact flow to x; not moving at all scores 1. One step only for a network that learns the end of the flow
    alone; empty after a divergence."""
    velocity_error: float | None
    """rms(u(x_t, t, t) - v(x_t, t)) / rms(v(x_t, t)), t uniform, x_t on the exact marginals; None where
    u(x_t, t, t) is not learnt."""
    seconds_per_step: float
    diverged_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and the measurement of its errors."""

    name: str
    recipe: Recipe
    problem: str
    seed: int
    budget: Budget
    source: Source
    sampling_steps: tuple[int, ...]


@functools.lru_cache(maxsize=8)
def reference(name: str, points: int = 1024) -> Reference:
    """The points of a problem, from a seed of their own."""
    toy, g = problem(name), torch.Generator().manual_seed(20_250_513)
    e, x, other = (torch.randn(points, toy.frames, toy.channels, generator=g) for _ in range(3))
    x, t = toy.sample(points, generator=g), torch.rand(points, generator=g)
    x_t = interpolate(x, other, t)
    ends = (torch.zeros(points), torch.ones(points))
    return Reference(e=e, x=toy.flow(e, *ends), x_t=x_t, t=t, v=toy.v(x_t, t))


@torch.no_grad()
def flow_errors(u_fn: AverageVelocity, at: Reference, sampling_steps: Sequence[int]) -> dict[int, float]:
    """Relative error of the end points of average-velocity steps, by number of steps on an even grid."""
    return {n: _relative(sample(u_fn, at.e, time_grid(n)) - at.x, at.x - at.e) for n in sampling_steps}


@torch.no_grad()
def velocity_error(v_fn: Velocity, at: Reference) -> float:
    """Relative error of an instantaneous velocity."""
    return _relative(v_fn(at.x_t, at.t) - at.v, at.v)


def score(job: Job) -> Score:
    """Train and measure the errors. Training runs on one thread, whose processor time is counted."""
    toy, threads = problem(job.problem), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = train(job.recipe, toy, job.budget, seed=job.seed, source=job.source)
    finally:
        torch.set_num_threads(threads)
    at, finite, needs = reference(job.problem), trained.diverged_at is None, job.recipe.objective.needs
    counts = [n for n in job.sampling_steps if n == 1 or needs.learns_boundary] if finite else []

    def u_fn(x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u: Tensor = trained.net(x_t, r, t).u
        return u

    def v_fn(x_t: Tensor, t: Tensor) -> Tensor:
        return u_fn(x_t, t, t)

    return Score(
        objective=job.name,
        problem=job.problem,
        seed=job.seed,
        errors=flow_errors(u_fn if needs.learns_intervals else lambda x_t, r, t: v_fn(x_t, t), at, counts),
        velocity_error=velocity_error(v_fn, at) if finite and needs.learns_boundary else None,
        seconds_per_step=trained.seconds_per_step,
        diverged_at=trained.diverged_at,
    )


def euler_score(name: str, sampling_steps: Sequence[int]) -> Score:
    """The exact velocity in Euler steps: what the average velocity has to beat."""
    toy, at = problem(name), reference(name)
    errors = {n: _relative(euler(toy.v, at.e, time_grid(n)) - at.x, at.x - at.e) for n in sampling_steps}
    return Score(objective=EULER, problem=name, seed=0, errors=errors, velocity_error=0.0, seconds_per_step=0.0)


def run(jobs: Sequence[Job], *, workers: int = 1) -> Iterator[Score]:
    """Scores in the order of the jobs, as they are ready; `workers` processes of one thread each."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        yield from map(score, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(score, jobs)


def _relative(error: Tensor, scale: Tensor) -> float:
    return float(error.double().pow(2).mean().sqrt() / scale.double().pow(2).mean().sqrt())


class Cell(NamedTuple):
    """Mean over seeds and their standard deviation (0 for one seed)."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell":
        """Sample statistics, n - 1 in the denominator."""
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
        return cls(mean, spread)

    def ties_with(self, best: "Cell") -> bool:
        """Whether the means differ by no more than the two spreads in sum."""
        return self.mean - best.mean <= self.spread + best.spread

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.spread:.3f}" if self.spread else "")


Cells = dict[str, dict[int, Cell]]
"""Cells by objective and number of steps."""


def markdown(scores: Sequence[Score]) -> str:
    """One table and one verdict per problem, in the order in which problems and objectives appear."""
    if not scores:
        raise ValueError("a table needs at least one score")
    return "\n\n".join(_problem(name, [s for s in scores if s.problem == name]) for name in _names(scores, "problem"))


def verdict(scores: Sequence[Score]) -> str:
    """Which objective has the smallest error at which number of steps, and how one step compares with four."""
    cells = cell_table([s for s in scores if s.objective != EULER])
    if not cells:
        return "Nothing finished, so nothing wins."
    sentences = []
    for names, steps in _runs_of_winners(cells):
        counted = ", ".join(map(str, steps)) + (" step" if steps == [1] else " steps")
        tie = f" (within the spread: {', '.join(names[1:])})" if len(names) > 1 else ""
        sentences.append(f"At {counted} {names[0]} has the smallest error{tie}.")
    if {1, 4} <= set(all_counts(cells)):
        first, ratio = one_to_four(cells)
        sentences.append(f"The best at one step that also takes four, {first}, errs {ratio:.2f} times as much in one.")
    if EULER in (exact := cell_table([s for s in scores if s.objective == EULER])):
        sentences.append(_against_euler(cells, exact[EULER]))
    return " ".join(sentences)


def cell_table(scores: Sequence[Score]) -> Cells:
    """Means and spreads over the seeds that ended; objectives none of whose seeds did are left out."""
    table: Cells = {}
    for name in _names(scores, "objective"):
        ended = [s for s in scores if s.objective == name and s.diverged_at is None]
        if ended:
            table[name] = {n: Cell.of([s.errors[n] for s in ended]) for n in ended[0].errors}
    return table


def all_counts(cells: Cells) -> list[int]:
    """Every number of steps at which the errors of some objective were measured."""
    return sorted({n for row in cells.values() for n in row})


def one_to_four(cells: Cells) -> tuple[str, float]:
    """The objective with the smallest one-step error among those with both, and that error over its four-step error."""
    both = {name: row for name, row in cells.items() if {1, 4} <= set(row)}
    best = min(both, key=lambda name: both[name][1].mean)
    return best, both[best][1].mean / both[best][4].mean


def _problem(name: str, scores: Sequence[Score]) -> str:
    counts = sorted({n for s in scores for n in s.errors})
    titles = ["objective", *(f"{n} step" + "s" * (n > 1) for n in counts), "velocity", "CPU ms a training step"]
    lines = [f"### {name}", "", _row(titles), "|---" * len(titles) + "|"]
    cells = cell_table(scores)
    best = {n: min((row[n].mean for o, row in cells.items() if o != EULER and n in row), default=0.0) for n in counts}
    for objective in _names(scores, "objective"):
        own = [s for s in scores if s.objective == objective]
        lost = [s for s in own if s.diverged_at is not None]
        row = cells.get(objective)
        shown = [(_bold(row[n], best[n]) if n in row else "–") if row else "diverged" for n in counts]
        ended = [s.velocity_error for s in own if s.velocity_error is not None]
        seconds = sum(s.seconds_per_step for s in own) / len(own)
        shown += [str(Cell.of(ended)) if ended else "–", f"{1000 * seconds:.1f}" if seconds else ""]
        note = f" ({len(lost)} of {len(own)} seeds diverged)" if lost else ""
        lines.append(_row([objective + note, *shown]))
    return "\n".join([*lines, "", verdict(scores)])


def _runs_of_winners(cells: Cells) -> list[tuple[list[str], list[int]]]:
    """Neighbouring step counts with the same winner and the same ties, together."""
    runs: list[tuple[list[str], list[int]]] = []
    for n in all_counts(cells):
        order = sorted((name for name in cells if n in cells[name]), key=lambda name: cells[name][n].mean)
        names = [name for name in order if name == order[0] or cells[name][n].ties_with(cells[order[0]][n])]
        if runs and runs[-1][0] == names:
            runs[-1][1].append(n)
        else:
            runs.append((names, [n]))
    return runs


def _against_euler(cells: Cells, exact: dict[int, Cell]) -> str:
    beaten = [n for n in exact if min(row[n].mean for row in cells.values() if n in row) < exact[n].mean]
    if not beaten:
        return "No objective beats Euler steps of the exact velocity."
    return f"The best objective beats Euler steps of the exact velocity at {', '.join(map(str, beaten))}."


def _names(scores: Sequence[Score], kind: str) -> list[str]:
    return list(dict.fromkeys(s.objective if kind == "objective" else s.problem for s in scores))


def _bold(cell: Cell, best: float) -> str:
    return f"**{cell}**" if cell.mean == best else str(cell)


def _row(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"
