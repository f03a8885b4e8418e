"""Cells of the results, computed again from what a comparison kept.

clips.jsonl gives means and pooled counts, embeddings/ every metric of features (see `eval.features.cache`),
the real-time factors of the stages their totals.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.compare.hygiene import FACTS, read_facts
from eval.compare.rows import (
    ClipScores,
    Row,
    ScoresKey,
    changed_lines,
    embeddings_path,
    ids_digest,
    read_clip_scores,
    read_rows,
    sealed_rows,
)
from eval.features.cache import RowFeatures, reference_path
from eval.features.clip_features import ClipFeatures, is_sealed
from eval.metrics import pooled, pooled_intervals
from eval.metrics.uncertainty import Estimate
from eval.speed.budget import TOTALS
from teacher.files import file_sha256, same_digest

RELATIVE, ABSOLUTE = 1e-6, 1e-7
"""Two values agree within RELATIVE of the larger or ABSOLUTE: sums of another order, never another formula."""
CLIPS, FEATURES, STAGES, OTHERS = "clips.jsonl", "kept features", "its stages", "other rows of the network"
PARTS: Mapping[str, Callable[[Estimate], float]] = {
    "low": lambda estimate: estimate.low,
    "high": lambda estimate: estimate.high,
    "bias": lambda estimate: estimate.bias,
}
"""What a report shows of an estimate; a cell is called "kl low" and the like."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One cell, or one fact about a row, and what came out the second time."""

    row: Row
    name: str
    """Metric, "<metric> low", "high" or "bias", "rtf <total>", "num_clips", "clips_digest", "params" or "nfe"."""
    expected: float | str
    found: float | str | None
    """None: nothing was kept to compute it from."""
    source: str
    tolerance: tuple[float, float] = (RELATIVE, ABSOLUTE)

    @property
    def difference(self) -> float | None:
        """found - expected; None for texts and for cells that could not be computed."""
        if isinstance(self.found, float) and isinstance(self.expected, float):
            return self.found - self.expected
        return None

    @property
    def agrees(self) -> bool:
        """Whether the cell was computed again and is the same."""
        if isinstance(self.found, float) and isinstance(self.expected, float):
            return math.isclose(self.found, self.expected, rel_tol=self.tolerance[0], abs_tol=self.tolerance[1])
        return self.found == self.expected

    def __str__(self) -> str:
        where = f"{self.row.title}: {self.name}"
        if self.found is None:
            return f"{where} expected {_text(self.expected)}, not computed: {self.source}"
        change = "" if self.difference is None else f", difference {self.difference:.3g}"
        verdict = "agrees" if self.agrees else "DIFFERS"
        return f"{where} expected {_text(self.expected)}, found {_text(self.found)}{change} ({self.source}): {verdict}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """Rows and everything beside them that cells can be computed from."""

    rows_path: Path
    rows: tuple[Row, ...]
    clips: Mapping[ScoresKey, ClipScores]

    @classmethod
    def read(cls, rows_path: Path) -> "Kept":
        """Rows and per-clip scores; ValueError if there are no rows. Features are opened when a row is checked."""
        rows = tuple(read_rows(rows_path))
        if not rows:
            wrong = "holds no rows of results" if rows_path.is_file() else "does not exist"
            raise ValueError(f"{rows_path} {wrong}; run the comparison first")
        return cls(rows_path=rows_path, rows=rows, clips=read_clip_scores(rows_path.with_name("clips.jsonl")))

    def row(self, task: str, model: str, steps: int, seed: int, guidance: float | None = None) -> Row:
        """The row of a key; ValueError naming those there are, or where only the guidance scale tells some apart."""
        found = [r for r in self.rows if (r.task, r.model, r.steps, r.seed) == (task, model, steps, seed)]
        if guidance is not None:
            found = [row for row in found if row.guidance == guidance]
        if len(found) == 1:
            return found[0]
        there = "; ".join(r.title for r in (found or self.rows))
        raise ValueError(
            f"{len(found) or 'no'} rows are {task} {model}, {steps} steps, seed {seed}"
            f"{'' if guidance is None else f', guidance {guidance:g}'}; there are: {there}"
            + ("; say which with --guidance" if guidance is None and len(found) > 1 else "")
        )

    def check(self, row: Row) -> Iterator[Check]:
        """Every cell of a row by every way there is; one that cannot be computed comes once, without a found value."""
        clips = self.clips.get(row.scores_key, {})
        if clips:
            yield Check(row=row, name="num_clips", expected=float(row.num_clips), found=float(len(clips)), source=CLIPS)
        if clips and row.clips_digest is not None:
            yield Check(row=row, name="clips_digest", expected=row.clips_digest, found=ids_digest(clips), source=CLIPS)
        yield from self._network(row)
        embedded = features_of_row(self.rows_path, row)
        entries = list(clips.values())
        ways = {CLIPS: pooled(entries), FEATURES: embedded.metrics(row.metrics) if embedded else {}}
        for name, expected in row.metrics.items():
            yield from _checks(row, name, float(expected), {way: values.get(name) for way, values in ways.items()})
        again = {CLIPS: pooled_intervals(entries), FEATURES: embedded.estimates(row.metrics) if embedded else {}}
        for name, estimate in row.estimates.items():
            for part, of in PARTS.items():
                found = {way: of(values[name]) if name in values else None for way, values in again.items()}
                yield from _checks(row, f"{name} {part}", of(estimate), found)
        for name, stages in TOTALS.items():
            if name in row.rtf and all(stage in row.rtf for stage in stages):
                total = float(sum(row.rtf[stage] for stage in stages))
                yield Check(row=row, name=f"rtf {name}", expected=float(row.rtf[name]), found=total, source=STAGES)

    def _network(self, row: Row) -> Iterator[Check]:
        """Parameters and evaluations a step against the other rows of the same network: what most of them say."""
        same = [
            r for r in self.rows if (r.model, r.kind, r.guidance) == (row.model, row.kind, row.guidance) and r.steps
        ]
        if row.steps == 0 or len(same) < 3:
            return
        params = Counter(r.params for r in same).most_common(1)[0][0]
        if row.params is not None and params is not None:
            yield Check(row=row, name="params", expected=float(row.params), found=float(params), source=OTHERS)
        each = Counter(r.nfe / r.steps for r in same).most_common(1)[0][0]
        yield Check(row=row, name="nfe", expected=float(row.nfe), found=each * row.steps, source=OTHERS)

    def cell(self, row: Row, name: str) -> list[Check]:
        """The checks of one cell.

        Raises:
            ValueError: the row has no such cell, or nothing was kept that it could be computed from.
        """
        checks = list(self.check(row))
        chosen = [c for c in checks if c.name == name]
        if not chosen:
            raise ValueError(f"the row has no {name}; it has {', '.join(dict.fromkeys(c.name for c in checks))}")
        if chosen[0].found is None:
            raise ValueError(str(chosen[0]))
        return chosen


def features_of_row(rows_path: Path, row: Row) -> RowFeatures | None:
    """The features that a row was computed from; None where they are not there. Raises what `RowFeatures.read` does."""
    path = embeddings_path(rows_path, row)
    return RowFeatures.read(path, config_digest=row.config_digest, of_reference=row.kind == "reference")


def _checks(row: Row, name: str, expected: float, found: Mapping[str, float | None]) -> list[Check]:
    """One check per way that found a value; if there is none, one without."""
    done = [
        Check(row=row, name=name, expected=expected, found=value, source=way)
        for way, value in found.items()
        if value is not None
    ]
    reason = "its clips have no score of their own, and its features were not kept"
    return done or [Check(row=row, name=name, expected=expected, found=None, source=reason)]


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


CACHED = re.compile(r"[0-9a-f]{2}/[0-9a-f]{32}\.safetensors")
"""Folder and name of an entry of `eval.features.cache.FeatureCache`."""
REFERENCE = re.compile(r"reference-([0-9a-f]{16})\.safetensors")


def check_kept(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """Files of one folder that a comparison keeps records of, with what is wrong with each: lines of rows.jsonl and
    clips.jsonl, lists of scored clips, embeddings, entries of the cache and parts.

    What older versions wrote without a record is not among them; nor are files that go away meanwhile.
    """
    for name in names:
        path = folder / name
        try:
            if name in ("rows.jsonl", "clips.jsonl"):
                yield from _kept_lines(path)
            elif name == FACTS:
                yield from _kept_ids(path)
            elif _is_heard(path) and is_sealed(path):
                yield path, _heard_fault(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            yield path, str(error)


def _is_heard(path: Path) -> bool:
    """Whether it is where a comparison writes what was heard; names with a dot in front are unfinished."""
    if path.suffix != ".safetensors" or path.name.startswith("."):
        return False
    inside = path.parent.name == "embeddings" or path.parent.parent.name == "parts"
    return inside or CACHED.fullmatch(f"{path.parent.name}/{path.name}") is not None


def _heard_fault(path: Path) -> str | None:
    named = REFERENCE.fullmatch(path.name)
    if named is not None and not same_digest(file_sha256(path), named[1]):
        return f"{path} is damaged: its SHA-256 is not the one in its name"
    _, facts = ClipFeatures.read(path)
    digest = facts.get("reference")
    if named is not None or digest is None:
        return None
    reference = reference_path(path, digest)
    if not reference.is_file():
        return f"{reference} is missing, against which {path.name} was scored" if path.exists() else None
    found = file_sha256(reference)
    if found != digest and same_digest(found, digest[:16]):  # else the reference itself is named
        return f"{reference} is not the reference {path.name} was scored against"
    return None


def _kept_lines(path: Path) -> Iterator[tuple[Path, str | None]]:
    """rows.jsonl or clips.jsonl; after the rows, the embeddings that they name and that are gone."""
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    changed = changed_lines(path)
    if changed:
        more = f" and {len(changed) - 1} more" * (len(changed) > 1)
        yield path, f"{path}, line {changed[0]}{more} is not as it was written, it was damaged or changed"
        return
    if path.name == "clips.jsonl":
        read_clip_scores(path)
        yield path, None
        return
    rows = read_rows(path)
    beside = path.with_name("clips.jsonl")
    clips = read_clip_scores(beside) if beside.is_file() else {}
    short = [r for r in rows if r.clips_digest and r.scores_key in clips and _other_clips(r, clips[r.scores_key])]
    yield path, f"{path}: {short[0].title} has scores of other clips in clips.jsonl" if short else None
    for kept in (embeddings_path(path, row) for row in sealed_rows(path)):
        if kept.parent.is_dir() and not kept.exists():  # the whole folder may have been left out on purpose
            yield kept, f"{kept} is missing, which a row of {path.name} was computed from"


def _other_clips(row: Row, scores: ClipScores) -> bool:
    return ids_digest(scores) != row.clips_digest


def _kept_ids(path: Path) -> Iterator[tuple[Path, str | None]]:
    """testset.json, and the lists beside it whose SHA-256 it holds."""
    facts = read_facts(path)
    yield path, None
    for task, fact in facts.items():
        listed = path.with_name(f"scored-{task}.txt")
        if not listed.exists():
            yield listed, f"{listed} is missing"
        elif file_sha256(listed) != fact.digest:
            yield listed, f"{listed} is damaged: its SHA-256 is not the one in {path.name}"
