"""Precision, recall, density and coverage: how two sets of features overlap as neighbourhoods."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eval.metrics.moments.gaussian import Features
from eval.metrics.moments.pairwise import aligned, row_blocks, squared_distances


@dataclass(frozen=True, kw_only=True)
class ManifoldScores:
    """Scores with neighbourhoods of `neighbours` clips, and both numbers of clips.

    precision: share of generated clips inside the ball of some reference clip (arXiv 1904.06991).
    recall: share of reference clips inside the ball of some generated clip (same).
    density: reference balls a generated clip lies in, over `neighbours`, averaged (arXiv 2002.09797); may exceed 1.
    coverage: share of reference clips whose ball holds a generated clip (same).
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
    """Squared distance of every row to its `neighbours`-th nearest other row; only that many candidates are kept."""
    blocks = row_blocks(len(x))
    nearest: list[Tensor] = [x.new_empty(rows.stop - rows.start, 0) for rows in blocks]
    for i, j, block in squared_distances(x, x, blocks, blocks):
        if i == j:
            block.fill_diagonal_(torch.inf)
        candidates = torch.cat([nearest[i], block], dim=1)
        nearest[i] = candidates.topk(min(neighbours, candidates.shape[1]), dim=1, largest=False).values
    return torch.cat([part[:, -1] for part in nearest])
