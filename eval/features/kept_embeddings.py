"""Features and logits a comparison keeps beside its rows, and the scores computed from them again.

embeddings/{task}-{model}-{steps}-{seed}-{configuration}.safetensors    what was heard of every generated clip
embeddings/reference-{digest}.safetensors                              of the real sounds they were compared with

Both are files of `eval.features.clip_features.ClipFeatures`; that of a row names the configuration and the reference.
The paths are relative to rows.jsonl.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from eval.compare.rows import Row
from eval.features.clip_features import ClipFeatures
from eval.metrics.kl import kl_divergence
from eval.metrics.recipes import DIVERGENCES, RECIPES, Recipe
from eval.metrics.uncertainty import Estimate
from teacher.files import file_sha256


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptEmbeddings:
    """What was heard of the clips of a row and of its reference."""

    generated: ClipFeatures
    reference: ClipFeatures
    of_reference: bool
    """The row of real sound: its distances are those of other real clips, its inception score its own."""

    @classmethod
    def open(cls, rows_path: Path, row: Row) -> "KeptEmbeddings | None":
        """What `keep_embeddings` wrote for this row; None if nothing was kept.

        Raises:
            ValueError: a file that cannot be read, or a reference that is not the one the row was scored against.
        """
        path = embeddings_path(rows_path, row)
        if not path.exists():
            return None
        generated, facts = ClipFeatures.read(path)
        if facts.get("config_digest") != row.config_digest:
            return None
        real = reference_path(path, facts["reference"])
        if not real.is_file():
            raise ValueError(f"{real} is not there, against which {path.name} was scored")
        if file_sha256(real) != facts["reference"]:
            raise ValueError(f"{real} is not the reference {path.name} was scored against: it was changed")
        reference, _ = ClipFeatures.read(real)
        return cls(generated=generated, reference=reference, of_reference=row.what == "reference")

    def metrics(self, names: Iterable[str]) -> dict[str, float]:
        """Those of the named scores that are made of features and whose material was kept."""
        found: dict[str, float] = {}
        for recipe in self._recipes(names):
            found |= recipe.values(self.reference, self._made(recipe))
        for source, divergence in DIVERGENCES.items():
            expected, logits = self.reference.logits(source), self.generated.logits(source)
            if divergence in names and expected is not None and logits is not None and not self.of_reference:
                found[divergence] = float(kl_divergence(expected, logits).mean())
        return found

    def estimates(self, names: Iterable[str]) -> dict[str, Estimate]:
        """Their intervals and biases."""
        found: dict[str, Estimate] = {}
        for recipe in self._recipes(names):
            found |= recipe.estimates(self.reference, self._made(recipe))
        return found

    def _recipes(self, names: Iterable[str]) -> list[Recipe]:
        wanted = set(names)
        return [r for r in RECIPES if wanted & set(r.names) and r.possible(self.reference, self._made(r))]

    def _made(self, recipe: Recipe) -> ClipFeatures:
        return self.reference if self.of_reference and not recipe.uses_reference else self.generated


def keep_embeddings(rows_path: Path, row: Row, generated: ClipFeatures, reference: ClipFeatures) -> Path:
    """Write what `KeptEmbeddings.open` reads. The reference is written once for all rows that share it."""
    path = embeddings_path(rows_path, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _WRITTEN.setdefault(reference, {})
    digest = known.get(path.parent)
    if digest is None or not _is_there(reference_path(path, digest), digest):
        written = reference.write(path.with_name(f".reference-{row.task}.safetensors"))
        digest = known[path.parent] = file_sha256(written)
        written.replace(reference_path(path, digest))
    return generated.write(path, {"config_digest": row.config_digest, "reference": digest})


_WRITTEN: "WeakKeyDictionary[Heard, dict[Path, str]]" = WeakKeyDictionary()
"""Digests of the files that references were written to, by folder."""


def reference_path(path: Path, digest: str) -> Path:
    """File of the reference beside the embeddings `path`."""
    return path.with_name(f"reference-{digest[:16]}.safetensors")


def _is_there(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def embeddings_path(rows_path: Path, row: Row) -> Path:
    """File of the features of a row; the model's name is made safe for a file name by its digest in the end."""
    name = f"{row.task}-{row.what}-{row.steps}-{row.seed}"
    mark = hashlib.sha256(f"{row.model}/{row.config_digest}".encode()).hexdigest()[:12]
    return rows_path.parent / "embeddings" / f"{name}-{mark}.safetensors"
