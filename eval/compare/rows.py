"""Rows of results: one JSON line per task, model, step count and seed."""

import hashlib
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, get_args

from eval.metrics.base import Task
from eval.metrics.uncertainty import Estimate
from teacher.files.lines import read_lines

Kind = Literal["teacher", "student", "codec", "reference"]
"""`codec`: real sound through the codec and back, the ceiling of every model; `reference`: real sound itself."""
CHECK = "check"
"""Entry of a line that holds its checksum."""
SEAL = re.compile(rf', "{CHECK}": "([0-9a-f]{{8}})"\}}$')
"""How `sealed` ends a line."""
Key = tuple[str, str, int, float, int]
"""Task, model, steps, guidance and seed."""
ScoresKey = tuple[tuple[str, str, int, int], str]
"""(task, model, steps, seed) and the configuration digest, which the guidance is part of."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of rows.jsonl: the setting of a run and its results."""

    task: Task
    """vta: sound from video (and its text); tta: sound from text alone."""
    model: str
    """Name of the network in the comparison: any, for networks; "codec" or "reference" for those."""
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
    """Digest of everything that the numbers depend on: weights, sampling settings, clips, metrics."""
    run_id: str
    command: str
    """The command that made the row."""
    machine: Mapping[str, str] = field(default_factory=dict)
    clips_digest: str | None = None
    """`ids_digest` of the clips scored; None in rows of versions that did not record it."""
    params: int | None = None
    """Parameters of the generating network; None where they were not counted."""
    duration_s: float | None = None
    """Duration of one clip in seconds; None where it was not recorded."""
    kind: Kind = None  # type: ignore[assignment]
    """The kind of model. Where it is not given the model's name states it, as in rows of older versions."""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """Interval, bias and number of clips of the metrics, by name; rows of older versions have none."""

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"task must be one of {get_args(Task)}, got {self.task!r}")
        if self.kind is None and self.model not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)} for a model called {self.model!r}, got None")
        object.__setattr__(self, "kind", self.kind or self.model)
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")
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
    def key(self) -> Key:
        """Task, model, steps, guidance and seed; a later row of the same key replaces an earlier one."""
        return (self.task, self.model, self.steps, self.guidance, self.seed)

    @property
    def scores_key(self) -> ScoresKey:
        """The key under which clips.jsonl has the scores of the row's clips."""
        return (self.task, self.model, self.steps, self.seed), self.config_digest

    @property
    def title(self) -> str:
        """Task, model, steps, guidance and seed of the row as text."""
        guidance = f", guidance {self.guidance:g}" if self.steps and self.guidance != 1.0 else ""
        steps = f"{self.steps} step{'s' * (self.steps != 1)}"
        return f"{self.task} {self.model}, {steps}{guidance}, seed {self.seed}"

    def to_json(self) -> str:
        """The row as one line of JSON. Codec and reference are called by their kind, which is then not repeated."""
        kind = None if self.kind in ("codec", "reference") else self.kind
        return json.dumps(asdict(self) | {"kind": kind}, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The row of a line. Raises ValueError naming unknown or missing fields; optional fields may be absent."""
        data = json.loads(line)
        if isinstance(data, dict):
            data.pop(CHECK, None)
        names = {f.name for f in fields(cls)}
        needed = names - {f.name for f in fields(cls) if f.default is not MISSING} - {"estimates"}
        found = set(data) if isinstance(data, dict) else set()
        if not needed <= found <= names:
            raise ValueError(
                f"a row needs exactly its fields; missing {sorted(needed - found)}, unknown {sorted(found - names)}"
            )
        estimates = {name: Estimate.from_json(value) for name, value in data.get("estimates", {}).items()}
        return cls(**{**data, "estimates": estimates})


def sealed(line: str) -> str:
    """A JSON object in one line with sorted keys, and a checksum of itself (CRC-32) as its last entry."""
    return f'{line[:-1]}, "{CHECK}": "{_crc(line)}"}}'


def changed_lines(path: Path) -> list[int]:
    """Numbers of the lines whose checksum does not fit: damaged, or changed by hand. Lines of older versions have no
    checksum and are taken as they are."""
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        seal = SEAL.search(line)
        if seal is not None and seal[1] == _crc(f"{line[: seal.start()]}}}"):
            continue  # byte for byte what `sealed` wrote: there is no need to parse it
        try:
            data = json.loads(line)
            check = data.pop(CHECK, None)
            ok = check is None or check == _crc(json.dumps(data, sort_keys=True))
        except (ValueError, TypeError, AttributeError, RecursionError):
            ok = False
        if not ok:
            found.append(number)
    return found


def sealed_rows(path: Path) -> list[Row]:
    """The rows of `read_rows` whose lines hold a checksum: those that this version wrote."""
    last = {row.key: (row, f'"{CHECK}": "' in line) for line in read_lines(path) for row in [Row.from_json(line)]}
    return [row for row, is_sealed in last.values() if is_sealed]


def check_lines(folder: Path) -> None:
    """Raise ValueError, naming the first line of rows.jsonl or clips.jsonl that is not as it was written."""
    for name, remedy in (
        ("rows.jsonl", "remove the line to have the row made again"),
        ("clips.jsonl", "remove the line, and in rows.jsonl the row it belongs to, to have both made again"),
    ):
        if changed := changed_lines(folder / name):
            raise ValueError(
                f"{folder / name}, line {changed[0]} is not as it was written, it was damaged or changed; {remedy}"
            )


def _crc(line: str) -> str:
    return f"{zlib.crc32(line.encode()):08x}"


def read_rows(path: Path) -> list[Row]:
    """All rows of a rows.jsonl, the last one of each key, in the order the keys first appear.

    Raises:
        ValueError: a complete line that is not a row, named by its number.
    """
    rows: dict[Key, Row] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = Row.from_json(line)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a row of results: {error}") from error
        rows[row.key] = row
    return list(rows.values())


ClipScores = dict[str, dict[str, float]]
"""Clip id -> scores of that clip."""


def read_clip_scores(path: Path) -> dict[ScoresKey, ClipScores]:
    """clips.jsonl by (row key, configuration digest); the last line of each clip counts, as a run may have been cut.

    Raises:
        ValueError: a complete line that is not the scores of a clip, named by its number.
    """
    found: dict[ScoresKey, ClipScores] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            data = json.loads(line)
            data.pop(CHECK, None)
            key = (data.pop("task"), data.pop("model"), int(data.pop("steps")), int(data.pop("seed")))
            digest, clip_id = str(data.pop("config_digest")), str(data.pop("id"))
            scores = {name: float(value) for name, value in data.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is not the scores of a clip: {error!r}") from error
        found.setdefault((key, digest), {})[clip_id] = scores
    return found


def check_distinct(ids: Sequence[str]) -> None:
    """Raise ValueError, naming some, where ids repeat: scores of two clips would go under one name."""
    twice = [clip_id for clip_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} of {len(ids)} clips have the id of another: {', '.join(twice[:5])}"
            f"{', ...' * (len(twice) > 5)}; give them ids of their own in the manifest and extract again"
        )


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


def json_line(value: Mapping[str, Any]) -> str:
    """A mapping as one line of JSON with sorted keys."""
    return json.dumps(dict(value), sort_keys=True)


def safe_name(name: str) -> str:
    """A name for a file: letters, digits, dot, dash and underscore, with a digest where anything was replaced."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".")[:80]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def embeddings_path(rows_path: Path, row: Row) -> Path:
    """File of the features of a row; the model's name is made safe for a file name by its digest in the end."""
    name = f"{row.task}-{row.kind}-{row.steps}-{row.seed}"
    mark = hashlib.sha256(f"{row.model}/{row.config_digest}".encode()).hexdigest()[:12]
    return rows_path.parent / "embeddings" / f"{name}-{mark}.safetensors"
