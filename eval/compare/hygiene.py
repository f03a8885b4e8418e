"""Whether the networks compared have heard any of the test clips: by id, by source and by content.

What was scored, what was left out, and whether the networks have heard any of it: the facts of a test set."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from eval.compare.rows import Row, Task, ids_digest, ids_text, read_clip_scores, read_rows
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.files import file_sha256, read_json, replacing, split_lines
from teacher.weights.run_folder import read_run_config

CLIP_OF_A_VIDEO = re.compile(r"Y?([A-Za-z0-9_-]{11})_\d+(_\d+)?|Y([A-Za-z0-9_-]{11})")
"""Ids of VGGSound and AudioCaps: the 11 letters of a video, then times; of the AudioSet part of WavCaps: a Y and the
letters. Two clips of one video sound alike."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Test clips that are also in the training split of the runs compared. Ids are those of the test clips."""

    training_files: int
    """Media files the runs learnt from."""
    by_id: tuple[str, ...]
    by_source: tuple[str, ...]
    """Of the same group (group_id) or video as a file trained on, under another id."""
    by_content: tuple[str, ...]
    """Of a file with the same bytes, under another id and source."""
    unread: int
    """Files, of either side, that are gone: their bytes could not be compared."""
    unknown: tuple[str, ...] = ()
    """Runs whose training data are not known here, and why."""

    @property
    def clean(self) -> bool:
        """Nothing found in common; what could not be looked at is in `unread` and `unknown`."""
        return not (self.by_id or self.by_source or self.by_content)


def trained_on(runs: Iterable[Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Feature folders the runs learnt from, each once; and the runs for which they are not known, with the reason."""
    folders: dict[Path, None] = {}
    unknown = []
    for run in runs:
        data = _training_data(run)
        paths = [Path(p) for p in data]
        gone = [str(p) for p in paths if not (p / "features.json").is_file()]
        if gone or not paths:
            unknown.append(f"{run} ({', '.join(gone)} not here)" if gone else f"{run} (its configuration names none)")
        folders |= dict.fromkeys(p for p in paths if str(p) not in gone)
    return tuple(folders), tuple(unknown)


def find_overlap(test: Sequence[Record], runs: Iterable[Path], *, groups: Mapping[str, str] | None = None) -> Overlap:
    """Look for test clips in the training splits of all feature folders the runs learnt from.

    By item id; by the group of the records and by video, for ids that name one; and by SHA-256 of the media files, of
    which only those with a size that occurs on both sides are read. `groups`: item id -> group_id, in place of what the
    records say (see `read_groups`); features extracted before groups were kept have none.
    """
    folders, unknown = trained_on(runs)
    ids: set[str] = set()
    sources: set[str] = set()
    files: set[Path] = set()
    groups = groups or {}
    for record in (r for folder in folders for r in FeatureSet.open(folder, "train").records):
        ids.add(record.item_id)
        sources |= sources_of(record, groups)
        files.add(Path(record.path))
    same_bytes, unread = _same_content({Path(r.path) for r in test}, files)
    by_id = [r.id for r in test if r.item_id in ids]
    by_source = [r.id for r in test if r.item_id not in ids and sources_of(r, groups) & sources]
    taken = {*by_id, *by_source}
    return Overlap(
        training_files=len(files),
        by_id=tuple(by_id),
        by_source=tuple(by_source),
        by_content=tuple(r.id for r in test if r.id not in taken and Path(r.path) in same_bytes),
        unread=unread,
        unknown=unknown,
    )


def sources_of(record: Record, groups: Mapping[str, str] | None = None) -> frozenset[str]:
    """What a record is a piece of: its group where known, and its video where its id names one, else the item itself.

    Both count, since the other side may know only one of them.
    """
    video = CLIP_OF_A_VIDEO.fullmatch(record.item_id)
    own = (video.group(1) or video.group(3)) if video else record.item_id
    return frozenset({own, (groups or {}).get(record.item_id, record.group_id)} - {""})


def read_groups(manifest: Path) -> dict[str, str]:
    """Item id -> group_id of a .jsonl, .csv or .tsv manifest; items without either are left out."""
    text = manifest.read_text(encoding="utf-8-sig")
    if manifest.suffix.lower() == ".jsonl":
        rows = [json.loads(line) for line in split_lines(text) if line.strip()]
    else:
        delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    return {str(r["id"]): str(r["group_id"]) for r in rows if r.get("id") and r.get("group_id")}


def _same_content(test: set[Path], training: set[Path]) -> tuple[set[Path], int]:
    """Files of `test` whose bytes are those of some file of `training`, and how many files are gone."""
    sizes = {path: path.stat().st_size for path in test | training if path.is_file()}
    shared = {sizes[p] for p in test if p in sizes} & {sizes[p] for p in training if p in sizes}
    known = {file_sha256(p) for p in training if sizes.get(p) in shared}
    found = {p for p in test if sizes.get(p) in shared and file_sha256(p) in known}
    return found, len(test | training) - len(sizes)


def _training_data(run: Path) -> tuple[str, ...]:
    """The feature folders config.json names; none for published weights."""
    settings = read_run_config(run).get("run")
    data = settings.get("data", ()) if isinstance(settings, dict) else ()
    return (data,) if isinstance(data, str) else tuple(map(str, data))


FACTS = "testset.json"


@dataclass(frozen=True, kw_only=True)
class TestFacts:
    """The scored clips of one task: the same for every model."""

    __test__ = False

    task: Task
    ids: tuple[str, ...]
    excluded: tuple[tuple[str, str], ...] = ()
    """Clips that could not be read, left out for every model, and why."""
    overlap: Overlap | None = None
    """None: not looked at."""

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"task must be one of {get_args(Task)}, got {self.task!r}")
        both = set(self.ids) & {clip_id for clip_id, _ in self.excluded}
        if both:
            raise ValueError(f"excluded clips must not be scored, got {sorted(both)[:5]} as both")

    @property
    def digest(self) -> str:
        """SHA-256 of the sorted ids, one a line."""
        return ids_digest(self.ids)

    def sentences(self) -> tuple[str, ...]:
        """What a report says."""
        excluded = "; ".join(f"{clip_id} ({reason})" for clip_id, reason in self.excluded)
        left_out = f"{len(self.excluded)} left out for every model alike: {excluded}." if excluded else "None left out."
        return (f"{len(self.ids)} clips, SHA-256 of the sorted ids {self.digest}.", left_out, _told(self))


def write_facts(folder: Path, facts: Iterable[TestFacts]) -> Path:
    """testset.json and the sorted ids of each task as scored-<task>.txt, whose `sha256sum` is the digest.

    Tasks of an earlier testset.json that are not given again stay in it.
    """
    document = {}
    for fact in (read_facts(folder / FACTS) | {fact.task: fact for fact in facts}).values():
        document[fact.task] = asdict(fact) | {"sha256": fact.digest}
        with replacing(folder / f"scored-{fact.task}.txt") as temporary:
            temporary.write_text(ids_text(fact.ids), encoding="utf-8")
    with replacing(folder / FACTS) as temporary:
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder / FACTS


def read_facts(path: Path) -> dict[Task, TestFacts]:
    """testset.json; empty where there is none.

    Raises:
        ValueError: not such a file, or ids that do not give the digest written beside them.
    """
    if not path.exists():
        return {}
    try:
        document: dict[Any, Any] = read_json(path)
        found = {task: _fact(entry) for task, entry in document.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the facts of a test set: {error!r}") from error
    for task, fact in found.items():
        if fact.digest != document[task]["sha256"]:
            raise ValueError(f"{path}: the ids of {task} were changed; they give {fact.digest}")
    return found


def scored_ids(rows: Sequence[Row], rows_path: Path) -> dict[Task, tuple[str, ...]]:
    """The ids each task was scored on, from clips.jsonl beside the rows; a task without per-clip scores is left out.

    Raises:
        ValueError: rows of one task that were not scored on the same clips, or as many as the row says: an average
            over other clips is no comparison.
    """
    clips = read_clip_scores(rows_path.with_name("clips.jsonl"))
    found: dict[Task, tuple[str, ...]] = {}
    for row in rows:
        ids = tuple(clips.get(row.scores_key, ()))
        if not ids:
            continue
        name = row.title
        if len(ids) != row.num_clips:
            raise ValueError(f"{rows_path}: {name} has {row.num_clips} clips, clips.jsonl has scores of {len(ids)}")
        first = found.setdefault(row.task, ids)
        differing = sorted(set(first) ^ set(ids))
        if differing:
            raise ValueError(f"{rows_path}: {name} was scored on other clips than the rows before: {differing[:5]}")
    return found


def facts_of(rows: Sequence[Row], rows_path: Path) -> dict[Task, TestFacts]:
    """Facts of every task from testset.json beside the rows, or where there is none from the per-clip scores alone.

    Raises:
        ValueError: testset.json lists other clips than were scored; or as `scored_ids`.
    """
    written = read_facts(rows_path.with_name(FACTS))
    scored = scored_ids(rows, rows_path)
    for task in written.keys() & scored.keys():
        other = sorted(set(written[task].ids) ^ set(scored[task]))
        if other:
            raise ValueError(f"{rows_path.with_name(FACTS)} lists other clips for {task} than were scored: {other[:5]}")
    return {task: TestFacts(task=task, ids=ids) for task, ids in scored.items()} | written


def look_again(
    rows_path: Path, data: Path, runs: Sequence[Path], manifest: Path | None = None
) -> dict[Task, TestFacts]:
    """Write testset.json anew for finished rows: ids from the scores, overlap between `data` and the data of `runs`.

    Raises:
        ValueError: as `facts_of`; a scored id that is no test clip of `data`.
    """
    records = {r.id: r for r in FeatureSet.open(data, "test").records}
    groups = read_groups(manifest) if manifest is not None else None
    found = {}
    for task, fact in facts_of(read_rows(rows_path), rows_path).items():
        strangers = [i for i in fact.ids if i not in records]
        if strangers:
            raise ValueError(f"{data} has no test clips {', '.join(strangers[:5])}, which were scored")
        overlap = find_overlap([records[i] for i in fact.ids], runs, groups=groups)
        found[task] = replace(fact, overlap=overlap)
    write_facts(rows_path.parent, found.values())
    return found


def _fact(entry: Mapping[str, Any]) -> TestFacts:
    names = {f.name for f in fields(TestFacts)}
    if set(entry) != names | {"sha256"}:
        raise ValueError(f"needs the fields {sorted(names)} and sha256, got {sorted(entry)}")
    overlap = entry["overlap"]
    excluded = tuple((str(clip_id), str(reason)) for clip_id, reason in entry["excluded"])
    return TestFacts(
        task=entry["task"],
        ids=tuple(entry["ids"]),
        excluded=excluded,
        overlap=None if overlap is None else _overlap(overlap),
    )


def _overlap(entry: Mapping[str, Any]) -> Overlap:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
    return Overlap(**values)


def _told(fact: TestFacts) -> str:
    """What is known about the overlap, in one or two sentences."""
    o = fact.overlap
    if o is None:
        return "Overlap with training data: not looked at."
    kinds = {"id": o.by_id, "source": o.by_source, "content": o.by_content}
    found = "; ".join(f"{len(i)} by {k} ({', '.join(i[:5])}{', ...' * (len(i) > 5)})" for k, i in kinds.items() if i)
    told = []
    if o.training_files:
        told.append(
            f"Overlap with the {o.training_files} files trained on, by id, source and content: {found or 'none'}."
        )
    if o.unread:
        told.append(f"{o.unread} files are not here any more; their content could not be compared.")
    if o.unknown:
        told.append(f"Training data not known here: {'; '.join(o.unknown)}.")
    return " ".join(told)
