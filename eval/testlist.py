"""Lists of test clips: the ids a comparison is to be made on, read from a file and found among extracted clips.

Understood are, told apart by suffix and first row:

.txt or without suffix    an id a line: scored-<task>.txt of another comparison, train.txt and test.txt of Greatest Hits
.json                     a list of ids, as CondFoleyGen's splits of Greatest Hits
.csv                      VGGSound (its test rows), AudioCaps, Clotho; or a manifest of this project (its test rows)
.tsv                      MMAudio's lists: id and label or caption; or a manifest
.jsonl                    a manifest

Ids are those that teacher/data/lists.py gives the items of the same file. A listed clip that was not extracted is
reported, and no other clip takes its place.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teacher.data.greatest_hits import video_name
from teacher.data.list_formats import SPLIT_WORDS, ListKind, read_names, read_text
from teacher.data.lists import listed_ids
from teacher.data.manifest import FILE_COLUMNS, read_manifest
from teacher.data.store import Record

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
