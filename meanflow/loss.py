"""From an error field to one loss per sample, with robust weights under stop-gradient."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from meanflow.shapes import Latent, PerSample

Reduction: TypeAlias = Literal["mean", "sum"]


def squared_error(delta: Latent, reduction: Reduction) -> PerSample:
    """||delta||^2 (B,), summed or averaged over frames and channels, in float32 at least."""
    squared = delta.float().pow(2).flatten(1) if delta.dtype.itemsize < 4 else delta.pow(2).flatten(1)
    return squared.mean(1) if reduction == "mean" else squared.sum(1)


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {reduction!r}")


@dataclass(frozen=True, kw_only=True)
class AdaptiveL2:
    """w ||delta||^2 with w = (||delta||^2 + c)^-p under stop-gradient (arXiv 2505.13447, eq. 22).

    p = 0 is the plain squared error. `reduction` states whether ||.||^2 sums or averages over frames and channels; it
    changes the meaning of c by the size of a latent (5,000 for 250 x 20). With p = 1 the value stays near 1 whatever
    the error: log the raw error beside it. Published (p, c, reduction): MeanFlow and improved MeanFlow on ImageNet
    (1, 1e-2, sum), on CIFAR-10 (0.75, 1e-3, sum), MeanAudio and alpha-Flow (1, 1e-3, mean), TiM (1, 1e-5, mean).
    """

    p: float = 1.0
    """Exponent of the weight; 0 = plain squared error."""
    c: float = 1e-2
    """Constant added to the squared error in the weight."""
    reduction: Reduction = "mean"
    """How the squared error is reduced over frames and channels."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 2.0:  # the paper's ablation, table 1e, goes up to 2
            raise ValueError(f"p must lie in [0, 2], got {self.p}")
        if not self.c > 0.0:
            raise ValueError(f"c must be positive, got {self.c}")
        _check_reduction(self.reduction)

    def error(self, delta: Latent) -> PerSample:
        """||delta||^2 (B,), reduced as configured."""
        return squared_error(delta, self.reduction)

    def weight(self, error: PerSample) -> PerSample:
        """(error + c)^-p (B,), without a graph."""
        return (error.detach() + self.c).pow(-self.p)

    def __call__(self, delta: Latent) -> PerSample:
        error = self.error(delta)
        return error * self.weight(error)


@dataclass(frozen=True, kw_only=True)
class PseudoHuber:
    """sqrt(||delta||^2 + c^2) - c (arXiv 2310.14189, eq. 10), ||.||^2 averaged or summed over frames and channels.

    The paper sums, with c = 0.00054 sqrt(d) for d numbers in a sample; averaged, that c is 0.00054.
    """

    c: float = 1e-2
    """Size of the error at which the loss turns from quadratic to linear."""
    reduction: Reduction = "mean"
    """How the squared error is reduced over frames and channels."""

    def __post_init__(self) -> None:
        if not self.c > 0.0:
            raise ValueError(f"c must be positive, got {self.c}")
        _check_reduction(self.reduction)

    def __call__(self, delta: Latent) -> PerSample:
        return (squared_error(delta, self.reduction) + self.c**2).sqrt() - self.c


Loss: TypeAlias = AdaptiveL2 | PseudoHuber
