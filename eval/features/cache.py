"""Features kept on disk under a digest of everything that decides them: content of the file, part of it, model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eval.compare.rows import append_lines, read_lines
from eval.features.clip_features import ClipFeatures
from teacher.files import file_sha256, json_digest
from teacher.files.processes import Processes


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Files <first two digits>/<digest>.safetensors below `folder`; what is in one never changes."""

    folder: Path

    def path(self, what: Mapping[str, object]) -> Path:
        """File of what is described; other values, other file."""
        digest = json_digest(what)
        return self.folder / digest[:2] / f"{digest[2:34]}.safetensors"

    def get(self, what: Mapping[str, object], make: Callable[[], tuple[ClipFeatures, Mapping[str, str]]]) -> None:
        """Make and write it unless it is there."""
        path = self.path(what)
        if not path.exists():
            heard, facts = make()
            heard.write(path, facts)

    def read(self, what: Mapping[str, object]) -> tuple[ClipFeatures, dict[str, str]]:
        """What was written.

        Raises:
            ValueError: the file is damaged; it is named, and nothing takes its place.
        """
        return ClipFeatures.read(self.path(what))


@dataclass(frozen=True, kw_only=True)
class FileDigests:
    """SHA-256 of media files, computed once per (path, size, time of change) and remembered in `folder`."""

    folder: Path
    process: int = 0
    """Each process writes a list of its own and reads all of them."""
    _known: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """Digest of a file; empty where there is none, which its reader will report in its own words.

        Raises:
            ValueError: a list of digests is damaged; named.
        """
        if not path.is_file():
            return ""
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if not self._known:
            self._remember()
        if key not in self._known:
            self._known[key] = file_sha256(path)
            append_lines(self.folder / f"files-{self.process}.jsonl", [json.dumps([*key, self._known[key]])])
        return self._known[key]

    def _remember(self) -> None:
        for listed in sorted(self.folder.glob("files-*.jsonl")):
            for line in read_lines(listed):
                try:
                    path, size, changed, digest = json.loads(line)
                    self._known[str(path), int(size), int(changed)] = str(digest)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{listed} cannot be read ({error!r}); delete it and run again") from error


def in_parts(
    count: int,
    size: int,
    *,
    path: Callable[[int, int], Path],
    make: Callable[[int, int], None],
    processes: Processes,
    what: str,
    wait: bool = True,
) -> list[Path]:
    """Files of all parts [first, last) of `count` clips, each made by one process unless it is there.

    Part k belongs to process k mod world; the parts, and so all results, are the same for any number of processes.
    With `wait`, returns when all are there, and fails if another process does. Without, returns when those of this
    process are: whoever does not read them must not look for them either, as who reads them may remove them.
    """
    parts = [(first, min(first + size, count)) for first in range(0, count, size)]
    for number, (first, last) in enumerate(parts):
        if processes.mine(number) and not path(first, last).exists():
            make(first, last)
    paths = [path(first, last) for first, last in parts]
    for number, file in enumerate(paths):
        if wait and not processes.mine(number):
            processes.wait(
                file.exists, what=f"{what}, part {number + 1} of {len(paths)}", on=[number % processes.world]
            )
    return paths
