"""From an error field to one loss per sample, with robust weights under stop-gradient."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from meanflow.shapes import Latent, PerSample


@dataclass(frozen=True, kw_only=True)
class AdaptiveL2:
    """w ||delta||^2 with w = (||delta||^2 + c)^-p under stop-gradient (arXiv 2505.13447, eq. 22).

    p = 0 is the plain squared error. `reduction` states whether ||.||^2 sums or averages over frames and channels; it
    changes the meaning of c by the size of a latent (5,000 for 250 x 20). With p = 1 the value stays near 1 whatever
    the error: log the raw error beside it.
    """

    p: float = 1.0
    c: float = 1e-2
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"p must lie in [0, 1], got {self.p}")
        if not self.c > 0.0:
            raise ValueError(f"c must be positive, got {self.c}")

    def __call__(self, delta: Latent) -> PerSample:
        squared = delta.float().pow(2).flatten(1) if delta.dtype.itemsize < 4 else delta.pow(2).flatten(1)
        error = squared.mean(1) if self.reduction == "mean" else squared.sum(1)
        return error * (error.detach() + self.c).pow(-self.p)


@dataclass(frozen=True, kw_only=True)
class PseudoHuber:
    """sqrt(||delta||^2 + c^2) - c, ||.||^2 averaged over frames and channels (arXiv 2310.14189, eq. 10)."""

    c: float = 1e-2

    def __post_init__(self) -> None:
        if not self.c > 0.0:
            raise ValueError(f"c must be positive, got {self.c}")

    def __call__(self, delta: Latent) -> PerSample:
        return (delta.pow(2).flatten(1).mean(1) + self.c**2).sqrt() - self.c


Loss: TypeAlias = AdaptiveL2 | PseudoHuber
