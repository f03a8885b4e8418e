"""Cosine between the two embeddings of a clip: the ImageBind score and the CLAP scores, and what chance gives.

ImageBind score (arXiv 2305.05665): picture and sound of a clip, each the mean over its parts of unit vectors; papers
print 100 times the mean over clips. CLAP score (arXiv 2211.06687): sound and caption; printed as it is, negative
values kept. Nothing is clipped or scaled here.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from eval.metrics.moments.gaussian import Features, as_matrix

PRINTED_IMAGEBIND_SCALE = 100.0
"""Papers print the ImageBind score as this many times the mean cosine, the CLAP scores as the mean cosine itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignmentScore:
    """How well the two sides of each clip agree, beside the same sides paired wrongly."""

    per_clip: NDArray[np.float64]
    """Cosine of clip i's two embeddings, (clips,), each in [-1, 1]."""
    shuffled: NDArray[np.float64]
    """Cosine of clip i's first embedding and another clip's second one, (clips,)."""
    chance: float
    """Mean of `shuffled` over all derangements: the mean cosine of two embeddings of different clips."""
    seed: int
    """Seed of the derangement behind `shuffled`."""

    def __post_init__(self) -> None:
        if self.per_clip.ndim != 1 or self.per_clip.shape != self.shuffled.shape or len(self.per_clip) < 2:
            raise ValueError(
                "per_clip and shuffled must be of the same two clips or more, "
                f"got {self.per_clip.shape} and {self.shuffled.shape}"
            )

    @classmethod
    def from_embeddings(cls, a: Features, b: Features, *, seed: int = 0) -> Self:
        """a, b (clips, d), row i of both from clip i; they need not have length 1.

        Raises:
            ValueError: unequal shapes, fewer than two clips, a row that is zero or not finite.
        """
        first, second = _unit_pair(a, b)
        order = derangement(len(first), seed=seed)
        per_clip = _row_products(first, second)
        # All pairs less the n right ones: no matrix of pairs is needed.
        crossed = float(first.sum(axis=0) @ second.sum(axis=0)) - float(per_clip.sum())
        return cls(
            per_clip=per_clip,
            shuffled=_row_products(first, second[order]),
            chance=crossed / (len(first) * (len(first) - 1)),
            seed=seed,
        )

    @property
    def mean(self) -> float:
        """The score: mean cosine over clips."""
        return float(self.per_clip.mean())


def paired_cosines(a: Features, b: Features) -> NDArray[np.float64]:
    """<a_i, b_i> / (|a_i| |b_i|) for rows of a and b (clips, d); (clips,) in float64.

    No epsilon guards the division, unlike torch's cosine_similarity: a zero vector has no direction.

    Raises:
        ValueError: unequal shapes, no clips, a row that is zero or not finite.
    """
    return _row_products(*_unit_pair(a, b))


def mean_of_unit_parts(parts: Features, name: str = "parts") -> NDArray[np.float64]:
    """(clips, parts, d) -> (clips, d): each part brought to length 1, then averaged, as ImageBind joins its three
    2-s pieces of sound and nine of picture.

    The mean is not brought back to length 1; `paired_cosines` does not mind.

    Raises:
        ValueError: not three-dimensional, no parts, a part that is zero or not finite.
    """
    shape = tuple(parts.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"{name} must have shape (clips, parts, dimensions), none of them 0, got {shape}")
    flat = parts.reshape(shape[0] * shape[1], shape[2])
    return _unit(flat, name).reshape(shape).mean(axis=1)


def derangement(count: int, *, seed: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that leaves nothing in place, uniform among all of those.

    Drawn until it is one, e = 2.7 times on average. Raises ValueError for fewer than 2: one thing has nowhere to go.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2 (a single clip cannot be paired with another), got {count}")
    generator, places = np.random.default_rng(seed), np.arange(count)
    while True:
        order = generator.permutation(count)
        if not (order == places).any():
            return order


def _unit_pair(a: Features, b: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"a and b must be paired embeddings of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) == 0:
        raise ValueError("a and b must hold at least one clip, got none")
    return _unit(a, "a"), _unit(b, "b")


def _unit(features: Features, name: str) -> NDArray[np.float64]:
    matrix = as_matrix(features, name)
    # Divided by the largest entry first: squares of 1e-200 or 1e200 leave the range of float64.
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(f"{name} must have no zero row (it has no direction), row {int(largest.argmin())} is zero")
    matrix = matrix / largest
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _row_products(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("nd,nd->n", a, b).clip(-1.0, 1.0)  # beyond 1 only by rounding
