"""Finding files by the paths that a folder has noted, also after it was moved together with them."""

import os
from collections import Counter
from pathlib import Path

HIGHEST = 8
"""Folders in which a moved file is looked for, the noting one and those above it; and parts of its path tried there."""
MOST_MISSES = 4
"""Files of one folder that are looked for in vain before the others are taken to be gone with it."""


class Moved:
    """Where the files lie that `folder` has noted.

    A file is taken where it lay. Where it is gone, the end of its path, two parts of it at least, is tried below
    `folder` and the folders above it: /old/demo/world/clips/a.mp4, noted by a folder that is /new/demo/features now, is
    found at /new/demo/world/clips/a.mp4. A relative path counts from the working directory first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        self._found: dict[Path, Path] = {}
        self._misses: Counter[Path] = Counter()

    def __call__(self, path: Path, size: int | None = None) -> Path:
        """The path under which a file is there, else the noted one. `size`: its bytes, where they are known: another
        file of that name is not taken."""
        path = Path(path)
        beside = self._found.get(path.parent)
        if beside is not None:
            return beside / path.name
        if self._misses[path.parent] >= MOST_MISSES:
            return path
        found = next((one for one in self._candidates(path) if _is(one, size)), None)
        if found is None:
            self._misses[path.parent] += 1
            return path
        self._found[path.parent] = found.parent
        return found

    def _candidates(self, path: Path) -> "list[Path]":
        tail = [part for part in path.parts if part not in (path.anchor, "..")][-HIGHEST:]
        above = [self.folder, *self.folder.parents][:HIGHEST]
        return [path, *(one.joinpath(*tail[k:]) for k in range(max(1, len(tail) - 1)) for one in above)]


def _is(path: Path, size: int | None) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return size is None or status.st_size == size
