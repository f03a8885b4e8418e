"""What a feature extractor is to the metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from eval.metrics.embeddings import Embeddings


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

    def embed(self, waves: Tensor) -> Embeddings:
        """waves (batch, samples) of one length. A clip's rows and logits do not depend on the batch it is in."""
        ...


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
