"""Names and annotations of the Greatest Hits videos (arXiv 1512.08512).

The name of a video is a time to the second, 2015-02-16-16-49-06. With a number behind it, 2015-09-29-15-44-54-838, it
is one of several videos of that second, which count as pieces of one recording. Beside <name>_denoised.mp4 (which
published comparisons use) and <name>_mic.mp4 there is <name>_times.txt with one event per line: seconds, material,
action, reaction, such as `2.677438 ceramic hit static`; an unknown word is None. train.txt and test.txt list one name
per line.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from teacher.files import split_lines
from teacher.lists.manifest import MEDIA_SUFFIXES, Item

T = TypeVar("T")
NAME = re.compile(r"(?P<name>(?P<recording>\d{4}(?:-\d\d){5})(?:-\d+)?)(?:_(?:denoised|mic|times))?")
TIMES = "_times.txt"
UNKNOWN = "none"
VERBS = {"hit": "hitting", "scratch": "scratching"}
MAX_PHRASES = 3


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One event of a video: its time in seconds, and its material and action, '' if unknown."""

    time_s: float
    material: str = ""
    action: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.time_s < math.inf:
            raise ValueError(f"time_s must be finite and not negative, got {self.time_s}")


def video_name(text: str) -> str | None:
    """The video's name without _denoised, _mic, _times and file suffix; None if the text is not such a name."""
    stem, dot, suffix = text.rpartition(".")
    bare = stem if dot and f".{suffix.lower()}" in (*MEDIA_SUFFIXES, ".txt") else text
    found = NAME.fullmatch(bare)
    return found["name"] if found else None


def recording_of(name: str) -> str:
    """The time in a video's name, which is the same for all pieces of one recording."""
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"name must be like 2015-02-16-16-49-06 or 2015-09-29-15-44-54-838, got {name!r}")
    return found["recording"]


def read_hits(path: Path) -> tuple[Hit, ...]:
    """Events of a _times.txt in order of time. Raises ValueError naming the line that does not begin with seconds."""
    hits = []
    try:
        lines = split_lines(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells:
            continue
        words = ["" if word.lower() == UNKNOWN else word for word in cells[1:3]] + ["", ""]
        try:
            hits.append(Hit(time_s=float(cells[0]), material=words[0], action=words[1]))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} must begin with seconds, got {line[:60]!r}") from error
    return tuple(sorted(hits, key=lambda hit: hit.time_s))


def describe(hits: Sequence[Hit]) -> tuple[str, str]:
    """Caption, such as "hitting ceramic, scratching wood", and label, the most frequent material.

    The caption names the three most frequent pairs of action and material; both are '' if all words are unknown.
    """
    pairs = Counter((hit.action, hit.material) for hit in hits if hit.action or hit.material)
    phrases = [" ".join(filter(None, (VERBS.get(action, action), material))) for action, material in _by_count(pairs)]
    materials = _by_count(Counter(hit.material for hit in hits if hit.material))
    return ", ".join(phrases[:MAX_PHRASES]), materials[0] if materials else ""


def with_hits(items: Iterable[Item], media: Path) -> list[Item]:
    """Items with events, caption and label from the _times.txt of their id, beside their file or else below `media`.

    An item without such a file is returned unchanged.
    """
    found = {path.name: path for path in sorted(media.rglob(f"*{TIMES}"))}
    made = []
    for item in items:
        name = item.id + TIMES
        path = item.path.with_name(name) if item.path.with_name(name).is_file() else found.get(name)
        if path is not None:
            hits = read_hits(path)
            caption, label = describe(hits)
            times = tuple(hit.time_s for hit in hits)
            item = replace(item, caption=caption or item.caption, label=label or item.label, events_s=times)
        made.append(item)
    return made


def _by_count(counts: Counter[T]) -> list[T]:
    """Most frequent first, equal ones in order of their words."""
    return sorted(counts, key=lambda key: (-counts[key], str(key)))
