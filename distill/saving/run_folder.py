"""The run folder around its checkpoints: config.json and the weights for use."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

from distill.config import NEUTRAL, decisive
from distill.saving.manifest import read_manifest
from distill.saving.writing import Tensors, write_tensors
from meanflow.config import from_plain, to_plain
from teacher.files import flush_folder, remove_temporaries, replacing
from teacher.variants import MMAudioConfig
from teacher.weights import read_run_config, read_tensors

CONSOLIDATED = "consolidated"
"""Entry of config.json in a folder of weights taken out of a run."""

Transform: TypeAlias = Callable[[str, Tensors], dict[str, Tensors]]
"""(name, tensors of a checkpoint) -> tensors for use by name of file, the same name among them."""


def write_config(
    run: Path, kind: str, config: Any, network: MMAudioConfig, digests: dict[str, str], licence: str | None = None
) -> None:
    """config.json before step 0; a folder that already holds another configuration is refused.

    Configurations are compared as values, so that a field added later, at its default, changes nothing.
    """
    document = {
        "kind": kind,
        "run": to_plain(config),
        "network": to_plain(network),
        "digests": digests,
        "package_version": _package_version(),
    } | ({} if licence is None else {"licence": licence})
    path = run / "config.json"
    if path.exists():
        kept = read_run_config(run)
        if CONSOLIDATED in kept:
            raise ValueError(f"{run} holds weights taken out of a run, not a run; choose another --out")
        same = {
            "kind": kept.get("kind") == kind,
            "run": _same(config, kept.get("run")),
            "network": _same(network, kept.get("network")),
            "digests": kept.get("digests") == digests,
        }
        if not all(same.values()):
            told = [_told(name, kept.get(name), document[name]) for name, equal in same.items() if not equal]
            changed = ", ".join(chain.from_iterable(told))
            raise ValueError(f"{run} holds a run with another configuration ({changed}); choose another --out")
        return
    write_json(path, document)


def write_json(path: Path, plain: object) -> None:
    """Replace a JSON file, atomically and for good."""
    with replacing(path) as staging:
        staging.write_text(json.dumps(plain, indent=2, allow_nan=False), encoding="utf-8")
    flush_folder(path.parent)


def publish(run: Path, checkpoint: Path, names: Iterable[str], transform: Transform | None = None) -> None:
    """Make the weights for use, run/<name>.safetensors, those of a checkpoint's folder; each is replaced atomically.

    Main process only. They are hard links to the checkpoint's files, and stay when the checkpoint is removed; where
    the file system has no links, copies. With `transform` its results are written. To repeat it costs nothing unless
    they are copies. Raises OSError, in one line, where a file cannot be written.
    """
    try:
        # What a killed process left may be a link to the file of another checkpoint, never to be written into.
        remove_temporaries(run)
        remove_temporaries(run / "ema_ckpts")
        for name in names:
            source = checkpoint / f"{name}.safetensors"
            if transform is None:
                _link(source, run / source.name)
            else:
                _make(run, name, source, transform)
        flush_folder(run)
    except OSError as error:
        raise OSError(
            f"the weights for use in {run} could not be brought to {checkpoint.name}: {error}; that checkpoint is "
            "complete, and the same command goes on from there"
        ) from error


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as staging:
        try:
            os.link(source, staging)
        except OSError:
            shutil.copyfile(source, staging)


def _make(run: Path, name: str, source: Path, transform: Transform) -> None:
    """Written files carry the digest of what they were made from; the one called `name` comes last."""
    origin = {"made_from": read_manifest(source.parent)[source.name].sha256}
    if _metadata(run / source.name) == origin:
        return
    made = transform(name, read_tensors(source))
    for file, tensors in sorted(made.items(), key=lambda item: item[0] == name):
        write_tensors(run / f"{file}.safetensors", tensors, origin)


def _metadata(path: Path) -> dict[str, str] | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] | None = file.metadata()
            return metadata
    except (OSError, SafetensorError):
        return None


def _told(name: str, kept: object, wanted: object) -> list[str]:
    """Where two configurations differ, of what decides: loop.optim.lr 0.001 instead of 0.002."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        neutral = NEUTRAL if name == "run.loop" else ()
        keys = [key for key in wanted if key in kept and key not in neutral and kept[key] != wanted[key]]
        return [told for key in keys for told in _told(f"{name}.{key}", kept[key], wanted[key])] or [name]
    return [f"{name} {wanted} instead of {kept}"]


def _same(config: Any, plain: object) -> bool:
    try:
        return bool(decisive(from_plain(type(config), plain)) == decisive(config))
    except (ValueError, TypeError):
        return False


def _package_version() -> str:
    try:
        return version("mf-mjt")
    except PackageNotFoundError:
        return "source tree"
