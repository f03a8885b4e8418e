"""The clips a comparison is made on: their real sound, conditions, events, and the scorer built from them.

They are the test split of a feature folder, or those of it that a list names. The suffix and the first row show what a
list is:

.txt or without suffix    an id a line: scored-<task>.txt of another comparison, train.txt and test.txt of Greatest Hits
.json                     a list of ids, as CondFoleyGen's splits of Greatest Hits
.csv                      VGGSound (its test rows), AudioCaps, Clotho; or a manifest of this project (its test rows)
.tsv                      MMAudio's lists: id and label or caption; or a manifest
.jsonl                    a manifest

Ids are those that teacher/lists/published.py gives the items of the same file. A listed clip that was not extracted is
reported, and no other clip takes its place.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from eval.compare.rows import Task, check_distinct
from eval.compare.scorer import Scorer
from eval.compare.sweep import PART, Clips
from eval.compare.training_sounds import read_waves, read_window
from eval.features.cache import FeatureCache, FileDigests, in_parts
from eval.features.clip_features import ClipFeatures
from eval.features.sources import FeatureSource, features_of
from eval.metrics import ClipScorer, model_free_scorers
from meanflow.config import digest
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.files.processes import Processes
from teacher.lists.greatest_hits import video_name
from teacher.lists.manifest import FILE_COLUMNS, read_manifest
from teacher.lists.published import SPLIT_WORDS, ListKind, listed_ids, read_names, read_text
from teacher.network.conditions import Conditions

SECOND_OF_A_VIDEO = re.compile(r"([A-Za-z0-9_-]{11})_(\d{1,6})")
"""<YouTube id>_<start in s>, with the start padded to six digits or not."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
COLUMNS: dict[str, tuple[tuple[ListKind, frozenset[str]], ...]] = {
    ".csv": (
        ("vggsound", frozenset({"id", "sec", "caption", "split"})),
        ("audiocaps", frozenset({"youtube_id", "caption"})),
        ("audiocaps", frozenset({"name", "caption"})),
        ("clotho", frozenset({"file_name", "caption_1"})),
    ),
    ".tsv": (("vggsound-tsv", frozenset({"id", "label"})), ("tsv", frozenset({"id", "caption"}))),
}
FORMS = (
    "an id a line (.txt), a JSON list of ids, the .csv of VGGSound, AudioCaps or Clotho, a .tsv of id and label or "
    "caption, and manifests"
)
Unreadable = Literal["fail", "exclude"]
"""How a test clip whose real sound cannot be read is treated: the run fails, or the clip is left out for every model
and listed. It is never replaced by another."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """`ids`: records that are listed, in their own order; `missing`: listed ids without one, in the list's order."""

    ids: tuple[str, ...]
    missing: tuple[str, ...]
    listed: int
    """Ids on the list."""

    def __str__(self) -> str:
        line = f"{self.listed - len(self.missing)} of {self.listed} listed ids are there, as {len(self.ids)} clips"
        if self.missing:
            line += f"; missing: {', '.join(self.missing[:5])}{' ...' if len(self.missing) > 5 else ''}"
        return line


def read_test_ids(path: Path) -> tuple[str, ...]:
    """Ids of a list of test clips, in its order; its train and validation rows are left out where it has such.

    Names of Greatest Hits lose what follows the name of the video (_denoised, _mic, .mp4), unless the list has several
    files of one video.

    Raises:
        ValueError: in one line: a file that cannot be read, is of no known form, has no test rows or an id twice.
    """
    path = Path(path)
    if path.suffix.lower() in (".txt", ".json", ""):
        names = _plain(path)
        videos = tuple(video_name(name) or name for name in names)
        ids = videos if len(set(videos)) == len(names) else tuple(names)
    else:
        ids = _of_table(path)
    if not ids:
        raise ValueError(f"{path}: lists no test clips")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise ValueError(f"{path}: an id must be listed once, these are not: {', '.join(twice[:5])}{more}")
    return ids


def match_ids(listed: Iterable[str], records: Iterable[Record]) -> Matched:
    """The records that a list names, by their own id, else by the id of their item: then all its windows count.

    Last, by the name of a Greatest Hits video or by video and second (`<video>_30` is `<video>_000030`), which names
    the records whose item is written in the other way. An id found in one of these ways is not looked for in the next.

    Raises:
        ValueError: an id that in this last way names several items.
    """
    by_id: dict[str, None] = {}
    by_item: dict[str, list[str]] = {}
    by_name: dict[str, dict[str, None]] = {}
    for record in records:
        by_id[record.id] = None
        by_item.setdefault(record.item_id, []).append(record.id)
        by_name.setdefault(_name(record.item_id), {})[record.item_id] = None
    names = tuple(listed)
    found: set[str] = set()
    missing = []
    for name in names:
        items = [name] if name in by_item else list(by_name.get(_name(name), ()))
        if name in by_id:
            found.add(name)
        elif len(items) > 1:
            raise ValueError(f"{name} names {len(items)} items: {', '.join(items[:5])}; list their own ids")
        elif items:
            found.update(by_item[items[0]])
        else:
            missing.append(name)
    return Matched(ids=tuple(i for i in by_id if i in found), missing=tuple(missing), listed=len(names))


def listed_clips(
    test_list: Path | None, features: FeatureSet, task: Task, unreadable: Unreadable
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Ids to score and listed ids that are not there; None without a list."""
    if test_list is None:
        return None, ()
    records = [record for record in features.records if record.has_video or task == "tta"]
    matched = match_ids(read_test_ids(test_list), records)
    if matched.missing and unreadable == "fail":
        raise ValueError(
            f"{test_list}: {matched} in {features.folder}; extract them, or leave them out for all models with "
            "--unreadable exclude"
        )
    return matched.ids, matched.missing


def _plain(path: Path) -> list[str]:
    names = read_names(path)
    odd = next((name for name in names if CONTROL.search(name)), None)
    if odd is not None:
        raise ValueError(f"{path}: must hold an id a line, got {odd[:60]!r}")
    return names


def _of_table(path: Path) -> tuple[str, ...]:
    kind = _kind(path)
    if kind == "manifest":
        return tuple(item.id for item in read_manifest(path) if item.split == "test")
    return listed_ids(kind, path, "test")


def _kind(path: Path) -> ListKind | Literal["manifest"]:
    """What a table is, by its suffix and first row."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return "manifest"
    if suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path}: is no list of test clips; known are {FORMS}")
    text = read_text(path).lstrip("\n")
    first = next(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ","), [])
    if suffix == ".csv" and len(first) == 4 and first[1].strip().isdigit() and first[3].strip() in SPLIT_WORDS:
        return "vggsound"
    columns = {cell.strip().lower() for cell in first}
    if columns & set(FILE_COLUMNS):
        return "manifest"
    for kind, needed in COLUMNS[suffix]:
        if needed <= columns:
            return kind
    raise ValueError(f"{path}: is no list of test clips; known are {FORMS}; it begins {','.join(first)[:80]!r}")


def _name(item_id: str) -> str:
    """An id without what differs between lists and files."""
    second = SECOND_OF_A_VIDEO.fullmatch(item_id)
    if second:
        return f"{second.group(1)}_{int(second.group(2))}"
    return video_name(item_id) or item_id


@dataclass(frozen=True, kw_only=True, eq=False)
class TestSet:
    """Held-out clips of one task with everything that scoring needs; sound and conditions are read on demand."""

    __test__ = False

    features: FeatureSet
    records: tuple[Record, ...]
    rows: tuple[int, ...]
    """Row of each record in `features`."""
    scorer: Scorer
    excluded: tuple[tuple[str, str], ...] = ()
    """Clips whose sound cannot be read, and why; in none of the other fields, so no model is scored on them."""
    sounds: str = ""
    """Digest of the media files and of the sources of features; belongs to the configuration of every row."""

    @classmethod
    def build(
        cls,
        folder: Path,
        *,
        video: bool,
        max_clips: int,
        sources: Sequence[FeatureSource],
        clip_scorers: Sequence[ClipScorer] | None = None,
        cache: Path,
        unreadable: Unreadable = "fail",
        only: Collection[str] | None = None,
        costly: bool = False,
        part_size: int = PART,
        processes: Processes | None = None,
    ) -> Self:
        """Test-split clips with picture (`video`) or all of them, evenly spaced if there are more than `max_clips`.

        `only`: these ids and no others, as in a list of ids that were scored before; `max_clips` does not apply.
        Clips are chosen before any file is read: one that cannot be read makes the set smaller, never different.
        Features of the real sound are stored in `cache` under the digests of the files. `clip_scorers` are those that
        need no model unless given.

        Raises ValueError if an id of `only` is not there, a clip cannot be read while `unreadable` is "fail", or fewer
        than two remain.
        """
        if unreadable not in get_args(Unreadable):
            raise ValueError(f"unreadable must be one of {', '.join(get_args(Unreadable))}, got {unreadable!r}")
        features = FeatureSet.open(folder, "test")
        index = [k for k, r in enumerate(features.records) if r.has_video or not video]
        if len(index) < 2:
            raise ValueError(f"{folder} has {len(index)} test clips{' with picture' if video else ''}; 2 are needed")
        if only is not None:
            index = _chosen(features.records, index, only, folder)
        elif len(index) > max_clips:
            index = [index[k * len(index) // max_clips] for k in range(max_clips)]
        check_distinct([features.records[k].id for k in index])
        together = processes or Processes(cache)
        digests = FileDigests(folder=cache, process=together.rank)
        parts = _Reference(
            features=features, sources=tuple(sources), cache=cache, digests=digests, unreadable=unreadable
        )
        files = in_parts(
            len(index),
            part_size,
            path=lambda first, last: parts.path(index[first:last]),
            make=lambda first, last: parts.make(index[first:last]),
            processes=together,
            what="the real sounds",
        )
        read = [ClipFeatures.read(file) for file in files]
        excluded = tuple((i, reason) for _, facts in read for i, reason in json.loads(facts["excluded"]))
        if excluded and unreadable == "fail":
            record = next(r for r in (features.records[k] for k in index) if r.id == excluded[0][0])
            raise ValueError(features.gone(record, excluded[0][1]))
        gone = {clip_id for clip_id, _ in excluded}
        rows = tuple(k for k in index if features.records[k].id not in gone)
        if len(rows) < 2:
            raise ValueError(f"{folder}: {len(rows)} of {len(index)} test clips can be read; 2 are needed")
        records = tuple(features.records[k] for k in rows)
        scorer = Scorer(
            sources=tuple(sources),
            clip_scorers=model_free_scorers() if clip_scorers is None else tuple(clip_scorers),
            records=records,
            reference=ClipFeatures.join([part for part, _ in read if len(part)]),
            sample_rate=features.sequence.sample_rate,
            num_samples=round(features.duration_s * features.sequence.sample_rate),
            costly=costly,
        )
        return cls(
            features=features, records=records, rows=rows, scorer=scorer, excluded=excluded, sounds=parts.digest(rows)
        )

    @property
    def clips(self) -> Clips:
        """Ids and conditions."""
        return Clips(ids=self.scorer.ids, conditions=self._conditions)

    def _conditions(self, first: int, last: int) -> Conditions:
        return self.features.batch(list(self.rows[first:last])).conditions

    def waves(self, first: int, last: int) -> Tensor:
        """Real sound of clips first .. last - 1, (clips, samples), prepared as for the codec in training."""
        return read_waves(self.features, self.records[first:last])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reference:
    """Features of real sound, on disk."""

    features: FeatureSet
    sources: tuple[FeatureSource, ...]
    cache: Path
    digests: FileDigests
    unreadable: Unreadable

    def path(self, rows: Sequence[int]) -> Path:
        return FeatureCache(folder=self.cache).path(self._what(rows))

    def digest(self, rows: Sequence[int]) -> str:
        return digest(self._what(rows))

    def make(self, rows: Sequence[int]) -> None:
        waves, ids, excluded = [], [], []
        for record in (self.features.records[k] for k in rows):
            wave = read_window(self.features, record)
            if isinstance(wave, str):
                if self.unreadable == "fail":  # not stored: it may be readable the next time
                    raise ValueError(self.features.gone(record, wave))
                excluded.append((record.id, wave))
            else:
                waves.append(wave)
                ids.append(record.id)
        rate = self.features.sequence.sample_rate
        made = features_of(self.sources, ids, torch.stack(waves), rate) if waves else ClipFeatures(ids=(), tensors={})
        made.write(self.path(rows), {"excluded": json.dumps(excluded)})

    def _what(self, rows: Sequence[int]) -> dict[str, object]:
        records = [self.features.records[k] for k in rows]
        return {
            "clips": [(r.id, self.digests.of(Path(r.path)), r.start_s) for r in records],
            "listeners": [one.name for one in self.sources],  # so called since the first caches were written
            "seconds": self.features.duration_s,
            "unreadable": self.unreadable,
            "rate": self.features.sequence.sample_rate,
            "peak": self.features.info["config"]["peak_normalise"],
        }


def _chosen(records: Sequence[Record], index: list[int], only: Collection[str], folder: Path) -> list[int]:
    """Rows of `index` whose ids are in `only`."""
    wanted = set(only)
    chosen = [k for k in index if records[k].id in wanted]
    missing = sorted(wanted - {records[k].id for k in chosen})
    if missing:
        raise ValueError(
            f"{folder} has no test clips {', '.join(missing[:5])}; {len(missing)} of {len(wanted)} missing"
        )
    return chosen
