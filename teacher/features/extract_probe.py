"""Pass 0 of an extraction: look at every file once, note its windows, and share the work between processes."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from teacher.features import store
from teacher.features.store import FeatureError, Skipped
from teacher.features.windows import Found, Window, WindowReader
from teacher.features.workers import DIED, Processes, WorkerPool
from teacher.files import write_json
from teacher.files.tensor_file import AGAIN
from teacher.lists.manifest import Item

BLOCK = 256
"""Items whose findings share a file; what an interruption loses at most."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the pass, the jobs done and their number."""


def blocks_of(out: Path, items: Sequence[Item]) -> list[tuple[Path, Sequence[Item]]]:
    """Files of the findings, each with its items."""
    parts = [items[begin : begin + BLOCK] for begin in range(0, len(items), BLOCK)]
    return [(out / "plan" / f"{k:05d}.json", part) for k, part in enumerate(parts)]


def look(
    out: Path,
    items: Sequence[Item],
    plan: str,
    reader: WindowReader,
    pool: WorkerPool,
    processes: Processes,
    tell: Progress,
) -> tuple[list[Window], list[Skipped]]:
    """Windows of all items, in order, and the items without any. Blocks found on disk are not looked at again.

    plan: digest of what the extraction is made from, noted in each block. Raises FeatureError naming the items when
    two windows have one id.
    """
    blocks = blocks_of(out, items)
    paths = [path for path, _ in blocks]
    mine = [k for k in range(len(blocks)) if processes.mine(k)]
    jobs = {k: list(dict.fromkeys(item.path for item in blocks[k][1])) for k in mine if not paths[k].is_file()}
    results = pool.ordered(reader.look, [path for wanted in jobs.values() for path in wanted], died=lambda _: DIED)
    done, total = 0, sum(len(blocks[k][1]) for k in mine)
    for k in mine:
        block = blocks[k][1]
        if k in jobs:
            found = {}
            for wanted in jobs[k]:
                path, found[wanted] = next(results)
                if path != wanted:
                    raise RuntimeError(f"asked for the windows of {wanted}, got those of {path}")
                tell("look", done + len(found), total)
            entries = [_described(found[item.path]) for item in block]
            write_json(paths[k], {"plan": plan, "items": entries, "digest": _digest(entries)}, indent=None)
        done += len(block)
        tell("look", done, total)
    processes.wait(lambda: all(path.is_file() for path in paths), what="the look at all files", on=processes.others)
    windows: list[Window] = []
    skipped: list[Skipped] = []
    for path, block in blocks:
        for item, found_in in zip(block, read_block(path, len(block)), strict=True):
            if isinstance(found_in, Found):
                windows.extend(found_in.windows(item))
            else:
                skipped.append((item.id, found_in))
    _refuse_repeated(windows)
    return windows, skipped


def _refuse_repeated(windows: Sequence[Window]) -> None:
    """A piece of item "a" is called "a@1s"; another item may be called so too."""
    counts = Counter(window.id for window in windows)
    for name in (name for name, count in counts.items() if count > 1):
        owners = ", ".join(repr(window.item.id) for window in windows if window.id == name)
        raise FeatureError(f"items {owners} both have a piece called {name!r}; rename one of them in the manifest")


def _digest(entries: Sequence[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _described(found: Found | str) -> dict[str, Any]:
    return {"skip": found} if isinstance(found, str) else {"starts_s": found.starts_s, "video": found.has_video}


def read_block(path: Path, count: int, plan: str | None = None) -> list[Found | str]:
    """What was found of `count` items; FeatureError naming a damaged file, or one of another plan than `plan`."""
    block = store.read_json(path)
    if plan is not None and block.get("plan", plan) != plan:
        raise FeatureError(f"{path}: belongs to another extraction")
    try:
        entries = block["items"]
        if block.get("digest", _digest(entries)) != _digest(entries):
            raise ValueError("its digest is not the recorded one")
        found = [
            str(entry["skip"])
            if "skip" in entry
            else Found(starts_s=tuple(float(s) for s in entry["starts_s"]), has_video=bool(entry["video"]))
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FeatureError(f"{path}: is damaged ({error}); {AGAIN}") from error
    if len(found) != count:
        raise FeatureError(f"{path}: holds {len(found)} items instead of {count}; {AGAIN}")
    return found
