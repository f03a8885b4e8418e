"""The start of an extraction: what a rerun must match, and the folder it writes to."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teacher.data import store
from teacher.data.extract_config import SPLITS, ExtractConfig, ExtractReport
from teacher.data.manifest import Item
from teacher.data.store import FeatureError, shard_path
from teacher.encoders.registry import load_encoders


def make_plan(items: Sequence[Item], config: ExtractConfig) -> dict[str, Any]:
    """What a rerun must match: the configuration (but for the number of workers) and a digest of items and files."""
    settings = {name: value for name, value in asdict(config).items() if name != "workers"}
    sha = hashlib.sha256()
    for item in items:
        try:
            status = item.path.stat()
            stamp: tuple[int, ...] = (status.st_size, status.st_mtime_ns)
        except OSError:
            stamp = ()  # named as a skip later
        row = (item.id, str(item.path), item.caption, item.label, item.split, item.events_s, stamp)
        sha.update(json.dumps(row).encode())
    return {
        "format": store.FORMAT,
        "version": store.FORMAT_VERSION,
        "config": settings,
        "encoders": load_encoders(config.encoders).names,
        "items": sha.hexdigest(),
    }


def prepare_folder(out: Path, plan: dict[str, Any], *, overwrite: bool) -> ExtractReport | None:
    """Make or check the folder; the report when everything in it is already finished."""
    if out.exists() and not out.is_dir():
        raise FeatureError(f"{out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / "plan.json").is_file():
            raise FeatureError(f"{out} holds other files and no features; choose another --out")
        if overwrite:
            _clear(out)
        else:
            before = store.read_json(out / "plan.json")
            changed = [name for name in plan if before.get(name) != plan[name]]
            if changed:
                raise FeatureError(
                    f"{out} was made from a different {' and '.join(changed)}; choose another --out, or start afresh "
                    "with --overwrite"
                )
    (out / "shards").mkdir(parents=True, exist_ok=True)
    store.write_json(out / "plan.json", plan)
    if not (out / "features.json").is_file():
        return None
    info = store.read_json(out / "features.json")
    paths = [shard_path(out, split, k) for split in SPLITS for k in range(info["shards"][split])]
    if not all(path.is_file() for path in paths):
        (out / "features.json").unlink()
        return None
    skipped = [(entry["id"], entry["reason"]) for entry in info["skipped"]]
    return ExtractReport(counts=info["counts"], skipped=skipped, padded=info["padded"])


def _clear(out: Path) -> None:
    """Remove the files of a feature folder, and only those."""
    for pattern in (
        "features.json",
        "codec.safetensors",
        "texts.safetensors",
        "shards/*.jsonl",
        "shards/*.safetensors",
    ):
        for path in out.glob(pattern):
            path.unlink()
