"""Judging a trained network against the exact flow map, and running the whole grid of trainings."""

import functools
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
from meanflow.toys.network import average_velocity
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
    """By number of steps n: rms(x_n - x) / rms(x - e), both over points and coordinates; x_n is where n steps lead from
    e, and x where the exact flow does. Not moving at all scores 1. One step only for a network that learns the end
    of the flow alone; empty after a divergence."""
    velocity_error: float | None
    """rms(u(x_t, t, t) - v(x_t, t)) / rms(v(x_t, t)), t uniform, x_t on the exact marginals; None where
    u(x_t, t, t) is not learnt."""
    seconds_per_step: float
    diverged_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and its judgement."""

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
    """Train and judge. Training runs on one thread, for which its time is counted."""
    toy, threads = problem(job.problem), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = train(job.recipe, toy, job.budget, seed=job.seed, source=job.source)
    finally:
        torch.set_num_threads(threads)
    at, u_fn = reference(job.problem), functools.partial(average_velocity, trained.net)
    finite, learns = trained.diverged_at is None, job.recipe.learns
    counts = [n for n in job.sampling_steps if n == 1 or learns != "end"] if finite else []

    def v_fn(x_t: Tensor, t: Tensor) -> Tensor:
        return u_fn(x_t, t, t)

    return Score(
        objective=job.name,
        problem=job.problem,
        seed=job.seed,
        errors=flow_errors((lambda x_t, r, t: v_fn(x_t, t)) if learns == "v" else u_fn, at, counts),
        velocity_error=velocity_error(v_fn, at) if finite and learns != "end" else None,
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
