"""What the command line asks to be sampled: files, folders, globs and manifests, and words, as one list of jobs."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacher.lists.manifest import read_manifest

TABLES = (".jsonl", ".csv", ".tsv")
FILMS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")
GLOB = "*?["
LONGEST = 250
"""Bytes of a result's name without its suffix; file systems take 255."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sound: `name` is that of its files."""

    name: str
    video: Path | None
    prompt: str | None


def jobs(inputs: Iterable[str], prompt: str | None) -> tuple[Job, ...]:
    """One job per video, or one for words alone.

    An input is a video, a folder (its videos, not those of folders in it), a pattern with * ? [ ] (** goes into
    folders), or a manifest, whose captions are the words of its videos unless `prompt` is given. Results are called
    like their videos; those of rows of a manifest whose videos share a name (several captions of one), like the rows'
    ids.

    Raises:
        ValueError: nothing to do, an input that matches nothing, or two videos whose results would have one name.
    """
    found = [job for text in inputs for job in _of(text, prompt)]
    if not found:
        if prompt is None:
            raise ValueError("give --video, --prompt or both")
        return (Job(name=name_of(prompt), video=None, prompt=prompt),)
    seen: dict[str, Job] = {}
    for job in found:
        other = seen.setdefault(job.name, job)
        if other is not job:
            raise ValueError(
                f"{other.video} and {job.video} share a file name, and so would their results; sample them into "
                "separate --out folders"
            )
    return tuple(found)


def check_stems(found: Iterable[Job], stems: Sequence[str]) -> None:
    """ValueError where a stem of one video would have the name of another video's results."""
    names = {job.name: job for job in found if job.video is not None}
    for job in names.values():
        for text in stems:
            if other := names.get(fitting(f"{job.name}.{name_of(text)}")):
                raise ValueError(f"the stem {text!r} of {job.video} would have the name of {other.video}'s results")


def name_of(words: str) -> str:
    """A file name from words, of 80 bytes at most."""
    name = "_".join("".join(c if c.isalnum() else " " for c in words).split())
    return name.encode()[:80].decode(errors="ignore") or "sound"  # file systems count bytes


def fitting(name: str) -> str:
    """The name, or its beginning and eight digits of its digest where a file system would not take it."""
    raw = os.fsencode(name)
    if len(raw) <= LONGEST:
        return name
    end = f"~{hashlib.sha256(raw).hexdigest()[:8]}"
    return raw[: LONGEST - len(end)].decode("utf-8", "ignore") + end


def _of(text: str, prompt: str | None) -> list[Job]:
    path = Path(text)
    if path.is_file() and path.suffix.lower() in TABLES:
        items = read_manifest(path)
        shared = Counter(item.path.stem for item in items)
        return [
            Job(
                name=fitting(item.path.stem if shared[item.path.stem] == 1 else _as_file_name(item.id)),
                video=item.path,
                prompt=item.caption if prompt is None else prompt,
            )
            for item in items
        ]
    if path.is_dir():
        films = _films(path.iterdir())
        if not films:
            raise ValueError(f"{path}: holds no video ({', '.join(FILMS)})")
    elif not path.exists() and any(letter in text for letter in GLOB):
        films = _films(map(Path, glob.glob(text, recursive=True)))
        if not films:
            raise ValueError(f"{text}: matches no video ({', '.join(FILMS)})")
    else:
        films = [path]
    return [Job(name=fitting(film.stem), video=film, prompt=prompt) for film in films]


def _as_file_name(identity: str) -> str:
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in identity)
    return f"_{name[1:]}" if name.startswith(".") else name


def _films(paths: Iterable[Path]) -> Sequence[Path]:
    return sorted(p for p in paths if p.suffix.lower() in FILMS and p.is_file() and not p.name.startswith("."))
