"""Manifests, the lists of training items: read from a table, a folder of tables or a folder of media files."""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from teacher.files import replacing, split_lines

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv")
MEDIA_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".wav", ".flac", ".ogg", ".mp3")
FILE_COLUMNS = ("file", "path", "video", "audio")
CAPTION_COLUMNS = ("caption", "text", "prompt")
LABEL_COLUMNS = ("label", "class")
SPLIT_PERCENTS = (80, 90)
"""Per cent of hashed items below which an item is train, below which val; the rest is test."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One media file with its caption and label. `events_s`: onsets of its sounds in seconds, None if unknown.

    `group_id` is equal for items of one source (clips of one recording, captions of one sound); '' for a single item.
    """

    id: str
    path: Path
    caption: str
    label: str = ""
    split: Split
    events_s: tuple[float, ...] | None = None
    group_id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id must not be empty")
        if self.split not in SPLITS:
            raise ValueError(f"split of {self.id!r} must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.events_s is not None and any(not 0 <= t < float("inf") for t in self.events_s):
            raise ValueError(f"events_s of {self.id!r} must be finite and not negative, got {self.events_s}")


SkippedItem = tuple[str, str]
"""Name of a skipped row, item or window, and the reason."""


def read_manifest(source: Path, left_out: list[SkippedItem] | None = None) -> list[Item]:
    """Items of a .jsonl, .csv or .tsv table, of all such tables in a folder, or of the media files below a folder.

    Table columns, the first present of each group: file | path | video | audio (relative to the table);
    caption | text | prompt (else the label, else the file name as words); label | class; split (else by a stable hash
    of group_id or id, 80 / 10 / 10); id (else the file name without suffix); events_s (JSON list of seconds); group_id
    (rows of one source).
    In a folder, tables without a file column are passed over. Media files below a folder take their label from their
    folder and their caption from a .txt file beside them, else from their name. Media files are not opened here.

    A row whose text or path cannot be written to a file (half a surrogate pair, NUL), and a media file whose .txt is
    not UTF-8, are appended to `left_out` with the reason; without it they are errors like the others. A file name that
    is not UTF-8 is allowed: its other bytes appear as \\xe9 in the id and the caption.
    Raises ValueError with one line that describes the error.
    """
    source, wrong = Path(source), [] if left_out is None else left_out
    if source.is_file():
        if source.suffix.lower() not in TABLE_SUFFIXES:
            raise ValueError(f"{source}: a manifest must end in {', '.join(TABLE_SUFFIXES)}, or be a folder")
        rows = _rows(source, wrong)
        if not rows and not wrong:
            raise ValueError(f"{source}: holds no rows")
        drafts = _drafts(rows, source, wrong)
    elif source.is_dir():
        drafts = _folder_drafts(source, wrong)
    else:
        raise ValueError(f"{source}: no such file or folder")
    if wrong and left_out is None:
        raise ValueError(f"{source}: {wrong[0][0]}: {wrong[0][1]}")
    twice = [name for name, count in Counter(d.id for d in drafts).items() if count > 1]
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise ValueError(f"{source}: ids must be unique, these are not: {', '.join(twice[:5])}{more}")
    return _split(drafts)


def write_manifest(items: Iterable[Item], path: Path) -> None:
    """Write a .jsonl that `read_manifest` reads back; files are written relative to it where they lie below it."""
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"{path}: a manifest is written as .jsonl")
    folder = path.parent.absolute()
    lines = []
    for item in items:
        file = item.path.absolute()
        row: dict[str, object] = {
            "id": item.id,
            "file": (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix(),
            "caption": item.caption,
            "label": item.label,
            "split": item.split,
        }
        if item.events_s is not None:
            row["events_s"] = list(item.events_s)
        if item.group_id:
            row["group_id"] = item.group_id
        lines.append(json.dumps(row, ensure_ascii=not storable(str(row))))
    with replacing(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """An item whose split may still be open; it follows from the hash of its group, or of its id without a group."""

    id: str
    path: Path
    caption: str
    label: str
    split: str
    events_s: tuple[float, ...] | None
    group_id: str = ""

    @property
    def group(self) -> str:
        return self.group_id or self.id


def storable(text: str) -> bool:
    """Whether a text can be written as UTF-8: half a surrogate pair, as "\\ud800" in JSON, cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """A text that can be written and printed: bytes of a file name that are no UTF-8, and half surrogate pairs, are
    spelt out."""
    if storable(text):
        return text
    return (os.fsencode(text) if _is_name(text) else text.encode("utf-8", "backslashreplace")).decode(
        "utf-8", "backslashreplace"
    )


def _is_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def csv_rows(text: str, delimiter: str, *, quoting: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV text with the number of their last line; quoted cells may hold line breaks and delimiters.

    Raises csv.Error where quotes do not match.
    """
    lines = io.StringIO(text, newline="")
    if quoting:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error


def named_cells(columns: Sequence[str], row: Sequence[str], where: str) -> dict[str, str]:
    """Cells by column. ValueError, beginning with `where`, for filled cells beyond the last column."""
    if any(cell.strip() for cell in row[len(columns) :]):
        raise ValueError(
            f"{where} has {len(row)} cells and the table {len(columns)} columns; quote a cell that holds the delimiter"
        )
    return dict(zip(columns, row, strict=False))


def _rows(table: Path, wrong: list[SkippedItem]) -> list[dict[str, object]]:
    """Rows of a table with their column names in lower case."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: is not UTF-8 text (byte {error.start})") from error
    if table.suffix.lower() != ".jsonl":
        try:
            lines = list(csv_rows(text, "\t" if table.suffix.lower() == ".tsv" else ","))
        except csv.Error as error:
            raise ValueError(f"{table}: {error}") from error
        columns = [cell.strip().lower() for cell in lines[0][1]] if lines else []
        return [dict(named_cells(columns, row, f"{table}: line {number}")) for number, row in lines[1:]]
    rows: list[dict[str, object]] = []
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            wrong.append((f"line {number} of {table.name}", "it is nested too deep"))
            continue
        except json.JSONDecodeError as error:
            raise ValueError(f"{table}: line {number} is not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{table}: line {number} must be a JSON object, got {type(row).__name__}")
        rows.append({str(k).strip().lower(): v for k, v in row.items()})
    return rows


def _first(row: dict[str, object], columns: tuple[str, ...]) -> str:
    """The first of the columns that is filled in; '' without one."""
    return next((str(row[c]).strip() for c in columns if row.get(c) not in (None, "")), "")


def _words(path: Path) -> str:
    return " ".join(shown(path.stem).replace("_", " ").replace("-", " ").split())


def _drafts(rows: Sequence[dict[str, object]], table: Path, wrong: list[SkippedItem]) -> list[_Draft]:
    """Items of the rows; those with text that cannot be written to a file are added to `wrong`."""
    drafts = []
    for number, row in enumerate(rows, 1):
        draft = _draft(row, table, number)
        fault = _fault(draft)
        if fault:
            wrong.append((shown(draft.id).replace("\0", "\\0"), fault))
        else:
            drafts.append(draft)
    return drafts


def _fault(draft: _Draft) -> str:
    """The part of an item that cannot be written to a file; '' if there is none."""
    if "\0" in str(draft.path):
        return "its path holds NUL"
    if not _is_name(str(draft.path)):
        return "its path holds half a surrogate pair"
    for name, text in (
        ("id", draft.id), ("caption", draft.caption), ("label", draft.label), ("group_id", draft.group_id)
    ):  # fmt: skip
        if not storable(text):
            return f"its {name} holds half a surrogate pair"
    return ""


def _draft(row: dict[str, object], table: Path, number: int) -> _Draft:
    file = _first(row, FILE_COLUMNS)
    if not file:
        found = ", ".join(str(k) for k in row)
        raise ValueError(f"{table}: row {number} has no {' | '.join(FILE_COLUMNS)}; the columns are: {found}")
    path = table.parent / file
    label = _first(row, LABEL_COLUMNS)
    identity = _first(row, ("id",)) or shown(path.stem)
    split = _first(row, ("split",))
    if split and split not in SPLITS:
        raise ValueError(f"{table}: row {number} ({identity}): unknown split {split!r}, use {', '.join(SPLITS)}")
    # A table of cells cannot distinguish an empty caption from none; JSON can, and "" there means: without words.
    wordless = table.suffix.lower() == ".jsonl" and any(isinstance(row.get(name), str) for name in CAPTION_COLUMNS)
    return _Draft(
        id=identity,
        path=path,
        caption=_first(row, CAPTION_COLUMNS) or ("" if wordless else label or _words(path)),
        label=label,
        split=split,
        events_s=_events(row.get("events_s"), table, number),
        group_id=_first(row, ("group_id",)),
    )


def _events(value: object, table: Path, number: int) -> tuple[float, ...] | None:
    if value is None or value == "":
        return None
    try:
        times = json.loads(value) if isinstance(value, str) else value
        if not isinstance(times, list):
            raise TypeError
        return tuple(float(t) for t in times)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{table}: row {number}: events_s must be a JSON list of seconds, got {value!r}") from error


def _folder_drafts(folder: Path, wrong: list[SkippedItem]) -> list[_Draft]:
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLE_SUFFIXES and not p.name.startswith("."))
    drafts: list[_Draft] = []
    for table in tables:
        rows = _rows(table, wrong)
        if rows and any(column in rows[0] for column in FILE_COLUMNS):
            drafts += _drafts(rows, table, wrong)
    if drafts:
        return drafts
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in MEDIA_SUFFIXES and not p.name.startswith("."))
    if not files:
        columns = f"; its tables have no {' | '.join(FILE_COLUMNS)} column" if tables else ""
        raise ValueError(f"{folder}: holds neither a manifest nor media files{columns}")
    for file in files:
        text, relative = file.with_suffix(".txt"), file.relative_to(folder)
        try:
            caption = " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else ""
        except UnicodeDecodeError as error:
            reason = f"its caption {shown(text.name)} is not UTF-8 text (byte {error.start})"
            wrong.append((shown(relative.with_suffix("").as_posix()), reason))
            continue
        drafts.append(
            _Draft(
                id=shown(relative.with_suffix("").as_posix()),
                path=file,
                caption=caption or _words(file),
                label=shown(file.parent.name) if len(relative.parts) > 1 else "",
                split="",
                events_s=None,
            )
        )
    return drafts


def _split(drafts: list[_Draft]) -> list[Item]:
    """Fill in open splits by hash; where train or test stays empty, the group with the extreme hash moves there."""
    groups = sorted({d.group for d in drafts if not d.split}, key=lambda g: (_hash(g), g))
    chosen = {
        g: "train" if _hash(g) < SPLIT_PERCENTS[0] else "val" if _hash(g) < SPLIT_PERCENTS[1] else "test"
        for g in groups
    }
    used = {d.split or chosen[d.group] for d in drafts}
    if groups and "test" not in used and (len(groups) > 1 or "train" in {d.split for d in drafts}):
        chosen[groups[-1]] = "test"
    used = {d.split or chosen[d.group] for d in drafts}
    if groups and "train" not in used and (len(groups) > 1 or "test" in {d.split for d in drafts}):
        chosen[groups[0]] = "train"
    return [
        Item(
            id=d.id,
            path=d.path,
            caption=d.caption,
            label=d.label,
            split=cast(Split, d.split or chosen[d.group]),
            events_s=d.events_s,
            group_id=d.group_id,
        )
        for d in drafts
    ]


def _hash(group: str) -> int:
    """0 to 99 from SHA-256, the same on every machine."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
