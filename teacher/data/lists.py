"""The list files of the data sets MMAudio trains and is tested on, and a folder of their media -> items.

vggsound        CSV without header, or with id, sec, caption, split: YouTube id, start in s, class, train | test;
                files <id>_<sec:06d>.mp4
vggsound-tsv    id <tab> label, MMAudio's own splits; files <id>.mp4
audiocaps       CSV: audiocap_id, youtube_id, start_time, caption (files <youtube_id>_<start>, zero-padded to six
                digits or not, or <youtube_id>, or <audiocap_id>); or name, caption (files <name>)
clotho          CSV: file_name, caption_1 ... caption_5: one item per caption, called <name>#1 ... <name>#5
wavcaps         JSON: {"data": [{"id", "caption", ...}]}; files <id>, with AudioSet's ids ending in .wav
tsv             id <tab> caption; files <id>
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast, get_args

from teacher.data.manifest import SPLITS, Item, Split

ListKind = Literal["vggsound", "vggsound-tsv", "audiocaps", "clotho", "wavcaps", "tsv"]
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".flac", ".wav", ".ogg", ".mp3", ".m4a")
"""Of several files with one name the first kind is taken: picture before sound, lossless before lossy."""
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
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Items whose files are there, and the ids of those whose files are not."""

    items: list[Item]
    missing: list[str]

    def __str__(self) -> str:
        line = f"{len(self.items)} of {len(self.items) + len(self.missing)} listed items have a file"
        if self.missing:
            line += f"; missing: {', '.join(self.missing[:3])}{' ...' if len(self.missing) > 3 else ''}"
        return line


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One row: id, names its file may have (without suffix), words, and its split where the list has one."""

    id: str
    names: tuple[str, ...]
    caption: str
    label: str = ""
    split: str = ""


def read_list(kind: ListKind, path: Path, media: Path, split: Split | None = None) -> Listed:
    """Items of a list file whose media lie in the folder `media`, and the ids that have no file there.

    split: keep only these rows of a list that has splits; for the others, the split of all rows, by default the one
    that the file's name contains (vgg-train.tsv, clotho_captions_development.csv), else train. Media are looked for
    by name in `media` itself, then in its folders. Raises ValueError in one line for unknown kinds, wrong columns,
    repeated ids, and when no file is there at all.
    """
    path, media = Path(path), Path(media)
    if kind not in READERS:
        raise ValueError(f"list kind must be one of {', '.join(READERS)}, got {kind!r}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not media.is_dir():
        raise ValueError(f"{media}: no such folder of media files")
    entries = [entry for entry in READERS[kind](path) if not (split and entry.split and entry.split != split)]
    if not entries:
        raise ValueError(f"{path}: holds no rows{f' of split {split}' if split else ''}")
    twice = [id_ for id_, count in Counter(entry.id for entry in entries).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: ids must be unique, these are not: {', '.join(twice[:5])}")
    files, rest = _files(media), split or _split_of(path)
    items, missing = [], []
    for entry in entries:
        file = next((files[name] for name in entry.names if name in files), None)
        if file is None:
            missing.append(entry.id)
            continue
        own = cast(Split, entry.split or rest)
        items.append(Item(id=entry.id, path=file, caption=entry.caption, label=entry.label, split=own))
    if not items:
        raise ValueError(
            f"{media}: none of the {len(entries)} files listed in {path.name} is there; the first would be "
            f"{entries[0].names[0]} with one of {', '.join(SUFFIXES)}"
        )
    return Listed(items=items, missing=missing)


def _vggsound(path: Path) -> Iterator[_Entry]:
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
        yield _Entry(id=name, names=(name,), caption=caption, label=caption, split=SPLIT_WORDS[split])


def _vggsound_tsv(path: Path) -> Iterator[_Entry]:
    for row in _table(path, "\t", ("id", "label")):
        yield _Entry(id=row["id"], names=(row["id"],), caption=row["label"], label=row["label"])


def _audiocaps(path: Path) -> Iterator[_Entry]:
    rows = _table(path, ",", ("caption",))
    if rows and "youtube_id" not in rows[0]:
        for row in _table(path, ",", ("name", "caption")):
            yield _Entry(id=row["name"], names=_with_and_without_suffix(row["name"]), caption=row["caption"])
        return
    for number, row in enumerate(_table(path, ",", ("audiocap_id", "youtube_id", "start_time", "caption")), 1):
        video, start = row["youtube_id"], row["start_time"]
        if not start.replace(".", "", 1).isdigit():
            raise ValueError(f"{path}: row {number}: start_time must be seconds, got {start!r}")
        names = (f"{video}_{int(float(start)):06d}", f"{video}_{int(float(start))}", video, row["audiocap_id"])
        yield _Entry(id=row["audiocap_id"], names=names, caption=row["caption"])


def _clotho(path: Path) -> Iterator[_Entry]:
    for row in _table(path, ",", ("file_name", "caption_1")):
        names = _with_and_without_suffix(row["file_name"])
        captions = {int(c[8:]): row[c] for c in row if c.startswith("caption_") and c[8:].isdigit() and row[c]}
        for k in sorted(captions):
            yield _Entry(id=f"{names[-1]}#{k}", names=names, caption=captions[k])


def _wavcaps(path: Path) -> Iterator[_Entry]:
    try:
        entries: Any = json.loads(_text(path))["data"]
        rows = [(str(entry["id"]), str(entry["caption"])) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        form = '{"data": [{"id": ..., "caption": ...}]}'
        raise ValueError(f"{path}: must be JSON of the form {form} ({error!r})") from error
    for id_, caption in rows:
        names = _with_and_without_suffix(id_)
        yield _Entry(id=names[-1], names=names, caption=caption)


def _tsv(path: Path) -> Iterator[_Entry]:
    for row in _table(path, "\t", ("id", "caption")):
        yield _Entry(id=row["id"], names=_with_and_without_suffix(row["id"]), caption=row["caption"])


READERS: dict[str, Callable[[Path], Iterator[_Entry]]] = {
    "vggsound": _vggsound,
    "vggsound-tsv": _vggsound_tsv,
    "audiocaps": _audiocaps,
    "clotho": _clotho,
    "wavcaps": _wavcaps,
    "tsv": _tsv,
}
assert tuple(READERS) == get_args(ListKind)


def _with_and_without_suffix(name: str) -> tuple[str, ...]:
    """A file name of a list, as written and without its suffix: the sound may have been stored in another format."""
    stem = name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in SUFFIXES else name
    return (name,) if stem == name else (stem,)


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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _plain_rows(path: Path, delimiter: str) -> list[list[str]]:
    # Captions in tab-separated lists may hold a lone quotation mark.
    lines = _text(path).splitlines(keepends=True)
    if delimiter == "\t":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error


def _table(path: Path, delimiter: str, needed: tuple[str, ...]) -> list[Row]:
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
        named = {name: cell.strip() for name, cell in zip(columns, row, strict=False)}
        empty = [name for name in needed if not named.get(name)]
        if empty:
            raise ValueError(f"{path}: row {number} has no {' and '.join(empty)}")
        table.append(named)
    return table
