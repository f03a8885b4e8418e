"""Features and logits a comparison keeps beside its rows, and the metrics computed from them again.

embeddings/{task}-{model}-{steps}-{seed}.safetensors    those of every generated clip
embeddings/reference-{digest}.safetensors               those of the real sounds they were compared with

A file holds, for every set of features NAME, `NAME.features` (rows, dimensions) and, where there is a classifier,
`NAME.logits` (clips, classes), in the precision they were scored in; its metadata name the reference file, the
configuration and the splits of the inception score. The paths are relative to rows.jsonl.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eval.frechet import frechet_bias, frechet_distance
from eval.inception_score import inception_score
from eval.kernel import kernel_distance, reference_bandwidth
from eval.kl import kl_divergence
from eval.rows import Row
from eval.statistics import GaussianStats
from teacher.data.media import replacing

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Features and logits of a row and of its reference."""

    generated: Tensors
    reference: Tensors
    splits: int
    own_logits: bool
    """False for the row of real sound: its distances are those of other real clips, its inception score its own."""

    @classmethod
    def open(cls, rows_path: Path, row: Row) -> "Embeddings | None":
        """What `keep_embeddings` wrote for this row; None if nothing, or what is there is of another configuration.

        Raises:
            ValueError: a file that cannot be read, or a reference that is not the one the row was scored against.
        """
        path = embeddings_path(rows_path, row)
        if not path.exists():
            return None
        generated, facts = _read(path)
        if facts["config_digest"] != row.config_digest:
            return None
        reference_path = path.with_name(f"reference-{facts['reference'][:16]}.safetensors")
        if hashlib.sha256(reference_path.read_bytes()).hexdigest() != facts["reference"]:
            raise ValueError(f"{reference_path} is not the reference {path.name} was scored against: it was changed")
        reference, _ = _read(reference_path)
        return cls(
            generated=generated,
            reference=reference,
            splits=int(facts["splits"]),
            own_logits=row.model != "reference",
        )

    def metric(self, name: str) -> float | None:
        """A metric from the features; None where it is not made of them."""
        if name not in RECIPES:
            return None
        source, formula = RECIPES[name]
        needed = "logits" if formula in LOGITS else "features"
        if f"{source}.{needed}" not in self.generated or f"{source}.{needed}" not in self.reference:
            return None
        return formula(self, source)

    def logits(self, source: str) -> Tensor:
        """Logits whose inception score the row tells."""
        return (self.generated if self.own_logits else self.reference)[f"{source}.logits"]


def keep_embeddings(rows_path: Path, row: Row, generated: Tensors, reference: Tensors, *, splits: int) -> Path:
    """Write what `Embeddings.open` reads: tensors `NAME.features` and `NAME.logits` of a row and of its reference.

    The reference is written once for all rows that share it.
    """
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in reference.items()})
    digest = hashlib.sha256(content).hexdigest()
    path = embeddings_path(rows_path, row)
    reference_path = path.with_name(f"reference-{digest[:16]}.safetensors")
    if not reference_path.exists():
        with replacing(reference_path) as temporary:
            temporary.write_bytes(content)
    facts = {"config_digest": row.config_digest, "reference": digest, "splits": str(splits)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in generated.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"json": json.dumps(facts)}))
    return path


def embeddings_path(rows_path: Path, row: Row) -> Path:
    """File of the features of a row."""
    return rows_path.parent / "embeddings" / f"{row.task}-{row.model}-{row.steps}-{row.seed}.safetensors"


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("json", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _stats(kept: Embeddings, source: str) -> tuple[GaussianStats, GaussianStats]:
    name = f"{source}.features"
    return GaussianStats.from_features(kept.reference[name]), GaussianStats.from_features(kept.generated[name])


def _frechet(kept: Embeddings, source: str) -> float:
    return frechet_distance(*_stats(kept, source))


def _bias(kept: Embeddings, source: str) -> float:
    reference, generated = _stats(kept, source)
    return frechet_bias(reference, reference.count, generated.count)


def _kad(kept: Embeddings, source: str) -> float:
    reference = kept.reference[f"{source}.features"]
    bandwidth = reference_bandwidth(reference)
    return kernel_distance(reference, kept.generated[f"{source}.features"], bandwidth=bandwidth)


def _kl(kept: Embeddings, source: str) -> float:
    name = f"{source}.logits"
    return float(kl_divergence(kept.reference[name], kept.generated[name]).mean())


def _inception(kept: Embeddings, source: str) -> float:
    return inception_score(kept.logits(source), splits=kept.splits).mean


def _inception_std(kept: Embeddings, source: str) -> float:
    return inception_score(kept.logits(source), splits=kept.splits).std


LOGITS = (_kl, _inception, _inception_std)
RECIPES: Mapping[str, tuple[str, Callable[[Embeddings, str], float]]] = {
    "frechet": ("embedded", _frechet),
    "frechet_bias": ("embedded", _bias),
    "kad": ("embedded", _kad),
    "kl": ("embedded", _kl),
    "inception_score": ("embedded", _inception),
    "inception_score_std": ("embedded", _inception_std),
    "fd_passt": ("passt", _frechet),
    "fd_panns": ("panns", _frechet),
    "fd_vggish": ("vggish", _frechet),
    "kl_passt": ("passt", _kl),
    "kl_panns": ("panns", _kl),
    "is_panns": ("panns", _inception),
}
"""Metric -> set of features and formula."""
