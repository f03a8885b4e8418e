"""What surrounds a score in a row: its interval, its bias and the number of clips."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from eval.intervals import Interval, Jackknife


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Interval [low, high] of a score at `level`, from `count` clips.

    bias: how much of the score its method and the number of clips make by themselves, so that value - bias is its
    estimate for infinitely many clips; 0 for means over clips and for unbiased estimators.
    """

    low: float
    high: float
    level: float
    bias: float
    count: int
    method: str
    bias_method: str
    replicates: tuple[float, ...] = ()
    """Delete-a-group values, by which two scores of the same clips can be compared pairwise; empty for means."""
    seed: int = 0
    """Of the groups or of the bootstrap."""

    def __post_init__(self) -> None:
        values = {"low": self.low, "high": self.high, "bias": self.bias}
        for name, value in (*values.items(), *(("replicates", r) for r in self.replicates)):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    @classmethod
    def of_jackknife(cls, found: Jackknife, *, bias: float | None = None, bias_method: str = "") -> Self:
        """Interval around the value; the bias is value - corrected value unless one is given with its method."""
        interval = found.interval()
        return cls(
            low=interval.low,
            high=interval.high,
            level=interval.level,
            bias=found.value - found.corrected if bias is None else bias,
            count=min(found.counts),
            method=interval.method,
            bias_method="delete-a-group jackknife" if bias is None else bias_method,
            replicates=found.replicates,
            seed=found.seed,
        )

    @classmethod
    def of_mean(cls, interval: Interval, *, bias_method: str = "a mean over clips has none") -> Self:
        """Of a mean over clips, or a ratio of such means."""
        return cls(
            low=interval.low,
            high=interval.high,
            level=interval.level,
            bias=0.0,
            count=interval.count,
            method=interval.method,
            bias_method=bias_method,
            seed=interval.seed,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made of one; unknown and missing fields are refused by name."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ValueError(f"an estimate needs exactly {sorted(names)}, got {sorted(data)}")
        return cls(**{**data, "replicates": tuple(data["replicates"])})
