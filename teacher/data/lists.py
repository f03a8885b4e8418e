"""The list files of the data sets MMAudio trains and is tested on, and a folder of their media -> items."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from teacher.data.greatest_hits import with_hits
from teacher.data.list_formats import READERS, SPLIT_WORDS, SUFFIXES, Entry, ListKind
from teacher.data.manifest import SPLITS, Item, Split

__all__ = ["ListKind", "Listed", "listed_ids", "read_list"]


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


def read_list(kind: ListKind, path: Path, media: Path, split: Split | None = None) -> Listed:
    """Items of a list file whose media lie in the folder `media`, and the ids that have no file there.

    split: keep only these rows of a list that has splits; for the others, the split of all rows, by default the one
    that the file's name contains (vgg-train.tsv, clotho_captions_development.csv), else train. Media are looked for
    by name in `media` itself, then in its folders. Raises ValueError in one line for unknown kinds, wrong columns,
    repeated ids, and when no file is there at all.
    """
    path, media = Path(path), Path(media)
    _check(kind, split)
    if not media.is_dir():
        raise ValueError(f"{media}: no such folder of media files")
    entries = _entries(kind, path, split)
    files, rest = _files(media), split or _split_of(path)
    items, missing = [], []
    for entry in entries:
        file = next((files[name] for name in entry.names if name in files), None)
        if file is None:
            missing.append(entry.id)
            continue
        own = cast(Split, entry.split or rest)
        items.append(
            Item(
                id=entry.id,
                path=file,
                caption=entry.caption,
                label=entry.label,
                split=own,
                group_id=entry.group_id,
            )
        )
    if not items:
        raise ValueError(
            f"{media}: none of the {len(entries)} files listed in {path.name} is there; the first would be "
            f"{entries[0].names[0]} with one of {', '.join(SUFFIXES)}"
        )
    if kind == "greatest-hits":
        items = with_hits(items, media)
    return Listed(items=items, missing=missing)


def listed_ids(kind: ListKind, path: Path, split: Split | None = None) -> tuple[str, ...]:
    """Ids of the items `read_list` would give, in the order of the list, whether or not their files are there.

    Of a list with splits only the rows of `split`, if given. Raises ValueError as `read_list`.
    """
    _check(kind, split)
    return tuple(entry.id for entry in _entries(kind, Path(path), split))


def _check(kind: str, split: str | None) -> None:
    if kind not in READERS:
        raise ValueError(f"list kind must be one of {', '.join(READERS)}, got {kind!r}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def _entries(kind: ListKind, path: Path, split: Split | None) -> list[Entry]:
    entries = [entry for entry in READERS[kind](path) if not (split and entry.split and entry.split != split)]
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
