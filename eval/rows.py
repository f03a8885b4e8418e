"""Rows of results: one JSON line per task, model, step count and seed."""

import hashlib
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

T = TypeVar("T")
Task = Literal["vta", "tta"]
Model = Literal["teacher", "student", "codec", "reference"]
"""`codec`: real sound through the codec and back, the ceiling of every model; `reference`: real sound itself."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of rows.jsonl: what was run and what came out."""

    task: Task
    """vta: sound from video (and its text); tta: sound from text alone."""
    model: Model
    steps: int
    """Sampling steps; 0 for codec and reference."""
    seed: int
    nfe: int
    """Network evaluations per clip: steps, twice that under classifier-free guidance."""
    guidance: float
    """Guidance scale while sampling; 1 is off."""
    metrics: Mapping[str, float]
    rtf: Mapping[str, float] = field(default_factory=dict)
    """Real-time factor by stage and total; empty where no timing was taken."""
    num_clips: int
    config_digest: str
    """Digest of everything that decides the numbers: weights, sampling settings, clips, metrics."""
    run_id: str
    command: str
    """The command that made the row."""
    machine: Mapping[str, str] = field(default_factory=dict)
    clips_digest: str | None = None
    """`ids_digest` of the clips scored; None in rows made before it was kept."""
    params: int | None = None
    """Parameters of the generating network; None where they were not counted."""
    duration_s: float | None = None
    """Duration of one clip in seconds; None where it was not kept."""

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"task must be one of {get_args(Task)}, got {self.task!r}")
        if self.model not in get_args(Model):
            raise ValueError(f"model must be one of {get_args(Model)}, got {self.model!r}")
        for name in ("steps", "nfe", "num_clips"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, count in (("params", self.params), ("duration_s", self.duration_s)):
            if count is not None and not 0 < count < math.inf:
                raise ValueError(f"{name} must be positive and finite, or None where it is not known, got {count}")
        for name, value in (*self.metrics.items(), *self.rtf.items()):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}; leave out what was not measured")

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What the row is about; a later row of the same key replaces an earlier one."""
        return (self.task, self.model, self.steps, self.seed)

    def to_json(self) -> str:
        """The row as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The row a line holds; unknown and missing fields are refused by name. Optional fields may be absent."""
        data = json.loads(line)
        names = {f.name for f in fields(cls)}
        needed = names - {f.name for f in fields(cls) if f.default is not MISSING}
        found = set(data) if isinstance(data, dict) else set()
        if not needed <= found <= names:
            raise ValueError(
                f"a row needs exactly its fields; missing {sorted(needed - found)}, unknown {sorted(found - names)}"
            )
        return cls(**data)


def read_lines(path: Path) -> list[str]:
    """Complete lines of a JSON-lines file; none if it does not exist. A last line without an end is what a killed run
    left and is not counted."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line.strip()]


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append whole lines with a single write and wait for the disk; an unfinished last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = "".join(f"{line}\n" for line in lines).encode()
    with path.open("ab+") as file:
        size = file.tell()
        file.seek(0)
        content = file.read()
        if size and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """All rows of a rows.jsonl, the last one of each key, in the order the keys first appear.

    Raises:
        ValueError: a complete line that is not a row, named by its number.
    """
    rows: dict[tuple[str, str, int, int], Row] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = Row.from_json(line)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a row of results: {error}") from error
        rows[row.key] = row
    return list(rows.values())


ClipScores = dict[str, dict[str, float]]
"""Clip id -> scores of that clip."""


def read_clip_scores(path: Path) -> dict[tuple[tuple[str, str, int, int], str], ClipScores]:
    """clips.jsonl by (row key, configuration digest); the last line of each clip counts, as a run may have been cut.

    Raises:
        ValueError: a complete line that is not the scores of a clip, named by its number.
    """
    found: dict[tuple[tuple[str, str, int, int], str], ClipScores] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            data = json.loads(line)
            key = (data.pop("task"), data.pop("model"), int(data.pop("steps")), int(data.pop("seed")))
            digest, clip_id = str(data.pop("config_digest")), str(data.pop("id"))
            scores = {name: float(value) for name, value in data.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is not the scores of a clip: {error!r}") from error
        found.setdefault((key, digest), {})[clip_id] = scores
    return found


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 of the ids in byte order, one a line: what `LC_ALL=C sort ids.txt | sha256sum` prints."""
    return hashlib.sha256(ids_text(ids).encode()).hexdigest()


def ids_text(ids: Iterable[str]) -> str:
    """The ids in byte order, one a line.

    Raises:
        ValueError: an id twice, or with a line break in it.
    """
    ordered = sorted(ids)
    broken = [i for i in ordered if "\n" in i] + [a for a, b in pairwise(ordered) if a == b]
    if broken:
        raise ValueError(f"ids must be distinct and without line breaks, got {broken[:5]}")
    return "".join(f"{i}\n" for i in ordered)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Rows of one task, model and step count over seeds."""

    task: Task
    model: Model
    steps: int
    nfe: int
    guidance: float
    num_clips: int
    seeds: tuple[int, ...]
    mean: Mapping[str, float]
    std: Mapping[str, float | None]
    """Sample standard deviation over seeds (divisor n - 1); None with a single seed."""
    rtf: Mapping[str, float]
    """Median over seeds."""
    params: int | None = None
    duration_s: float | None = None


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Mean and standard deviation over seeds, in the order task, model, steps.

    Raises:
        ValueError: rows of one group that differ in number of clips, guidance or evaluations; they do not average.
    """
    groups: dict[tuple[Task, Model, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.model, row.steps), []).append(row)
    rank = {name: k for k, name in enumerate((*get_args(Task), *get_args(Model)))}
    ordered = sorted(groups, key=lambda key: (rank[key[0]], rank[key[1]], key[2]))
    return [_summary(key, groups[key]) for key in ordered]


def _summary(key: tuple[Task, Model, int], rows: list[Row]) -> Summary:
    facts = {(row.num_clips, row.guidance, row.nfe) for row in rows}
    if len(facts) > 1:
        raise ValueError(
            f"rows of {' '.join(map(str, key))} steps differ in (clips, guidance, evaluations): {sorted(facts)}; "
            "rerun the comparison into a fresh folder"
        )
    num_clips, guidance, nfe = facts.pop()
    names = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    values = {name: [row.metrics[name] for row in rows] for name in names}
    stages = [stage for stage in rows[0].rtf if all(stage in row.rtf for row in rows)]
    return Summary(
        task=key[0],
        model=key[1],
        steps=key[2],
        nfe=nfe,
        guidance=guidance,
        num_clips=num_clips,
        seeds=tuple(sorted(row.seed for row in rows)),
        mean={name: statistics.fmean(v) for name, v in values.items()},
        std={name: statistics.stdev(v) if len(v) > 1 else None for name, v in values.items()},
        rtf={stage: statistics.median(row.rtf[stage] for row in rows) for stage in stages},
        params=_agreed([row.params for row in rows]),
        duration_s=_agreed([row.duration_s for row in rows]),
    )


def _agreed(values: list[T | None]) -> T | None:
    """The value all rows have, None where they do not agree."""
    return values[0] if len(set(values)) == 1 else None


def json_line(value: Mapping[str, Any]) -> str:
    """A mapping as one line of JSON with sorted keys."""
    return json.dumps(dict(value), sort_keys=True)
