"""What a feature extractor is to the metrics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


class FeatureExtractor(Protocol):
    """Waveforms to fixed-length vectors.

    `name` is printed beside every number made with it and enters the configuration digest. The vector of a clip must
    not depend on the batch it is in.
    """

    @property
    def name(self) -> str:
        """Identity of the features, including anything that changes their values."""
        ...

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the waves it expects."""
        ...

    def __call__(self, waves: Tensor) -> Tensor:
        """waves (batch, samples) -> features (batch, dimensions)."""
        ...


class Classifier(Protocol):
    """Feature vectors to class logits."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """features (batch, dimensions) -> logits (batch, classes)."""
        ...


class EmbeddingModel(Protocol):
    """A pretrained network that gives each clip one or more embedding rows, and perhaps class logits."""

    @property
    def name(self) -> str:
        """Model, version of our front end and digest of the file: everything that changes the values."""
        ...

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the waves it expects."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of a row."""
        ...

    def embed(self, waves: Tensor) -> "Embeddings":
        """waves (batch, samples) of one length. A clip's rows and logits do not depend on the batch it is in."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """What a model says of a number of clips; float32 on the CPU."""

    rows: Tensor
    """(rows, dimensions): the rows of the first clip in order of time, then those of the second, and so on."""
    counts: tuple[int, ...]
    """Rows of each clip, at least one."""
    logits: Tensor | None = None
    """(clips, classes), before any sigmoid or softmax; None where the model has no classes."""

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or sum(self.counts) != len(self.rows) or min(self.counts, default=1) < 1:
            raise ValueError(
                f"rows must be (rows, dimensions) with at least one row per clip, counted in counts: got "
                f"{tuple(self.rows.shape)} and {len(self.counts)} counts that add up to {sum(self.counts)}"
            )
        if self.logits is not None and (self.logits.ndim != 2 or len(self.logits) != len(self.counts)):
            raise ValueError(f"logits must be ({len(self.counts)}, classes), got {tuple(self.logits.shape)}")
        for name, values in (("rows", self.rows), ("logits", self.logits)):
            if values is not None and not torch.isfinite(values).all():
                raise ValueError(f"{name} must be finite, got NaN or infinite values")

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The clips of all parts in order. Raises ValueError without parts, or if only some of them have logits."""
        if not parts:
            raise ValueError("parts must not be empty")
        logits = [part.logits for part in parts if part.logits is not None]
        if logits and len(logits) != len(parts):
            raise ValueError(f"logits must be there in all parts or in none, got {len(logits)} of {len(parts)}")
        return cls(
            rows=torch.cat([part.rows for part in parts]),
            counts=sum((part.counts for part in parts), ()),
            logits=torch.cat(logits) if logits else None,
        )

    def of_clip(self, index: int) -> Tensor:
        """Rows of one clip (its count, dimensions)."""
        return self.rows.split(self.counts)[index]


def check_waves(waves: Tensor, *, model: str, sample_rate: int, shortest: int) -> None:
    """Raises ValueError unless waves are finite (clips, samples) of at least `shortest` samples and one clip."""
    if waves.ndim != 2 or len(waves) == 0:
        raise ValueError(f"{model} needs waves (clips, samples), got {tuple(waves.shape)}")
    if waves.shape[1] < shortest:
        raise ValueError(
            f"{model} needs clips of at least {shortest / sample_rate:g} s ({shortest} samples), got "
            f"{waves.shape[1] / sample_rate:g} s ({waves.shape[1]})"
        )
    if not torch.isfinite(waves).all():
        raise ValueError(f"{model} needs finite waves, got NaN or infinite samples")


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 convolutions and products without TF32, whose 10-bit mantissa would move scores between devices."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)
