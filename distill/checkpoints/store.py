"""Checkpoints: run/trainer/step-NNNNNNN holds all that resuming needs; one that is incomplete or damaged is skipped.

A checkpoint is a folder of safetensors files, state.json and manifest.json, which lists the length and SHA-256 of every
other file in the folder, the step, the version of the layout and a digest of itself. A checkpoint verifies if the
folder holds exactly these files with these lengths and digests.

It is written under a temporary name, flushed file by file, then renamed; a folder is flushed after its files.
Whenever the process or the machine stops, each folder step-NNNNNNN is complete. One that is damaged later no longer
verifies, and a run resumes from the newest one that does.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher.files import (
    Written,
    check_regular,
    flush_folder,
    read_bytes,
    read_digests,
    read_json,
    recorded_steps,
    write_new,
)
from teacher.files.components import read_tensors
from teacher.files.digests import reread_sha256
from teacher.files.lines import last_line
from teacher.files.safetensors import Tensors, stream_tensors, total_bytes
from teacher.weights.loading import published
from teacher.weights.run_folder import HISTORY, METRICS

FORMAT = 1
"""Version of the layout of a checkpoint."""
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 24
"""Longest manifest that is read, in bytes; one of ours names a few files."""
STATE = "state.json"
HASHERS = 4
"""Files hashed at the same time."""


class DamagedError(ValueError):
    """A checkpoint is damaged or incomplete; the message names what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    """Steps done."""
    state: dict[str, Any]
    """state.json: the step and whatever else the loop stores."""

    def tensors(self, name: str) -> Tensors:
        """One of its sets of tensors: model, optimizer, ema-0.05; WeightsError if it has none of that name."""
        return read_tensors(self.folder / f"{name}.safetensors")


def read_manifest(folder: Path) -> dict[str, Written]:
    """Length and digest of every file of a checkpoint; DamagedError where its manifest is absent or not intact."""
    path = folder / MANIFEST
    try:
        content = read_bytes(path, MANIFEST_LIMIT)
    except FileNotFoundError as error:
        raise DamagedError(
            f"it has no {MANIFEST}, so it is incomplete or from a version that wrote none and cannot be resumed from"
        ) from error
    except OSError as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error}") from error
    try:
        plain = json.loads(content)
        version = plain["format"]
        if not isinstance(version, int | str):
            raise ValueError("a version is a number")
        files = {name: Written(int(f["bytes"]), str(f["sha256"])) for name, f in plain["files"].items()}
        intact = version != FORMAT or content == manifest(plain["step"], files)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is damaged") from error
    if not intact:
        raise DamagedError(f"{MANIFEST} is damaged")
    if version != FORMAT:
        raise DamagedError(f"its format is {version!r}, this version reads {FORMAT}")
    if plain["step"] != step_of(folder):
        raise DamagedError(f"{MANIFEST} is of step {plain['step']}")
    return files


def manifest(step: int, files: Mapping[str, Written]) -> bytes:
    """The bytes of a manifest, always in the same form, with a digest of itself: no byte can change unnoticed."""
    plain: dict[str, object] = {"format": FORMAT, "step": step, "files": {n: w._asdict() for n, w in files.items()}}
    plain["sha256"] = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
    return json.dumps(plain, indent=2).encode()


def verified(folder: Path, *, digests: bool = True) -> Checkpoint:
    """The checkpoint in a folder; DamagedError, saying what is wrong, unless it is exactly what was written."""
    files = read_manifest(folder)
    try:
        found = {path.name for path in folder.iterdir()} - {MANIFEST}
        if missing := sorted(set(files) - found):
            raise DamagedError(f"{missing[0]} is missing")
        if extra := sorted(found - set(files)):
            raise DamagedError(f"{extra[0]} is not in {MANIFEST}")
        for name, written in files.items():
            size = check_regular(folder / name).st_size
            if size != written.bytes:
                raise DamagedError(f"{name} has {size} bytes instead of {written.bytes}")
        if digests:
            _check_digests(folder, files)
        state = read_json(folder / STATE)
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"a file cannot be read: {error}") from error
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if state.get("step") != step_of(folder):
        raise DamagedError(f"{STATE} is not of step {step_of(folder)}")
    return Checkpoint(folder=folder, step=step_of(folder), state=state)


def verifies(folder: Path, *, digests: bool = True) -> bool:
    """Whether `verified` finds nothing wrong."""
    try:
        verified(folder, digests=digests)
    except DamagedError:
        return False
    return True


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def _check_digests(folder: Path, files: Mapping[str, Written]) -> None:
    with ThreadPoolExecutor(max_workers=HASHERS) as pool:
        for name, digest in zip(files, pool.map(reread_sha256, [folder / name for name in files]), strict=True):
            if digest != files[name].sha256:
                raise DamagedError(f"{name} is damaged: its digest is not the recorded one")


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensors],
    state: Mapping[str, Any],
    *,
    keep_last: int,
    best: int | None = None,
) -> Path:
    """Write the checkpoint of `step`, remove all but the newest `keep_last` and that of step `best`, return its folder.

    Main process only, with the run's lock held: unfinished folders in trainer/ are a killed process's and are removed.
    A checkpoint of this step that verifies stays as it is. Raises OSError, in one line, where it cannot be written:
    earlier checkpoints are as they were, and nothing of this one is left.
    """
    folder = _folder(run, step)
    if verifies(folder):
        return folder
    staging = folder.with_name(folder.name + ".tmp")
    document = json.dumps({**state, "step": step}, indent=2, allow_nan=False).encode()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob("*.tmp"):  # of saves and removals that were killed
            shutil.rmtree(leftover)
        staging.mkdir()
        files = {}
        for name, content in tensors.items():
            file = f"{name}.safetensors"
            files[file] = stream_tensors(staging / file, content)
        files[STATE] = write_new(staging / STATE, document)
        write_new(staging / MANIFEST, manifest(step, files))
        flush_folder(staging)
        if folder.exists():  # damaged, or it would have been returned above
            _remove(folder)
        os.replace(staging, folder)
        flush_folder(folder.parent)
        flush_folder(run)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        needed = len(document) + sum(total_bytes(t) for t in tensors.values())
        raise OSError(_failure(run, step, error, needed)) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _prune(run, step, keep_last=keep_last, best=best)
    return folder


def newest(run: Path, *, report: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies; None where none was ever completed.

    `report` receives one line for each newer one that is skipped. Reads every byte of the files. Raises ValueError,
    in one line, where there are checkpoints but none verifies: a run never starts again by itself.
    """
    faults: list[tuple[Path, str]] = []
    for folder in reversed(_folders(run)):
        try:
            found = verified(folder)
        except DamagedError as error:
            faults.append((folder, str(error)))
            continue
        for damaged, fault in faults:
            report(f"checkpoint {damaged} is passed over: {fault}; going on from {folder.name} instead")
        return found
    if faults:
        listed = "; ".join(f"{folder.name}: {fault}" for folder, fault in faults)
        raise ValueError(
            f"no checkpoint in {run / 'trainer'} can be resumed from ({listed}); restore one of them, or start again "
            "with another --out"
        )
    return None


def finished_without_checkpoints(run: Path, steps: int) -> bool:
    """Whether a run of `steps` steps has come to its end and has its weights, but no checkpoint in trainer/ any more.

    False for a run with checkpoints, and for one that was stopped before its first: it has a configuration and perhaps
    a log of steps that are made again, but no weights. Raises ValueError, in one line, where the remaining files show
    that checkpoints were saved and are gone: such a run is never started anew over its weights and its log.
    """
    if _folders(run):
        return False
    weights = published(path.name for path in run.glob("*.safetensors"))
    saved = weights or published(read_digests(run))
    logged, began = last_line(run / METRICS), last_line(run / HISTORY)
    done = 0 if logged is None else int(logged["step"])
    if "model.safetensors" in weights and done >= steps <= recorded_steps(run).get("model.safetensors", steps):
        return True
    if began is None:
        has_saved = done > _recorded_save_every(run)
    else:
        has_saved = began["step"] > 0 or done > began.get("save_every", math.inf)
    if saved:
        found = f"trained weights ({saved[0]}{', ...' if len(saved) > 1 else ''}) and a log up to step {done}"
    elif has_saved:
        found = f"the log of a run that has saved, up to step {done}"
    else:
        return False
    raise ValueError(
        f"{run} holds {found}, but no checkpoint in trainer/ to go on from; restore {run / 'trainer'}, or choose "
        "another --out"
    )


def _recorded_save_every(run: Path) -> float:
    """save_every of a run of an earlier version, which has no history."""
    try:
        return int(json.loads((run / "config.json").read_bytes())["run"]["loop"]["save_every"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf


def at(run: Path, step: int, *, digests: bool = True) -> Checkpoint:
    """The checkpoint of a step; ValueError, in one line, where there is none or it does not verify.

    Without `digests` only lengths are compared, for a checkpoint that another process has verified.
    """
    folder = _folder(run, step)
    if not folder.exists():
        there = ", ".join(str(step_of(f)) for f in _folders(run)) or "none"
        raise ValueError(f"{run} has no checkpoint of step {step}; there are: {there}")
    try:
        return verified(folder, digests=digests)
    except DamagedError as error:
        raise ValueError(f"checkpoint {folder} cannot be used: {error}") from error


def drop_later(run: Path, step: int) -> None:
    """Remove checkpoints after `step`, from which the run resumes: they did not verify.

    Main process only, once every process has read its checkpoint.
    """
    for folder in _folders(run):
        if step_of(folder) > step:
            _remove(folder)


def _prune(run: Path, step: int, *, keep_last: int, best: int | None) -> None:
    """Keep the newest up to `step`, counting only those of which no part is lost, and that of step `best`."""
    complete = [f for f in _folders(run) if step_of(f) <= step and verifies(f, digests=False)]
    stay = set(complete[-keep_last:])
    for folder in _folders(run):
        if folder not in stay and step_of(folder) != best:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Rename, then remove, so that a removal cut short leaves no damaged checkpoint. A folder that cannot be
    removed is reported; training goes on."""
    doomed = folder.with_name(folder.name + ".old.tmp")
    try:
        os.replace(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        print(f"{folder} could not be removed: {error}", flush=True)


def _folder(run: Path, step: int) -> Path:
    return run / "trainer" / f"step-{step:07d}"


def _folders(run: Path) -> list[Path]:
    """Folders of checkpoints, whatever their state, by step."""
    return sorted((p for p in run.glob("trainer/step-*") if re.fullmatch(r"step-\d{7,}", p.name)), key=step_of)


def _failure(run: Path, step: int, error: OSError, needed: int) -> str:
    """One line on a checkpoint that could not be written."""
    where = next(p for p in (run, *run.absolute().parents) if p.exists())
    reason = " ".join(f"{error.strerror or error} {error.filename or ''}".split())
    complete = [f for f in _folders(run) if verifies(f, digests=False)]
    last = f"{complete[-1]} is the last complete one" if complete else "there is none before it"
    return (
        f"the checkpoint of step {step} could not be written: {reason}; it needs {needed:,} bytes, "
        f"{shutil.disk_usage(where).free:,} are free in {where}; {last}, and the same command goes on from there"
    )
