"""Guidance at few steps compared with the true guided flow: `python -m benchmarks.one_step_guidance`.

Prints Markdown tables; `docs/guidance.md` quotes them. In closed form (Gaussian mixtures) the destination of the true
guided flow, dx/dt = v_u + omega (v_c - v_u), is known for every noise; so are the exact averages u_c and u_u that the
rules combine. What is measured is the rule, not a network.

    error = rms |x_rule - x_guided| / rms |x_guided - x_cond|      from the same noise, over all samples

is relative to the effect of guidance: 0 is the guided flow, 1 is as far off as no guidance at all.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from eval.ledger import NumberTable, record
from meanflow import GaussianFlow, Guidance, jump
from meanflow.mixture import GuidedFlow, MixtureFlow, Quadrature

OMEGAS = (1.5, 2.0, 3.0, 4.5, 7.0)
LOG_FACTOR = 0.4
"""c of the log rule, omega_1 = 1 + c ln omega."""
TURN = 0.8
"""Time at which the guided part of a short push ends."""
SCAN = (1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.5, 6.0)
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Problem:
    """A conditional and an unconditional flow, and noise (B, 1, C) to start from."""

    name: str
    cond: GaussianFlow | MixtureFlow
    uncond: GaussianFlow | MixtureFlow
    e: Tensor

    def both(self, x: Tensor, r: float, t: float) -> tuple[Tensor, Tensor]:
        """u_c and u_u over [r, t]; x may hold the noise several times over, which is computed once."""
        copies = len(x) // len(self.e) if t == 1.0 else 1
        x = self.e if t == 1.0 else x
        ends = x.new_full((len(x),), r), x.new_full((len(x),), t)
        return self.cond.u(x, *ends).repeat(copies, 1, 1), self.uncond.u(x, *ends).repeat(copies, 1, 1)

    @cached_property
    def plain(self) -> Tensor:
        """End points of the conditional flow."""
        return self.steps([1.0, 0.0], Guidance(), [1.0])[0]

    @cached_property
    def guided(self) -> list[Tensor]:
        """End points of the guided flow, for every omega."""
        rule = Quadrature(scale=0.25, tolerance=TOLERANCE)
        flows = [GuidedFlow(cond=self.cond, uncond=self.uncond, omega=w, quadrature=rule) for w in OMEGAS]
        one = self.e.new_ones(len(self.e))
        return [flow.flow(self.e, 0 * one, one) for flow in flows]

    def steps(self, grid: list[float], rule: Guidance, omegas: list[float]) -> list[Tensor]:
        """Jumps along the grid with the guided average velocity, for every omega at once."""
        x = self.e.repeat(len(omegas), 1, 1)
        for t, r in pairwise(grid):
            c, u = (part.chunk(len(omegas)) for part in self.both(x, r, t))
            times = self.e.new_full((len(self.e),), t)
            push = [replace(rule, omega=w)(c[k], u[k], times).value for k, w in enumerate(omegas)]
            x = jump(x, torch.cat(push), x.new_full((len(x),), r), x.new_full((len(x),), t))
        return list(x.chunk(len(omegas)))

    def fitted(self) -> list[float]:
        """The weight with which one step of plain guidance comes closest to the guided flow, by least squares."""
        c, u = self.both(self.e, 0.0, 1.0)
        return [1 + float(((x - self.plain) * (u - c)).sum() / (u - c).square().sum()) for x in self.guided]

    def short_push(self) -> list[Tensor]:
        """One jump with u_c over [0, 1] and the push u_c - u_u of [TURN, 1] alone, at the log rule's weight."""
        c, u = self.both(self.e, TURN, 1.0)
        return [self.plain - LOG_FACTOR * math.log(w) * (c - u) for w in OMEGAS]

    def error(self, x: Tensor, k: int) -> float:
        """rms |x - guided| / rms |guided - conditional| for omega number k."""
        return float((x - self.guided[k]).norm() / (self.guided[k] - self.plain).norm())

    def amplification(self, x: Tensor) -> float:
        """Mean of the samples along the mean of the class, in units of the latter."""
        mean = self.cond.mu if isinstance(self.cond, GaussianFlow) else self.cond.mu.mean(0)
        return float((x.mean(0) * mean).sum() / mean.square().sum())


def spread(x: Tensor) -> float:
    """Root mean square deviation of the samples from their mean, per coordinate."""
    return float((x - x.mean(0)).square().mean().sqrt())


def mixture(mu: Tensor, s: float) -> MixtureFlow:
    """A mixture of equally weighted Gaussians with means mu (K, C) and standard deviation s."""
    k = len(mu)
    return MixtureFlow(
        weights=torch.full((k,), 1 / k, dtype=mu.dtype),
        mu=mu[:, None],
        s=mu.new_full((k, 1, 1), s),
        tolerance=TOLERANCE,
    )


def ring(classes: int, radius: float, s: float) -> MixtureFlow:
    """A mixture whose means are on a circle."""
    angle = 2 * math.pi * torch.arange(classes, dtype=torch.float64) / classes
    return mixture(radius * torch.stack([angle.cos(), angle.sin()], 1), s)


def means(classes: int, channels: int, rms: float) -> Tensor:
    """Random class means of the given root mean square; around zero when there are several."""
    mu = torch.randn(classes, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu = mu - mu.mean(0) if classes > 1 else mu
    return mu * rms / mu.square().mean().sqrt()


def problems() -> list[Problem]:
    """From overlapping to distinct classes, in 2 and 64 dimensions."""

    def noise(n: int, channels: int) -> Tensor:
        return torch.randn(n, 1, channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    small, wide = ring(4, 1.3, 0.5), ring(8, 1.3, 0.25)
    close, apart = mixture(means(8, 64, 0.35), 0.8), mixture(means(6, 64, 0.785), 0.5)
    m = means(1, 64, 0.785)
    one = GaussianFlow(mu=m, s=torch.full_like(m, 0.5)), GaussianFlow(mu=0 * m, s=torch.full_like(m, 0.93))
    return [
        Problem("2-D, 4 classes on a ring, s 0.5", small.conditional(0), small, noise(128, 2)),
        Problem(
            "2-D, 8 components on a ring, s 0.25, a class is two of them", wide.subset([0, 1]), wide, noise(128, 2)
        ),
        Problem("64-d, one Gaussian in a wider one (s 0.5 in 0.93)", *one, noise(128, 64)),
        Problem("64-d, 8 overlapping classes (means 0.35, s 0.8)", close.conditional(0), close, noise(48, 64)),
        Problem("64-d, 6 distinct classes (means 0.785, s 0.5)", apart.conditional(0), apart, noise(48, 64)),
    ]


def rules(p: Problem) -> dict[str, tuple[str, list[Tensor]]]:
    """Name -> network evaluations (one after another x side by side), destinations for every omega."""
    once, free = [1.0, 0.0], (-1e9, 1e9)
    omegas, log_rule = list(OMEGAS), [1 + LOG_FACTOR * math.log(w) for w in OMEGAS]
    off = Guidance(rescale=False)
    table: dict[str, Callable[[], list[Tensor]]] = {
        "no guidance · 1 x 1": lambda: [p.plain] * len(OMEGAS),
        "1 step, plain · 1 x 2": lambda: p.steps(once, off, omegas),
        "1 step, s* unclamped · 1 x 2": lambda: p.steps(once, Guidance(clamp=free), omegas),
        "1 step, s* in [0, 2] · 1 x 2": lambda: p.steps(once, Guidance(), omegas),
        "1 step, std rescaling (phi 1) · 1 x 2": lambda: p.steps(
            once, Guidance(rescale=False, std_rescale=1.0), omegas
        ),
        "1 step, projected (parallel 0) · 1 x 2": lambda: p.steps(once, Guidance(rescale=False, parallel=0.0), omegas),
        f"1 step, plain at 1 + {LOG_FACTOR} ln omega · 1 x 2": lambda: p.steps(once, off, log_rule),
        f"1 step, s* in [0, 2] at 1 + {LOG_FACTOR} ln omega · 1 x 2": lambda: p.steps(once, Guidance(), log_rule),
        "1 step, plain at the best weight · 1 x 2": lambda: [p.steps(once, off, [w])[0] for w in p.fitted()],
        f"1 step, push of [{TURN}, 1] at {LOG_FACTOR} ln omega · 1 x 3": p.short_push,
        f"2 steps (1, {TURN}, 0), first guided · 2 x 1.5": lambda: p.steps(
            [1.0, TURN, 0.0], Guidance(rescale=False, interval=(0.9, 1.0)), omegas
        ),
        "2 steps, plain · 2 x 2": lambda: p.steps([1.0, 0.5, 0.0], off, omegas),
        "2 steps, s* in [0, 2] · 2 x 2": lambda: p.steps([1.0, 0.5, 0.0], Guidance(), omegas),
        "4 steps, plain · 4 x 2": lambda: p.steps([1.0, 0.75, 0.5, 0.25, 0.0], off, omegas),
        "4 steps, s* in [0, 2] · 4 x 2": lambda: p.steps([1.0, 0.75, 0.5, 0.25, 0.0], Guidance(), omegas),
    }
    return {name.split(" · ")[0]: (name.split(" · ")[1], make()) for name, make in table.items()}


def table(*titles: str, rows: Sequence[Sequence[str | float]]) -> NumberTable:
    """Numbers with two decimals."""
    return NumberTable(columns=titles, formats=(".2f",) * len(titles), rows=tuple(tuple(row) for row in rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="also write the figures to this file of the ledger")
    args = parser.parse_args()
    began = time.perf_counter()
    tables, text = measured(problems())
    for name, shown in tables.items():
        print(f"\n### {name}\n\n{text.get(name, '')}\n\n{shown.markdown()}")
    print(f"\n{time.perf_counter() - began:.0f} s, torch {torch.__version__}")
    if args.record:
        record(args.record, tables=tables, text={f"{name}-note": note for name, note in text.items()})


def measured(solved: list[Problem]) -> tuple[dict[str, NumberTable], dict[str, str]]:
    """Tables by name, and a line about some of them. Problems are numbered from 1."""
    tables: dict[str, NumberTable] = {}
    text: dict[str, str] = {}
    worst: dict[str, list[list[float]]] = {}
    columns = [f"omega {w:g}" for w in OMEGAS]
    for number, p in enumerate(solved, 1):
        destinations = rules(p)
        c, u = p.both(p.e, 0.0, 1.0)
        s_star = Guidance(clamp=(-1e9, 1e9)).s_star(c, u)
        text[f"errors-{number}"] = (
            f"**{p.name}**: rms u_u / rms u_c {float(u.norm() / c.norm()):.2f}; "
            f"s* {float(s_star.mean()):.2f} on average, {float(s_star.min()):.2f} to {float(s_star.max()):.2f}."
        )
        plain = [p.error(x, k) for k, x in enumerate(destinations["1 step, plain"][1])]
        lines: list[list[str | float]] = []
        for name, (evaluations, ends) in destinations.items():
            errors = [p.error(x, k) for k, x in enumerate(ends)]
            lines.append([name, evaluations, *errors])
            worst.setdefault(name, []).append([a / b for a, b in zip(errors, plain, strict=True)])
        tables[f"errors-{number}"] = table("error (1 = no guidance)", "evaluations", *columns, rows=lines)
        shown = {"guided flow": p.guided} | {
            n: destinations[n][1] for n in ("1 step, plain", "1 step, s* in [0, 2]", "4 steps, plain")
        }
        means = [[name, *(f"{p.amplification(x):.2f} / {spread(x):.2f}" for x in ends)] for name, ends in shown.items()]
        tables[f"means-{number}"] = table("class mean (1 = no guidance) / deviation", *columns, rows=means)
    summary: list[list[str | float]] = []
    for name, ratios in worst.items():
        cases = [a for one in ratios for a in one]
        largest = [max(one[k] for one in ratios) for k in range(len(OMEGAS))]
        summary.append([name, *largest, f"{sum(a <= 0.5 for a in cases)} of {len(cases)}"])
    tables["rules"] = table("error over that of one plain step, largest", *columns, "cases at most half", rows=summary)
    slopes = [[p.name, *((w - 1) / math.log(o) for w, o in zip(p.fitted(), OMEGAS, strict=True))] for p in solved]
    tables["weights"] = table("one step: (best weight - 1) / ln omega", *columns, rows=slopes)
    tables["instead"] = table(
        "in place of 4.5 (error)", "1 step", "2 steps", "4 steps", rows=[_instead(p) for p in solved]
    )
    return tables, text


def _instead(p: Problem) -> list[str | float]:
    """Weights of plain guidance that come closest to the guided flow of 4.5 in 1, 2 and 4 steps."""
    k = OMEGAS.index(4.5)
    one = p.fitted()[k]
    cells = [f"{one:.2f} ({p.error(p.steps([1.0, 0.0], Guidance(rescale=False), [one])[0], k):.2f})"]
    for n in (2, 4):
        ends = p.steps([1 - i / n for i in range(n + 1)], Guidance(rescale=False), list(SCAN))
        error, weight = min((p.error(x, k), w) for x, w in zip(ends, SCAN, strict=True))
        cells.append(f"{weight:g} ({error:.2f})")
    return [p.name, *cells]


if __name__ == "__main__":
    main()
