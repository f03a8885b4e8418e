"""Features on disk: those of media files, by a digest of everything they depend on, and those of rows.

`FeatureCache` has files under a digest of the content of the media file, the part of it and the model, so that they are
computed once. Beside rows.jsonl are the features that rows were computed from, so that they can be computed again:

embeddings/{task}-{model}-{steps}-{seed}-{configuration}.safetensors    of every generated clip
embeddings/reference-{digest}.safetensors                              of the real sounds they were compared with

All are files of `eval.features.clip_features.ClipFeatures`; that of a row names its configuration and its reference.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from eval.features.clip_features import ClipFeatures, metric_sides, set_estimates, set_values
from eval.metrics import SetMetric, clip_metrics, set_metrics
from eval.metrics.embeddings import Embeddings
from eval.metrics.uncertainty import Estimate
from teacher.files import file_sha256, json_digest
from teacher.files.lines import append_lines, read_lines
from teacher.files.processes import Processes


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Files <first two digits>/<digest>.safetensors below `folder`; what is in one never changes."""

    folder: Path

    def path(self, what: Mapping[str, object]) -> Path:
        """The file for a description, whose name is a digest of it."""
        digest = json_digest(what)
        return self.folder / digest[:2] / f"{digest[2:34]}.safetensors"

    def get(self, what: Mapping[str, object], make: Callable[[], tuple[ClipFeatures, Mapping[str, str]]]) -> None:
        """The features of a description: read where they are stored, else made and written."""
        path = self.path(what)
        if not path.exists():
            features, facts = make()
            features.write(path, facts)

    def read(self, what: Mapping[str, object]) -> tuple[ClipFeatures, dict[str, str]]:
        """Read the features of a description.

        Raises:
            ValueError: the file is damaged; the message names it, and it is not replaced.
        """
        return ClipFeatures.read(self.path(what))


@dataclass(frozen=True, kw_only=True)
class FileDigests:
    """SHA-256 of media files, computed once per (path, size, time of change) and remembered in `folder`."""

    folder: Path
    process: int = 0
    """Each process writes a list of its own and reads all of them."""
    _known: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """SHA-256 of a file; empty where there is none, which its reader reports.

        Raises:
            ValueError: a list of digests is damaged; named.
        """
        if not path.is_file():
            return ""
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if not self._known:
            self._remember()
        if key not in self._known:
            self._known[key] = file_sha256(path)
            line = json.dumps([*key, self._known[key]])
            append_lines(self.folder / f"files-{self.process}.jsonl", [line], wait_for_disk=False)
        return self._known[key]

    def _remember(self) -> None:
        for listed in sorted(self.folder.glob("files-*.jsonl")):
            for line in read_lines(listed):
                try:
                    path, size, changed, digest = json.loads(line)
                    self._known[str(path), int(size), int(changed)] = str(digest)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{listed} cannot be read ({error!r}); delete it and run again") from error


def in_parts(
    count: int,
    size: int,
    *,
    path: Callable[[int, int], Path],
    make: Callable[[int, int], None],
    processes: Processes,
    what: str,
    wait: bool = True,
) -> list[Path]:
    """Files of all parts [first, last) of `count` clips, each made by one process unless it is there.

    Part k belongs to process k mod world; the parts, and so all results, are the same for any number of processes.
    With `wait` it returns when all exist, and fails if another process does. Without, it returns when those of this
    process exist; then do not check the others, since the process that reads them may remove them.
    """
    parts = [(first, min(first + size, count)) for first in range(0, count, size)]
    for number, (first, last) in enumerate(parts):
        if processes.mine(number) and not path(first, last).exists():
            make(first, last)
    paths = [path(first, last) for first, last in parts]
    for number, file in enumerate(paths):
        if wait and not processes.mine(number):
            processes.wait(
                file.exists, what=f"{what}, part {number + 1} of {len(paths)}", on=[number % processes.world]
            )
    return paths


@dataclass(frozen=True, kw_only=True, eq=False)
class RowFeatures:
    """Features of the clips of a row and of its reference."""

    generated: ClipFeatures
    reference: ClipFeatures
    of_reference: bool
    """Whether the row is that of real sound, whose distances are those of other real clips and whose inception score is
    that of the test clips themselves."""

    @classmethod
    def read(cls, path: Path, *, config_digest: str, of_reference: bool) -> "RowFeatures | None":
        """Read what `write_row_features` wrote for a row of this configuration; None where it wrote nothing.

        Raises:
            ValueError: a file that cannot be read, or a reference that is not the one the row was scored against.
        """
        if not path.exists():
            return None
        generated, facts = ClipFeatures.read(path)
        if facts.get("config_digest") != config_digest:
            return None
        real = reference_path(path, facts["reference"])
        if not real.is_file():
            raise ValueError(f"{real} is not there, against which {path.name} was scored")
        if file_sha256(real) != facts["reference"]:
            raise ValueError(f"{real} is not the reference {path.name} was scored against: it was changed")
        reference, _ = ClipFeatures.read(real)
        return cls(generated=generated, reference=reference, of_reference=of_reference)

    def metrics(self, keys: Iterable[str]) -> dict[str, float]:
        """Values of the metrics of some keys, where the features they are computed from are stored."""
        wanted = set(keys)
        found: dict[str, float] = {}
        for uses_reference, generated in self._sides():
            found |= set_values(self._wanted(wanted, uses_reference), self.reference, generated)
        for metric in clip_metrics():
            if metric.divergence is None or metric.key not in wanted or self.of_reference:
                continue
            expected, logits = self.reference.logits(metric.source), self.generated.logits(metric.source)
            if expected is not None and logits is not None:
                found[metric.key] = float(metric.divergence(expected, logits).mean())
        return found

    def estimates(self, keys: Iterable[str]) -> dict[str, Estimate]:
        """Intervals and biases of the metrics of some keys."""
        wanted = set(keys)
        found: dict[str, Estimate] = {}
        for uses_reference, generated in self._sides():
            found |= set_estimates(self._wanted(wanted, uses_reference), self.reference, generated)
        return found

    def sides(self, metric: SetMetric) -> tuple[Embeddings, Embeddings] | None:
        """The embeddings from which a metric of the row is computed, as `metric_sides` returns them."""
        return metric_sides(metric, self.reference, dict(self._sides())[metric.uses_reference])

    def _sides(self) -> tuple[tuple[bool, ClipFeatures], ...]:
        """The clips whose metrics with, and those whose metrics without the reference stand in the row."""
        return (True, self.generated), (False, self.reference if self.of_reference else self.generated)

    @staticmethod
    def _wanted(keys: set[str], uses_reference: bool) -> list[SetMetric]:
        return [m for m in set_metrics() if m.key in keys and m.uses_reference == uses_reference]


def write_row_features(path: Path, generated: ClipFeatures, reference: ClipFeatures, *, config_digest: str) -> Path:
    """Write what `RowFeatures.read` reads. Rows of a folder with the same reference have one file of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = _REFERENCES.setdefault(reference, {})
    digest, size = written.get(path.parent, ("", -1))
    if not digest or _size(reference_path(path, digest)) != size:
        temporary = reference.write(path.with_name(f".reference-{path.stem}.safetensors"))
        digest, size = written[path.parent] = file_sha256(temporary), temporary.stat().st_size
        temporary.replace(reference_path(path, digest))
    return generated.write(path, {"config_digest": config_digest, "reference": digest})


_REFERENCES: "WeakKeyDictionary[ClipFeatures, dict[Path, tuple[str, int]]]" = WeakKeyDictionary()
"""Digest and size of the files that references were written to, by folder: a reference is hashed once, not per row."""


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def reference_path(path: Path, digest: str) -> Path:
    """File of the reference beside the features `path` of a row."""
    return path.with_name(f"reference-{digest[:16]}.safetensors")
