"""The start of an extraction: what a rerun must match, and the folder it writes to."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teacher.data import store
from teacher.data.extract_config import SPLITS, ExtractConfig
from teacher.data.manifest import Item
from teacher.data.store import FeatureError, shard_path

BEATS = ".processes"
"""Folder in which the processes of one extraction see each other; gone when they are done."""
FILES = (
    "features.json",
    "codec.safetensors",
    "plan/*.json",
    "texts.safetensors",
    "texts/*.safetensors",
    "shards/*.jsonl",
    "shards/*.safetensors",
)
"""What an extraction of this or the previous version leaves."""


def make_plan(
    items: Sequence[Item], config: ExtractConfig, *, encoders: dict[str, str], codec: str | None, stamps: bool
) -> dict[str, Any]:
    """What a rerun must match: configuration, encoders, digest of a given codec, and digests of items and files.

    Without `stamps`, sizes and times of the files are not looked at and "files" is left out.
    """
    listing, files = hashlib.sha256(), hashlib.sha256()
    for item in items:
        row = (item.id, str(item.path), item.caption, item.label, item.split, item.events_s)
        # Items without a group have the digest they had before there were groups.
        listing.update(json.dumps((*row, item.group_id) if item.group_id else row).encode())
        if stamps:
            try:
                status = item.path.stat()
                files.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                files.update(b"missing\n")  # named as a skip later
    plan = {
        "format": store.FORMAT,
        "version": store.FORMAT_VERSION,
        "config": config.settings(),
        "encoders": encoders,
        "given_codec": codec,
        "items": listing.hexdigest(),
    }
    return plan | ({"files": files.hexdigest()} if stamps else {})


def check_folder(out: Path) -> None:
    """FeatureError when `out` is a file, or holds other files and no features."""
    if out.exists() and not out.is_dir():
        raise FeatureError(f"{out} is a file; choose another --out")
    if not out.is_dir() or (out / "plan.json").is_file():
        return
    # A run that was killed before it wrote its plan leaves no more than an empty folder or a temporary file.
    if any(path.name not in (BEATS, "shards") and not path.name.startswith(".plan.") for path in out.iterdir()):
        raise FeatureError(f"{out} holds other files and no features; choose another --out")


def prepare_folder(out: Path, plan: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder, or check that it continues `plan`; a finished one that has lost files counts as unfinished."""
    check_folder(out)
    if (out / "plan.json").is_file():
        if overwrite:
            _clear(out)
        else:
            check_plan(out, plan)
    if not (out / "plan.json").is_file():
        store.write_json(out / "plan.json", plan)
    if (out / "features.json").is_file():
        info = store.read_json(out / "features.json")
        paths = [shard_path(out, split, k) for split in SPLITS for k in range(info["shards"][split])]
        paths += [store.text_path(out, k) for k in range(-(-info["texts"]["count"] // info["texts"]["per_file"]))]
        if not all(path.is_file() for path in [*paths, out / "codec.safetensors"]):
            (out / "features.json").unlink()


def check_plan(out: Path, plan: dict[str, Any]) -> None:
    """FeatureError naming what differs between the folder's plan and this one."""
    before = store.read_json(out / "plan.json")
    if before.get("version") != plan["version"]:
        raise FeatureError(
            f"{out} holds features of version {before.get('version')!r}, {plan['version']} are made now; extract again "
            "with --overwrite"
        )
    changed = [name for name in plan if before.get(name) != plan[name]]
    if changed:
        raise FeatureError(
            f"{out} was made from a different {' and '.join(changed)}; choose another --out, or start afresh "
            "with --overwrite"
        )


def remove_leftovers(out: Path) -> None:
    """Remove temporary files of processes that were killed. Only when nobody writes any more."""
    for folder in (out, out / "plan", out / "texts", out / "shards"):
        for path in folder.glob(".*"):
            if path.is_file():
                path.unlink(missing_ok=True)


def _clear(out: Path) -> None:
    """Remove the files of a feature folder, and only those; the plan goes last, it marks the folder as ours."""
    for pattern in FILES:
        for path in out.glob(pattern):
            path.unlink()
    remove_leftovers(out)
    (out / "plan.json").unlink()
    for folder in ("plan", "texts"):
        if (out / folder).is_dir() and not any((out / folder).iterdir()):
            shutil.rmtree(out / folder)
