"""examples.json: the clips whose players a page shows, read and checked."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from eval.compare.rows import Task

VIDEO_SUFFIXES = (".mp4", ".webm")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of an example: real, or made by some model."""

    name: str
    media: str
    """Video or sound file, relative to the folder of examples.json."""
    spectrogram: str = ""
    """PNG relative to the same folder; empty for none."""

    @property
    def kind(self) -> Literal["video", "audio"]:
        return "video" if Path(self.media).suffix.lower() in VIDEO_SUFFIXES else "audio"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One clip, or one caption, and its versions side by side."""

    task: Task
    id: str
    caption: str
    entries: tuple[Version, ...]


def read_examples(path: Path) -> list[Example]:
    """The examples of a file; none if it does not exist, since a report may have tables only.

    Raises:
        ValueError: not a list of examples, an unknown field or task, or a media file that is missing, outside the
            folder or of a kind browsers do not play.
    """
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, list):
        raise ValueError(f"{path} must hold a list of examples, got {type(data).__name__}")
    return [_example(item, f"{path}, example {number}", path.parent) for number, item in enumerate(data, start=1)]


def _example(item: object, where: str, folder: Path) -> Example:
    names = {f.name for f in fields(Example)}
    if not isinstance(item, dict) or set(item) != names:
        raise ValueError(f"{where} must have exactly the fields {', '.join(sorted(names))}")
    if item["task"] not in get_args(Task):
        raise ValueError(f"{where}: task must be one of {get_args(Task)}, got {item['task']!r}")
    try:
        entries = tuple(Version(**entry) for entry in item["entries"])
    except TypeError as error:
        raise ValueError(f"{where}: an entry has the fields name, media and spectrogram ({error})") from error
    for entry in entries:
        _check_file(entry.media, VIDEO_SUFFIXES + SOUND_SUFFIXES, where, folder)
        if entry.spectrogram:
            _check_file(entry.spectrogram, (".png",), where, folder)
    return Example(task=item["task"], id=item["id"], caption=item["caption"], entries=entries)


def _check_file(name: str, suffixes: tuple[str, ...], where: str, folder: Path) -> None:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: {name} must be a path inside {folder}")
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{where}: {name} must end in one of {', '.join(suffixes)}")
    if not (folder / path).is_file():
        raise ValueError(f"{where}: {folder / path} does not exist")
