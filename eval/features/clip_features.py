"""Features of clips, from which metrics are computed: embedding rows and logits by model, and values of each clip."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from eval.metrics import SetMetric
from eval.metrics.embeddings import Embeddings
from eval.metrics.uncertainty import Estimate
from teacher.files import check_regular
from teacher.files.digests import json_digest, tensor_bytes
from teacher.files.safetensors import read_content, read_header, write_tensors

FEATURES, LOGITS, COUNTS = ".features", ".logits", ".counts"


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipFeatures:
    """Features of clips in a fixed order.

    tensors: for every source NAME `NAME.features` (rows, dimensions), the rows of the first clip before those of the
    second; `NAME.counts` (clips,), rows of each clip; and, where the model has classes, `NAME.logits` (clips, classes).
    """

    ids: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    per_clip: tuple[Mapping[str, float], ...] = field(default=())
    """Values of the clip metrics; empty, or one entry per clip."""

    def __post_init__(self) -> None:
        if self.per_clip and len(self.per_clip) != len(self.ids):
            raise ValueError(f"per_clip must be empty or one per clip, got {len(self.per_clip)} of {len(self.ids)}")
        for source in self.sources:
            counts = self.tensors[source + COUNTS]
            if len(counts) != len(self.ids) or int(counts.sum()) != len(self.tensors[source + FEATURES]):
                raise ValueError(f"{source} must have rows of all {len(self.ids)} clips, counted in {source}{COUNTS}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sources(self) -> tuple[str, ...]:
        """Short names of the models whose features these are."""
        return tuple(name.removesuffix(FEATURES) for name in self.tensors if name.endswith(FEATURES))

    @classmethod
    def of(
        cls, ids: Sequence[str], by_source: Mapping[str, Embeddings], per_clip: Sequence[Mapping[str, float]] = ()
    ) -> Self:
        """Make the features of clips from the embeddings that each source gives for them."""
        tensors: dict[str, Tensor] = {}
        for source, embeddings in by_source.items():
            tensors[source + FEATURES] = embeddings.rows
            tensors[source + COUNTS] = torch.tensor(embeddings.counts)
            if embeddings.logits is not None:
                tensors[source + LOGITS] = embeddings.logits
        return cls(ids=tuple(ids), tensors=tensors, per_clip=tuple(per_clip))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The clips of all parts in order. ValueError without parts or where they do not hold the same sources."""
        if not parts or any(part.tensors.keys() != parts[0].tensors.keys() for part in parts):
            raise ValueError("parts must be there and hold the same tensors")
        return cls(
            ids=tuple(i for part in parts for i in part.ids),
            tensors={name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors},
            per_clip=tuple(entry for part in parts for entry in part.per_clip),
        )

    def embeddings(self, source: str) -> Embeddings:
        """The embeddings of one source."""
        return Embeddings(
            rows=self.tensors[source + FEATURES],
            counts=tuple(self.tensors[source + COUNTS].tolist()),
            logits=self.tensors.get(source + LOGITS),
        )

    def logits(self, source: str) -> Tensor | None:
        """Logits of one source (clips, classes); None where it has no classes or is not among the sources."""
        return self.tensors.get(source + LOGITS)

    def clips(self, begin: int, end: int) -> "ClipFeatures":
        """The features of clips begin .. end - 1."""
        tensors = {}
        for source in self.sources:
            counts = self.tensors[source + COUNTS]
            first, last = int(counts[:begin].sum()), int(counts[:end].sum())
            tensors[source + FEATURES] = self.tensors[source + FEATURES][first:last]
            tensors[source + COUNTS] = counts[begin:end]
            if source + LOGITS in self.tensors:
                tensors[source + LOGITS] = self.tensors[source + LOGITS][begin:end]
        return ClipFeatures(ids=self.ids[begin:end], tensors=tensors, per_clip=self.per_clip[begin:end])

    def write(self, path: Path, facts: Mapping[str, str] | None = None) -> Path:
        """Write one safetensors file atomically, with ids, scores and `facts` in its metadata."""
        about = {
            "ids": list(self.ids),
            "per_clip": [dict(entry) for entry in self.per_clip],
            "facts": dict(facts or {}),
        }
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        about["sha256"] = _digest(about, tensors)
        write_tensors(path, tensors, {"json": json.dumps(about)})
        return path

    @classmethod
    def read(cls, path: Path) -> "tuple[ClipFeatures, dict[str, str]]":
        """Read a file that `write` wrote; returns the features and the facts.

        Raises:
            ValueError: not such a file, or damaged; named.
        """
        try:
            tensors, metadata = read_content(path)
            about = json.loads(metadata["json"])
            written = about.pop("sha256", None)  # files of older versions have none
            if about.keys() != {"ids", "per_clip", "facts"}:
                raise ValueError(f"its metadata has the keys {sorted(about)}")
            if written is not None and written != _digest(about, tensors):
                raise ValueError("what is in it is not what was written")
            found = cls(ids=tuple(about["ids"]), tensors=tensors, per_clip=tuple(about["per_clip"]))
            return found, dict(about["facts"])
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}); delete it and run again") from error


def set_values(metrics: Iterable[SetMetric], reference: ClipFeatures, generated: ClipFeatures) -> dict[str, float]:
    """Values by key of those metrics whose features both sets of clips have; each computation is done once."""
    found: dict[str, float] = {}
    for metric in metrics:
        if metric.key not in found and (sides := metric_sides(metric, reference, generated)) is not None:
            found |= metric.value(*sides)
    return found


def set_estimates(
    metrics: Iterable[SetMetric], reference: ClipFeatures, generated: ClipFeatures
) -> dict[str, Estimate]:
    """Intervals and biases by key of those metrics whose features both sets of clips have."""
    found: dict[str, Estimate] = {}
    for metric in metrics:
        if metric.key not in found and (sides := metric_sides(metric, reference, generated)) is not None:
            found |= metric.estimate(*sides)
    return found


def metric_sides(
    metric: SetMetric, reference: ClipFeatures, generated: ClipFeatures
) -> tuple[Embeddings, Embeddings] | None:
    """Embeddings of the real and of the generated clips from which a metric is computed; those of the generated ones
    twice for a metric without reference; None where its source is missing."""
    name = metric.source + (FEATURES if metric.needs == "features" else LOGITS)
    if name not in generated.tensors or (metric.uses_reference and name not in reference.tensors):
        return None
    made = generated.embeddings(metric.source)
    return (reference.embeddings(metric.source) if metric.uses_reference else made), made


def is_sealed(path: Path) -> bool:
    """Whether a file of features holds a digest of itself; files of older versions have none. ValueError where it is no
    such file or cannot be opened."""
    check_regular(path)
    try:
        about = json.loads(read_header(path).metadata["json"])
        return "sha256" in about or not about.keys() <= {"ids", "per_clip", "facts"}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error!r})") from error


def _digest(about: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the description and the tensors' names, types, shapes and values."""
    described = sorted(tensors.items())
    return json_digest(about, (f"{n} {t.dtype} {tuple(t.shape)}".encode() + tensor_bytes(t) for n, t in described))
