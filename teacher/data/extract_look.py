"""Pass 0 of an extraction: look at every file once, note its windows, and share the work between processes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from teacher.data import store
from teacher.data.manifest import Item
from teacher.data.pool import WorkerPool
from teacher.data.processes import Processes
from teacher.data.store import FeatureError, Skipped
from teacher.data.windows import Found, Window, WindowReader

BLOCK = 256
"""Items whose findings share a file; what an interruption loses at most."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the pass, the jobs done and their number."""


def look(
    out: Path, items: Sequence[Item], reader: WindowReader, pool: WorkerPool, processes: Processes, tell: Progress
) -> tuple[list[Window], list[Skipped]]:
    """Windows of all items, in order, and the items without any. Blocks found on disk are not looked at again."""
    blocks = [items[begin : begin + BLOCK] for begin in range(0, len(items), BLOCK)]
    paths = [out / "plan" / f"{k:05d}.json" for k in range(len(blocks))]
    mine = [k for k in range(len(blocks)) if processes.mine(k)]
    missing = [k for k in mine if not paths[k].is_file()]
    jobs = {k: list(dict.fromkeys(item.path for item in blocks[k])) for k in missing}
    results = pool.ordered(reader.look, [path for k in missing for path in jobs[k]])
    done, total = 0, sum(len(blocks[k]) for k in mine)
    for k in mine:
        if k in jobs:
            found = {}
            for path in jobs[k]:
                found[path] = next(results)
                tell("look", done + len(found), total)
            store.write_json(paths[k], {"items": [_described(found[item.path]) for item in blocks[k]]}, indent=None)
        done += len(blocks[k])
        tell("look", done, total)
    processes.wait(lambda: all(path.is_file() for path in paths), what="the look at all files", on=processes.others)
    windows: list[Window] = []
    skipped: list[Skipped] = []
    for path, block in zip(paths, blocks, strict=True):
        for item, found_in in zip(block, _read_block(path, len(block)), strict=True):
            if isinstance(found_in, Found):
                windows.extend(found_in.windows(item))
            else:
                skipped.append((item.id, found_in))
    return windows, skipped


def _described(found: Found | str) -> dict[str, Any]:
    return {"skip": found} if isinstance(found, str) else {"starts_s": found.starts_s, "video": found.has_video}


def _read_block(path: Path, count: int) -> list[Found | str]:
    try:
        entries = store.read_json(path)["items"]
        found = [
            str(entry["skip"])
            if "skip" in entry
            else Found(starts_s=tuple(float(s) for s in entry["starts_s"]), has_video=bool(entry["video"]))
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FeatureError(f"{path}: is damaged ({error}); delete it and run again") from error
    if len(found) != count:
        raise FeatureError(f"{path}: holds {len(found)} items instead of {count}; delete it and run again")
    return found
