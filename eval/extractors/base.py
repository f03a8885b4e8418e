"""What a feature extractor is to the metrics."""

from typing import Protocol

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
