"""Features and logits a comparison keeps beside its rows, and the scores computed from them again.

embeddings/{task}-{model}-{steps}-{seed}-{configuration}.safetensors    what was heard of every generated clip
embeddings/reference-{digest}.safetensors                              of the real sounds they were compared with

Both are files of `eval.heard.Heard`; that of a row names the configuration and the reference. The paths are relative
to rows.jsonl.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from eval.estimates import Estimate
from eval.heard import Heard
from eval.kl import kl_divergence
from eval.recipes import DIVERGENCES, RECIPES, Recipe
from eval.rows import Row, changed_lines, read_rows
from teacher.files import file_sha256


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptEmbeddings:
    """What was heard of the clips of a row and of its reference."""

    generated: Heard
    reference: Heard
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
        generated, facts = Heard.read(path)
        if facts.get("config_digest") != row.config_digest:
            return None
        reference_path = _reference_path(path, facts["reference"])
        if not reference_path.is_file():
            raise ValueError(f"{reference_path} is not there, against which {path.name} was scored")
        if file_sha256(reference_path) != facts["reference"]:
            raise ValueError(f"{reference_path} is not the reference {path.name} was scored against: it was changed")
        reference, _ = Heard.read(reference_path)
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

    def _made(self, recipe: Recipe) -> Heard:
        return self.reference if self.of_reference and not recipe.uses_reference else self.generated


def keep_embeddings(rows_path: Path, row: Row, generated: Heard, reference: Heard) -> Path:
    """Write what `KeptEmbeddings.open` reads. The reference is written once for all rows that share it."""
    path = embeddings_path(rows_path, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _WRITTEN.setdefault(reference, {})
    digest = known.get(path.parent)
    if digest is None or not _is_there(_reference_path(path, digest), digest):
        written = reference.write(path.with_name(f".reference-{row.task}.safetensors"))
        digest = known[path.parent] = file_sha256(written)
        written.replace(_reference_path(path, digest))
    return generated.write(path, {"config_digest": row.config_digest, "reference": digest})


_WRITTEN: "WeakKeyDictionary[Heard, dict[Path, str]]" = WeakKeyDictionary()
"""Digests of the files that references were written to, by folder."""


def damaged(folder: Path) -> tuple[list[Path], list[str]]:
    """Files of a comparison that carry checks, and a line for each that is not as it was written.

    Looked at are the kept embeddings and the references they name, cached features and parts (a SHA-256 of their
    content), the lines of rows.jsonl and clips.jsonl (a CRC-32), and the lists of scored clips (their digest is in the
    rows). What older versions wrote without checks counts as in order where it can be read.
    """
    compared, faults = [], []
    for name in ("rows.jsonl", "clips.jsonl"):
        if (folder / name).is_file():
            compared.append(folder / name)
            faults += [f"{folder / name}, line {number} is not as it was written" for number in _changed(folder / name)]
    kept = (path for part in ("embeddings", "cache", "parts") for path in folder.glob(f"{part}/**/*.safetensors"))
    for path in sorted(kept):
        compared.append(path)
        try:
            _, facts = Heard.read(path)
            digest = facts.get("reference")
            if isinstance(digest, str) and not _is_there(reference := _reference_path(path, digest), digest):
                faults.append(f"{reference}, against which {path.name} was scored, is not there or was changed")
        except (OSError, ValueError) as error:
            faults.append(str(error))
    rows = _readable_rows(folder / "rows.jsonl")
    for row in rows:
        if (folder / "embeddings").is_dir() and not embeddings_path(folder / "rows.jsonl", row).is_file():
            faults.append(f"{embeddings_path(folder / 'rows.jsonl', row)} is missing")
    for task in dict.fromkeys(row.task for row in rows):
        scored, stated = folder / f"scored-{task}.txt", {row.clips_digest for row in rows if row.task == task}
        if scored.is_file():
            compared.append(scored)
            if None not in stated and file_sha256(scored) not in stated:
                faults.append(f"{scored} is not the list of clips that the rows were scored on")
    return compared, faults


def _changed(path: Path) -> list[int]:
    try:
        return changed_lines(path)
    except ValueError:  # not text any more
        return [1]


def _readable_rows(path: Path) -> list[Row]:
    try:
        return read_rows(path)
    except ValueError:  # said by the line that is damaged
        return []


def _reference_path(path: Path, digest: str) -> Path:
    return path.with_name(f"reference-{digest[:16]}.safetensors")


def _is_there(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def embeddings_path(rows_path: Path, row: Row) -> Path:
    """File of the features of a row; the model's name is made safe for a file name by its digest in the end."""
    name = f"{row.task}-{row.what}-{row.steps}-{row.seed}"
    mark = hashlib.sha256(f"{row.model}/{row.config_digest}".encode()).hexdigest()[:12]
    return rows_path.parent / "embeddings" / f"{name}-{mark}.safetensors"
