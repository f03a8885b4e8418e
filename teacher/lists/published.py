"""List files of the data sets that MMAudio is trained and tested on: their rows, and their items in a media folder.

vggsound        CSV without header, or with id, sec, caption, split: YouTube id, start in s, class, train | test;
                files <id>_<sec:06d>.mp4
vggsound-tsv    id <tab> label, MMAudio's own splits; files <id>.mp4
audiocaps       CSV: audiocap_id, youtube_id, start_time, caption (files <youtube_id>_<start>, zero-padded to six
                digits or not, or <youtube_id>, or <audiocap_id>); or name, caption (files <name>)
clotho          CSV: file_name, caption_1 ... caption_5: one item per caption, called <name>#1 ... <name>#5
wavcaps         JSON: {"data": [{"id", "caption", ...}]}; files <id>, with AudioSet's ids ending in .wav
tsv             id <tab> caption; files <id>
greatest-hits   a video name a line, or a JSON list (.json) of them; files <name>_denoised, <name>_mic or <name>;
                events, caption and label from <name>_times.txt (see greatest_hits.py)

Items of one source have the same group: captions of a Clotho file, rows of an AudioCaps video, pieces of a recording of
Greatest Hits. A VGGSound id identifies its video itself.

A format is one function, decorated with `list_format`: it reads a list file into `ListedRow`s, and everything else
(looking for the media, splits, messages, the choices of --list-kind) follows.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

from teacher.lists.greatest_hits import recording_of, video_name, with_hits
from teacher.lists.manifest import SPLITS, Item, Split, csv_rows, named_cells

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".flac", ".wav", ".ogg", ".mp3", ".m4a")
"""Suffixes of media files in order of preference among files of one name: video first, then lossless sound."""
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "development": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "evaluation": "test",
    "eval": "test",
}
Cells = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ListedRow:
    """One row of a list file: id, possible names of its media file (without suffix), caption, and split ('' if the
    list has none)."""

    id: str
    names: tuple[str, ...]
    caption: str
    label: str = ""
    split: str = ""
    group_id: str = ""


Reader = Callable[[Path], Iterator[ListedRow]]
"""Reads the rows of a list file in order; raises ValueError in one line for a file of another format."""


@dataclass(frozen=True, kw_only=True)
class ListFormat:
    """One kind of list file."""

    rows: Reader
    annotate: Callable[[list[Item], Path], list[Item]] | None = None
    """Completes the items from other files in the media folder, such as annotations."""


FORMATS: dict[str, ListFormat] = {}
"""Every kind of list file, by the name that --list-kind takes."""


def list_format(
    kind: str, *, annotate: Callable[[list[Item], Path], list[Item]] | None = None
) -> Callable[[Reader], Reader]:
    """Decorator that registers a reader of rows in `FORMATS` under the name of its kind; see `ListFormat`."""

    def entered(rows: Reader) -> Reader:
        FORMATS[kind] = ListFormat(rows=rows, annotate=annotate)
        return rows

    return entered


@list_format("vggsound")
def _vggsound(path: Path) -> Iterator[ListedRow]:
    rows = _plain_rows(path, ",")
    if rows and "id" in (cell.strip().lower() for cell in rows[0]):
        named = _table(path, ",", ("id", "sec", "caption", "split"))
        cells = [[row[c] for c in ("id", "sec", "caption", "split")] for row in named]
    else:
        cells = rows
    for number, row in enumerate(cells, 1):
        if len(row) != 4 or not row[1].strip().isdigit():
            raise ValueError(f"{path}: row {number} must be id, seconds, caption, split, got {','.join(row)[:80]!r}")
        video, second, caption, split = (cell.strip() for cell in row)
        if split not in SPLIT_WORDS:
            raise ValueError(f"{path}: row {number}: unknown split {split!r}, use train, val or test")
        name = f"{video}_{int(second):06d}"
        yield ListedRow(id=name, names=(name,), caption=caption, label=caption, split=SPLIT_WORDS[split])


@list_format("vggsound-tsv")
def _vggsound_tsv(path: Path) -> Iterator[ListedRow]:
    for row in _table(path, "\t", ("id", "label")):
        yield ListedRow(id=row["id"], names=(row["id"],), caption=row["label"], label=row["label"])


@list_format("audiocaps")
def _audiocaps(path: Path) -> Iterator[ListedRow]:
    rows = _table(path, ",", ("caption",))
    if rows and "youtube_id" not in rows[0]:
        for row in _table(path, ",", ("name", "caption")):
            yield ListedRow(id=row["name"], names=_with_and_without_suffix(row["name"]), caption=row["caption"])
        return
    for number, row in enumerate(_table(path, ",", ("audiocap_id", "youtube_id", "start_time", "caption")), 1):
        video, start = row["youtube_id"], row["start_time"]
        if not start.replace(".", "", 1).isdigit():
            raise ValueError(f"{path}: row {number}: start_time must be seconds, got {start!r}")
        names = (f"{video}_{int(float(start)):06d}", f"{video}_{int(float(start))}", video, row["audiocap_id"])
        yield ListedRow(id=row["audiocap_id"], names=names, caption=row["caption"], group_id=video)


@list_format("clotho")
def _clotho(path: Path) -> Iterator[ListedRow]:
    for row in _table(path, ",", ("file_name", "caption_1")):
        names = _with_and_without_suffix(row["file_name"])
        captions = {int(c[8:]): row[c] for c in row if c.startswith("caption_") and c[8:].isdigit() and row[c]}
        for k in sorted(captions):
            yield ListedRow(id=f"{names[-1]}#{k}", names=names, caption=captions[k], group_id=names[-1])


@list_format("wavcaps")
def _wavcaps(path: Path) -> Iterator[ListedRow]:
    try:
        entries: Any = json.loads(read_text(path))["data"]
        rows = [(str(entry["id"]), str(entry["caption"])) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        form = '{"data": [{"id": ..., "caption": ...}]}'
        raise ValueError(f"{path}: must be JSON of the form {form} ({error!r})") from error
    for id_, caption in rows:
        names = _with_and_without_suffix(id_)
        yield ListedRow(id=names[-1], names=names, caption=caption)


@list_format("tsv")
def _tsv(path: Path) -> Iterator[ListedRow]:
    for row in _table(path, "\t", ("id", "caption")):
        yield ListedRow(id=row["id"], names=_with_and_without_suffix(row["id"]), caption=row["caption"])


@list_format("greatest-hits", annotate=with_hits)
def _greatest_hits(path: Path) -> Iterator[ListedRow]:
    for number, listed in enumerate(read_names(path), 1):
        name = video_name(listed)
        if name is None:
            raise ValueError(f"{path}: row {number} must be a video such as 2015-02-16-16-49-06, got {listed[:60]!r}")
        # The file the list names comes first.
        names = dict.fromkeys((_with_and_without_suffix(listed)[0], f"{name}_denoised", f"{name}_mic", name))
        yield ListedRow(
            id=name, names=tuple(names), caption="hitting and scratching with a drumstick", group_id=recording_of(name)
        )


if TYPE_CHECKING:
    ListKind = str
else:
    ListKind = Literal[tuple(FORMATS)]
"""A kind of list file, one of `FORMATS`."""


def read_names(path: Path) -> list[str]:
    """The strings of a JSON list (.json), or the lines of any other text file."""
    text = read_text(path)
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.split("\n") if line.strip()]
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: must be a JSON list of names")
    return names


def _with_and_without_suffix(name: str) -> tuple[str, ...]:
    """A file name of a list with and without its suffix, because the sound may be stored in another format."""
    stem = name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in SUFFIXES else name
    return (name,) if stem == name else (stem,)


def read_text(path: Path) -> str:
    """The content of a text file; ValueError in one line if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _plain_rows(path: Path, delimiter: str) -> list[list[str]]:
    # Captions in tab-separated lists may hold a lone quotation mark.
    try:
        return [row for _, row in csv_rows(read_text(path), delimiter, quoting=delimiter != "\t")]
    except csv.Error as error:
        raise ValueError(f"{path}: {error}") from error


def _table(path: Path, delimiter: str, needed: tuple[str, ...]) -> list[Cells]:
    """Rows by column name in lower case; ValueError when a needed column is missing, or a needed cell."""
    rows = _plain_rows(path, delimiter)
    if not rows:
        raise ValueError(f"{path}: is empty")
    columns = [cell.strip().lower() for cell in rows[0]]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"{path}: has no column {' and '.join(missing)}; its columns are: {', '.join(columns)[:200]}")
    table = []
    for number, row in enumerate(rows[1:], 1):
        cells = named_cells(columns, row, f"{path}: row {number}")
        named = {name: cell.strip() for name, cell in cells.items()}
        empty = [name for name in needed if not named.get(name)]
        if empty:
            raise ValueError(f"{path}: row {number} has no {' and '.join(empty)}")
        table.append(named)
    return table


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Items whose media files exist, and the ids of rows whose files are missing."""

    items: list[Item]
    missing: list[str]

    def __str__(self) -> str:
        line = f"{len(self.items)} of {len(self.items) + len(self.missing)} listed items have a file"
        if self.missing:
            line += f"; missing: {', '.join(self.missing[:3])}{' ...' if len(self.missing) > 3 else ''}"
        return line


def read_list(kind: ListKind, path: Path, media: Path, split: Split | None = None) -> Listed:
    """Items of a list file whose media files are in the folder `media`, and the ids without a file there.

    split: selects rows of a list with splits; for other lists it is the split of all rows, by default the one in the
    file's name (vgg-train.tsv, clotho_captions_development.csv), else train. Media files are searched by name in
    `media` itself, then in its subfolders. Raises ValueError in one line for unknown kinds, wrong columns, repeated
    ids, and when no media file is found at all.
    """
    path, media = Path(path), Path(media)
    _check(kind, split)
    if not media.is_dir():
        raise ValueError(f"{media}: no such folder of media files")
    entries = _entries(kind, path, split)
    files, rest = _files(media), split or _split_of(path)
    items, missing = [], []
    for row in entries:
        file = next((files[name] for name in row.names if name in files), None)
        if file is None:
            missing.append(row.id)
            continue
        own = cast(Split, row.split or rest)
        items.append(
            Item(
                id=row.id,
                path=file,
                caption=row.caption,
                label=row.label,
                split=own,
                group_id=row.group_id,
            )
        )
    if not items:
        raise ValueError(
            f"{media}: none of the {len(entries)} files listed in {path.name} is there; the first would be "
            f"{entries[0].names[0]} with one of {', '.join(SUFFIXES)}"
        )
    annotate = FORMATS[kind].annotate
    return Listed(items=annotate(items, media) if annotate else items, missing=missing)


def listed_ids(kind: ListKind, path: Path, split: Split | None = None) -> tuple[str, ...]:
    """Ids of the items in a list file, in its order, whether or not their media files exist.

    split: selects rows of a list with splits. Raises ValueError as `read_list`.
    """
    _check(kind, split)
    return tuple(row.id for row in _entries(kind, Path(path), split))


def _check(kind: str, split: str | None) -> None:
    if kind not in FORMATS:
        raise ValueError(f"list kind must be one of {', '.join(FORMATS)}, got {kind!r}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def _entries(kind: ListKind, path: Path, split: Split | None) -> list[ListedRow]:
    entries = [row for row in FORMATS[kind].rows(path) if not (split and row.split and row.split != split)]
    if not entries:
        raise ValueError(f"{path}: holds no rows{f' of split {split}' if split else ''}")
    twice = [id_ for id_, count in Counter(entry.id for entry in entries).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: ids must be unique, these are not: {', '.join(twice[:5])}")
    return entries


def _files(media: Path) -> dict[str, Path]:
    """Media files by name without suffix; those in the folder itself and in the order of SUFFIXES come first."""
    found = [path for path in media.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    found.sort(key=lambda p: (len(p.relative_to(media).parts), SUFFIXES.index(p.suffix.lower()), p.as_posix()))
    files: dict[str, Path] = {}
    for path in found:
        files.setdefault(path.stem, path)
        files.setdefault(path.relative_to(media).with_suffix("").as_posix(), path)
    return files


def _split_of(path: Path) -> str:
    words = path.stem.lower().replace("-", "_").split("_")
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), "train")
