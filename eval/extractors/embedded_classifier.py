"""Softmax regression on feature vectors, and k-means labels for data that has none."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from eval.statistics import Features, as_matrix
from teacher.files import replacing

FORMAT = "embedded-classifier-v1"
MAX_ITERATIONS = 400
KMEANS_ITERATIONS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedClassifier:
    """Multinomial logistic regression on standardised features.

    logits = ((x - centre) / scale) weight + bias; centre, scale (d,), weight (d, classes), bias (classes,); float64.
    """

    classes: tuple[str, ...]
    centre: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        d, count = self.centre.numel(), len(self.classes)
        expected = {"centre": (d,), "scale": (d,), "weight": (d, count), "bias": (count,)}
        for name, tensor in self._tensors().items():
            if tuple(tensor.shape) != expected[name]:
                raise ValueError(f"{name} must have shape {expected[name]}, got {tuple(tensor.shape)}")
        if count < 2 or len(set(self.classes)) != count:
            raise ValueError(f"classes must be at least 2 distinct names, got {self.classes}")

    @classmethod
    def fit(cls, features: Features, labels: Sequence[str], *, ridge: float = 1e-2) -> Self:
        """Minimise mean cross-entropy + ridge/2 ||weight||^2 by L-BFGS from zero; deterministic.

        features (n, d), one label per row. Raises ValueError where labels and rows differ in number, a label is empty
        or fewer than two classes occur.
        """
        matrix = as_matrix(features)
        if len(labels) != len(matrix):
            raise ValueError(f"labels must name every row: {len(labels)} labels, {len(matrix)} rows")
        if not all(labels):
            raise ValueError(f"labels must not be empty, {sum(not label for label in labels)} are; use pseudo_labels")
        if not ridge > 0.0:
            raise ValueError(f"ridge must be positive, got {ridge}")
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise ValueError(f"labels must hold at least 2 classes, got {classes}; use pseudo_labels")
        centre, scale = matrix.mean(axis=0), np.maximum(matrix.std(axis=0), 1e-3)
        target = np.eye(len(classes))[[classes.index(label) for label in labels]]
        weight, bias = _fit((matrix - centre) / scale, target, ridge)
        return cls(
            classes=classes,
            centre=torch.from_numpy(centre),
            scale=torch.from_numpy(scale),
            weight=torch.from_numpy(weight),
            bias=torch.from_numpy(bias),
        )

    def logits(self, features: Tensor) -> Tensor:
        """features (n, d) -> logits (n, classes), float64."""
        if features.ndim != 2 or features.shape[1] != self.centre.numel():
            raise ValueError(f"features must be (n, {self.centre.numel()}), got {tuple(features.shape)}")
        return ((features.detach().cpu().double() - self.centre) / self.scale) @ self.weight + self.bias

    def accuracy(self, features: Tensor, labels: Sequence[str]) -> float:
        """Share of rows whose most likely class is their label."""
        best = self.logits(features).argmax(dim=1).tolist()
        return sum(self.classes[k] == label for k, label in zip(best, labels, strict=True)) / len(labels)

    def save(self, path: Path) -> None:
        """Write tensors and class names to one safetensors file."""
        metadata = {"format": FORMAT, "classes": json.dumps(self.classes)}
        with replacing(path) as temporary:
            save_file({k: v.contiguous() for k, v in self._tensors().items()}, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            ValueError: not such a file, or tensors missing, superfluous or of the wrong shape.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        if metadata.get("format") != FORMAT or set(tensors) != {"centre", "scale", "weight", "bias"}:
            raise ValueError(f"{path} is not an {FORMAT} file: format {metadata.get('format')}, {sorted(tensors)}")
        return cls(
            classes=tuple(json.loads(metadata["classes"])),
            centre=tensors["centre"],
            scale=tensors["scale"],
            weight=tensors["weight"],
            bias=tensors["bias"],
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {"centre": self.centre, "scale": self.scale, "weight": self.weight, "bias": self.bias}


def labels_are_useful(labels: Sequence[str]) -> bool:
    """Whether a classifier can learn from them: none empty, at least two classes, two clips per class on average."""
    classes = set(labels)
    return len(classes) >= 2 and "" not in classes and len(labels) >= 2 * len(classes)


def pseudo_labels(features: Features, num_classes: int, seed: int) -> list[str]:
    """k-means cluster names "cluster-0", ... of standardised features (n, d), for data without useful labels.

    k-means++ start from `seed`, then Lloyd iterations until nothing moves. A cluster is a grouping of the features, not
    a category of sound: a divergence computed with them says so in its name.
    """
    matrix = as_matrix(features)
    if not 2 <= num_classes <= len(matrix):
        raise ValueError(f"num_classes must be between 2 and the number of clips, {len(matrix)}, got {num_classes}")
    rows = (matrix - matrix.mean(axis=0)) / np.maximum(matrix.std(axis=0), 1e-3)
    rng = np.random.default_rng(seed)
    centres = rows[[int(rng.integers(len(rows)))]]
    while len(centres) < num_classes:
        distance = _squared_distances(rows, centres).min(axis=1)
        share = distance / distance.sum() if distance.sum() > 0 else np.full(len(rows), 1.0 / len(rows))
        centres = np.vstack([centres, rows[int(rng.choice(len(rows), p=share))]])
    nearest = _squared_distances(rows, centres).argmin(axis=1)
    for _ in range(KMEANS_ITERATIONS):
        centres = np.stack(
            [rows[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k] for k in range(num_classes)]
        )
        moved = _squared_distances(rows, centres).argmin(axis=1)
        if (moved == nearest).all():
            break
        nearest = moved
    return [f"cluster-{k}" for k in nearest]


def _squared_distances(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((rows[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)


def _fit(
    rows: NDArray[np.float64], target: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    d, count = rows.shape[1], target.shape[1]

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = flat[: d * count].reshape(d, count), flat[d * count :]
        log_p = log_softmax(rows @ weight + bias, axis=1)
        error = (np.exp(log_p) - target) / len(rows)
        loss = -float((target * log_p).sum()) / len(rows) + 0.5 * ridge * float((weight**2).sum())
        return loss, np.concatenate([(rows.T @ error + ridge * weight).ravel(), error.sum(axis=0)])

    best = minimize(
        objective, np.zeros((d + 1) * count), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    ).x
    return best[: d * count].reshape(d, count).copy(), best[d * count :].copy()
