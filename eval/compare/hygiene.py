"""The facts of a test set: which clips were scored, which were left out, and what is known of their overlap with the
training data of the networks compared."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from eval.compare.rows import ClipScores, Row, ScoresKey, Task, ids_digest, ids_text
from teacher.files import read_json, replacing

FACTS = "testset.json"


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Test clips that are also in the training split of the runs compared. Ids are those of the test clips."""

    training_files: int
    """Number of media files in the training splits of the runs."""
    by_id: tuple[str, ...]
    by_source: tuple[str, ...]
    """Test clips of the same group (group_id) or video as a training file, under another id."""
    by_content: tuple[str, ...]
    """Test clips whose file has the same bytes as a training file, under another id and source."""
    unread: int
    """Number of test or training files that do not exist any more, so that their bytes could not be compared."""
    unknown: tuple[str, ...] = ()
    """Runs whose training data are not available, and why."""

    @property
    def clean(self) -> bool:
        """Whether no overlap was found; what could not be compared is in `unread` and `unknown`."""
        return not (self.by_id or self.by_source or self.by_content)


@dataclass(frozen=True, kw_only=True)
class TestFacts:
    """The scored clips of one task: the same for every model."""

    __test__ = False

    task: Task
    ids: tuple[str, ...]
    excluded: tuple[tuple[str, str], ...] = ()
    """Clips that could not be read, left out for every model, and why."""
    overlap: Overlap | None = None
    """None where overlap was not searched for."""

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
        """The facts as a report states them: clips with their digest, exclusions, overlap."""
        excluded = "; ".join(f"{clip_id} ({reason})" for clip_id, reason in self.excluded)
        left_out = f"{len(self.excluded)} left out for every model alike: {excluded}." if excluded else "None left out."
        return (
            f"{len(self.ids)} clips, SHA-256 of the sorted ids {self.digest}.",
            left_out,
            _overlap_text(self.overlap),
        )


def write_facts(folder: Path, facts: Iterable[TestFacts]) -> Path:
    """Write testset.json and the sorted ids of each task as scored-<task>.txt, whose `sha256sum` is the digest.

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
    """Read testset.json; empty where there is none.

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


def scored_ids(
    rows: Sequence[Row], clips: Mapping[ScoresKey, ClipScores], rows_path: Path
) -> dict[Task, tuple[str, ...]]:
    """The ids each task was scored on, from the scores of its clips (see `read_clip_scores`); a task without such
    scores is left out. `rows_path` names the file in errors.

    Raises:
        ValueError: rows of one task that were scored on different clips, or on another number of clips than the row
            states: averages over different clips do not compare.
    """
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


def facts_of(rows: Sequence[Row], clips: Mapping[ScoresKey, ClipScores], rows_path: Path) -> dict[Task, TestFacts]:
    """Facts of every task from testset.json beside the rows, or where there is none from the per-clip scores alone.

    Raises:
        ValueError: testset.json lists other clips than were scored; or as `scored_ids`.
    """
    written = read_facts(rows_path.with_name(FACTS))
    scored = scored_ids(rows, clips, rows_path)
    for task in written.keys() & scored.keys():
        other = sorted(set(written[task].ids) ^ set(scored[task]))
        if other:
            raise ValueError(f"{rows_path.with_name(FACTS)} lists other clips for {task} than were scored: {other[:5]}")
    return {task: TestFacts(task=task, ids=ids) for task, ids in scored.items()} | written


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


def _overlap_text(o: Overlap | None) -> str:
    """What is known about the overlap, in one to three sentences."""
    if o is None:
        return "Overlap with training data: not checked."
    kinds = {"id": o.by_id, "source": o.by_source, "content": o.by_content}
    found = "; ".join(f"{len(i)} by {k} ({', '.join(i[:5])}{', ...' * (len(i) > 5)})" for k, i in kinds.items() if i)
    sentences = []
    if o.training_files:
        sentences.append(
            f"Overlap with the {o.training_files} files trained on, by id, source and content: {found or 'none'}."
        )
    if o.unread:
        sentences.append(f"{o.unread} files are not here any more; their content could not be compared.")
    if o.unknown:
        sentences.append(f"Training data not known here: {'; '.join(o.unknown)}.")
    return " ".join(sentences)
