"""Writes the files of a run folder that other commands read: config.json, and the weights for use.

All files of a run folder are listed in `teacher.weights.run_folder`.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from distill.checkpoints.store import read_manifest, step_of
from distill.config import DistillRun, TeacherRun, with_current_names
from distill.loop_config import OPERATIONAL
from meanflow.config import from_plain, to_plain
from teacher.files import (
    Written,
    check_digests,
    flush_folder,
    link_file,
    read_digests,
    recorded_steps,
    remove_temporaries,
    write_digests,
)
from teacher.files.components import read_tensors
from teacher.files.safetensors import Tensors, read_header, write_tensors
from teacher.network.variants import MMAudioConfig
from teacher.weights.run_folder import CONSOLIDATED, SNAPSHOTS, read_run_config, run_config, write_run_config

Transform: TypeAlias = Callable[[str, Tensors], dict[str, Tensors]]
"""(name, tensors of a checkpoint) -> tensors for use by name of file, the same name among them."""


def write_config(
    run: Path,
    kind: str,
    config: TeacherRun | DistillRun,
    network: MMAudioConfig,
    digests: dict[str, str],
    licence: str | None = None,
) -> None:
    """Write config.json before step 0. Raises ValueError where the folder already holds another configuration.

    Configurations are compared as values, so that a field added later, at its default, changes nothing. Folders that
    the run reads may have been moved: what counts is their digests.
    """
    document = run_config(kind, to_plain(config), to_plain(network), digests, licence)
    if (run / "config.json").exists():
        recorded = with_current_names(read_run_config(run))
        if CONSOLIDATED in recorded:
            raise ValueError(f"{run} holds weights taken out of a run, not a run; choose another --out")
        same = {
            "kind": recorded.get("kind") == kind,
            "run": _same_run(config, recorded.get("run"), moved=recorded.get("digests") == digests),
            "network": _same(network, recorded.get("network")),
            "digests": recorded.get("digests") == digests,
        }
        if not all(same.values()):
            unequal = [name for name, equal in same.items() if not equal]
            differences = [_differences(name, recorded.get(name), document[name]) for name in unequal]
            changed = ", ".join(chain.from_iterable(differences))
            raise ValueError(f"{run} holds a run with another configuration ({changed}); choose another --out")
        return
    write_run_config(run, document)


def publish(run: Path, checkpoint: Path, names: Iterable[str], transform: Transform | None = None) -> None:
    """Make run/<name>.safetensors, the weights for use, those of a checkpoint's folder; each is replaced atomically.

    Main process only, with the run's lock held. They are hard links to the checkpoint's files, and stay when the
    checkpoint is removed; where the file system has no links, copies. With `transform` its results are written. Their
    lengths and digests, which are known, are recorded in run/digests.json with the step. The averages come first:
    whenever the process stops, none of them is older than model.safetensors. A second call for the same checkpoint
    writes nothing. Raises OSError, in one line, where a file cannot be written.
    """
    try:
        # What a killed process left may be a link to the file of another checkpoint, never to be written into.
        remove_temporaries(run)
        remove_temporaries(run / SNAPSHOTS)
        known, step = read_manifest(checkpoint), step_of(checkpoint)
        ordered = sorted(names, key=lambda name: name == "model")
        todo = [n for n in ordered if not _published(run, checkpoint, n, known, step, made=transform is not None)]
        if not todo:
            return
        write_digests(run, (), forget=[f"{name}.safetensors" for name in todo])
        written: dict[str, Written] = {}
        for name in todo:
            source = checkpoint / f"{name}.safetensors"
            if transform is None:
                link_file(source, run / source.name)
                written[source.name] = known[source.name]
            else:
                written |= _make(run, name, source, transform)
        flush_folder(run)
        write_digests(run, written, known=written, step=step)
    except OSError as error:
        raise OSError(
            f"the weights for use in {run} could not be brought to {checkpoint.name}: {error}; that checkpoint is "
            "complete, and the same command goes on from there"
        ) from error


def _published(run: Path, checkpoint: Path, name: str, known: Mapping[str, Written], step: int, *, made: bool) -> bool:
    """Whether the weights for use are those of the checkpoint already, undamaged and recorded."""
    file = f"{name}.safetensors"
    recorded, target = read_digests(run).get(file), run / file
    if recorded is None or recorded_steps(run).get(file) != step or not target.is_file():
        return False
    if made:
        return _metadata(target) == {"made_from": known[file].sha256} and not check_digests(run, [file])
    if recorded != known[file]:
        return False
    return target.samefile(checkpoint / file) or not check_digests(run, [file])


def _make(run: Path, name: str, source: Path, transform: Transform) -> dict[str, Written]:
    """Written files carry the digest of what they were made from; the one called `name` comes last."""
    origin = {"made_from": read_manifest(source.parent)[source.name].sha256}
    made = sorted(transform(name, read_tensors(source)).items(), key=lambda item: item[0] == name)
    write_digests(run, (), forget=[f"{file}.safetensors" for file, _ in made])
    return {
        f"{file}.safetensors": write_tensors(run / f"{file}.safetensors", tensors, origin) for file, tensors in made
    }


def _metadata(path: Path) -> dict[str, str] | None:
    try:
        return read_header(path).metadata
    except (OSError, ValueError):
        return None


def _differences(name: str, recorded: object, wanted: object) -> list[str]:
    """Where two configurations differ, of what decides: loop.optim.lr 0.001 instead of 0.002."""
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        neutral = OPERATIONAL if name == "run.loop" else ()
        keys = [key for key in wanted if key in recorded and key not in neutral and recorded[key] != wanted[key]]
        differences = [line for key in keys for line in _differences(f"{name}.{key}", recorded[key], wanted[key])]
        return differences if differences or neutral else [name]
    return [f"{name} {wanted} instead of {recorded}"]


def _same_run(config: TeacherRun | DistillRun, plain: object, *, moved: bool) -> bool:
    """Whether a recorded run is this one, but for what changes no number; `moved`: wherever its folders lie."""
    try:
        found: TeacherRun | DistillRun = from_plain(type(config), plain)
    except (ValueError, TypeError):
        return False
    found, wanted = found.without_operational_fields(), config.without_operational_fields()
    return found.without_places() == wanted.without_places() if moved else found == wanted


def _same(config: MMAudioConfig, plain: object) -> bool:
    try:
        return bool(from_plain(MMAudioConfig, plain) == config)
    except (ValueError, TypeError):
        return False
