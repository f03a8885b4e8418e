"""Precision, recall, density and coverage: how two sets of features overlap as neighbourhoods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.base import EMBEDDED, SetMetric
from eval.metrics.uncertainty import Estimate, Jackknife, group_labels, groups_for

if TYPE_CHECKING:
    from torch import Tensor

    from eval.metrics.embeddings import Embeddings
    from eval.metrics.moments.gaussian import Features


@dataclass(frozen=True, kw_only=True)
class ManifoldScores:
    """Scores with neighbourhoods of `neighbours` clips, and both numbers of clips.

    precision: fraction of generated clips inside the ball of some reference clip (arXiv 1904.06991).
    recall: fraction of reference clips inside the ball of some generated clip (same).
    density: reference balls a generated clip lies in, over `neighbours`, averaged (arXiv 2002.09797); may exceed 1.
    coverage: fraction of reference clips whose ball holds a generated clip (same).
    """

    precision: float
    recall: float
    density: float
    coverage: float
    neighbours: int
    reference_count: int
    generated_count: int


def manifold_scores(reference: Features, generated: Features, *, neighbours: int = 5) -> ManifoldScores:
    """The four scores; the ball of a clip reaches to its `neighbours`-th nearest other clip of its set, edge included.

    5 is the custom of density and coverage, 3 of precision and recall (and torch-fidelity's default). All depend on
    the numbers of clips, so compare only equal ones. Equal laws give density 1 and coverage about 1 - 2^-neighbours
    when both sets are equally large. Float64, in blocks of 1024 clips against blocks of 1024.

    Raises:
        ValueError: different dimensions, not finite, or `neighbours` not between 1 and the smaller count - 1.
    """
    import torch

    from eval.metrics.moments.pairwise import aligned, row_blocks, squared_distances

    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    x, y = aligned(reference, generated, least=neighbours + 1)
    x_radius, y_radius = _squared_radii(x, neighbours), _squared_radii(y, neighbours)
    x_blocks, y_blocks = row_blocks(len(x)), row_blocks(len(y))
    balls = torch.zeros(len(y), dtype=torch.int64)  # reference balls each generated clip lies in
    covered, recalled = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for i, j, block in squared_distances(x, y, x_blocks, y_blocks):
        rows, columns = x_blocks[i], y_blocks[j]
        inside = block <= x_radius[rows, None]
        balls[columns] += inside.sum(dim=0)
        covered[rows] |= inside.any(dim=1)
        recalled[rows] |= (block <= y_radius[None, columns]).any(dim=1)
    return ManifoldScores(
        precision=float((balls > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(balls.double().mean()) / neighbours,
        coverage=float(covered.double().mean()),
        neighbours=neighbours,
        reference_count=len(x),
        generated_count=len(y),
    )


def _squared_radii(x: Tensor, neighbours: int) -> Tensor:
    """Squared distance of every row to its `neighbours`-th nearest other row, with only that many candidates stored."""
    import torch

    from eval.metrics.moments.pairwise import row_blocks, squared_distances

    blocks = row_blocks(len(x))
    nearest: list[Tensor] = [x.new_empty(rows.stop - rows.start, 0) for rows in blocks]
    for i, j, block in squared_distances(x, x, blocks, blocks):
        if i == j:
            block.fill_diagonal_(torch.inf)
        candidates = torch.cat([nearest[i], block], dim=1)
        nearest[i] = candidates.topk(min(neighbours, candidates.shape[1]), dim=1, largest=False).values
    return torch.cat([part[:, -1] for part in nearest])


NEIGHBOURS = 5
MOST_CLIPS = 5000
"""Above this number of clips the intervals, which take twenty times all pairs, are left out."""
PARTS: tuple[tuple[str, Callable[[ManifoldScores], float], str], ...] = (
    ("precision", lambda found: found.precision, "fraction of generated clips that lie among real ones: quality"),
    ("recall", lambda found: found.recall, "fraction of real clips that lie among generated ones: variety"),
    (
        "density",
        lambda found: found.density,
        "how many real neighbourhoods a generated clip lies in, relative to the neighbours counted: quality, without "
        "one outlier deciding",
    ),
    (
        "coverage",
        lambda found: found.coverage,
        "fraction of real clips that have a generated one in their neighbourhood: variety",
    ),
)


def manifold_metrics(source: str, *, label: str, features: str, prefix: str = "") -> tuple[SetMetric, ...]:
    """The declarations of the four scores of one source, computed together, one row per clip; none below 6 clips."""

    def value(reference: Embeddings, generated: Embeddings) -> dict[str, float]:
        if min(len(reference), len(generated)) <= NEIGHBOURS:
            return {}
        found = manifold_scores(reference.means, generated.means, neighbours=NEIGHBOURS)
        return {prefix + name: of(found) for name, of, _ in PARTS}

    def estimate(reference: Embeddings, generated: Embeddings) -> dict[str, Estimate]:
        counts = len(reference), len(generated)
        groups = groups_for(*counts)
        if groups is None or min(counts) < 2 * NEIGHBOURS + 2 or max(counts) > MOST_CLIPS:
            return {}
        x, y = reference.means, generated.means
        labels = group_labels(counts, groups=groups)
        whole = manifold_scores(x, y, neighbours=NEIGHBOURS)
        without = [
            manifold_scores(x[labels[0] != group], y[labels[1] != group], neighbours=NEIGHBOURS)
            for group in range(groups)
        ]
        return {
            prefix + name: Estimate.of_jackknife(
                Jackknife(value=of(whole), replicates=tuple(map(of, without)), counts=counts, seed=0)
            )
            for name, of, _ in PARTS
        }

    return tuple(
        SetMetric(
            key=prefix + name,
            label=f"{name.capitalize()} ({label})",
            better="higher",
            digits=3,
            explanation=f"In {features}, 5 neighbours: {text}.",
            source=source,
            needs="features",
            value=value,
            estimate=estimate,
        )
        for name, _, text in PARTS
    )


MANIFOLD_PASST = manifold_metrics("passt", label="PaSST", features="PaSST features", prefix="passt_")
MANIFOLD_EMBEDDED = manifold_metrics(EMBEDDED, label="embedded", features="embedded features")
