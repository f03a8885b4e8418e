"""Which weights of a run folder are meant, and loading them: the choice of a file, its identity, the network.

The files of a run folder are listed in `teacher.weights.run_folder`.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from meanflow.config import from_plain
from teacher.files import DIGEST, check_digests, file_sha256, recorded_steps, same_digest
from teacher.files.components import load_strictly, read_shapes
from teacher.files.errors import WeightsError
from teacher.files.safetensors import read_header
from teacher.weights.run_folder import CONSOLIDATED, read_licence, read_run_config

if TYPE_CHECKING:
    from teacher.network.mmaudio import MMAudio
    from teacher.network.variants import MMAudioConfig

BLOCK = re.compile(r"(joint|fused|velocity)_blocks\.(\d+)\.")


def load_network(run: Path, *, weights: str = "auto") -> "MMAudio":
    """The network of a run folder, rebuilt from its config.json and loaded strictly, in evaluation mode.

    weights: "model" (last step), "ema-0.05" and so on, or "auto": the narrowest average that the training keeps, else
    the last step (`automatic_weights`). What the folder records of its weights is compared. A line on standard error
    says where "auto" is not what it should be, and where config.json or features.json, which people edit, were changed.

    Raises WeightsError naming what is missing or damaged, and the names that do not match.
    """
    from teacher.network.mmaudio import MMAudio
    from teacher.network.variants import MMAudioConfig

    config = read_run_config(run)
    if "network" not in config:
        raise WeightsError(f"{run / 'config.json'} describes no network; is {run} the run folder of a training?")
    try:
        network = from_plain(MMAudioConfig, config["network"], "network")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{run / 'config.json'}: {error}") from error
    path = weight_file(run, weights)
    _check_size(path, network, run)
    _compare_stated(run, path, config)
    for line in _notes(run, weights):
        print(line, file=sys.stderr, flush=True)
    with torch.device("meta"):  # initial values would be thrown away
        net = MMAudio(network)
    load_strictly(net, path)
    return net.eval().requires_grad_(False)


def _check_size(path: Path, network: "MMAudioConfig", run: Path) -> None:
    """Whether the file can hold the weights of such a network: as many blocks of each kind, and as wide. Told from the
    header alone, before anything is built, however large the configuration says the network is."""
    shapes = read_shapes(path)
    found = Counter({kind: 1 + max(numbers) for kind, numbers in _block_numbers(shapes).items()})
    wanted = {"joint": network.joint_depth, "fused": network.fused_depth, "velocity": network.velocity_head}
    for kind, depth in wanted.items():
        if found[kind] != depth:
            raise WeightsError(
                f"{path} holds {found[kind]} {kind} blocks, {run / 'config.json'} describes {depth}: they do not "
                "belong together"
            )
    held, least = sum(math.prod(shape) for shape in shapes.values()), network.hidden_dim * network.mlp_dim
    if held < least:
        raise WeightsError(
            f"{path} holds {held:,} numbers, the network that {run / 'config.json'} describes needs more than {least:,}"
        )


def _block_numbers(shapes: dict[str, tuple[int, ...]]) -> dict[str, set[int]]:
    numbers: dict[str, set[int]] = {}
    for name in shapes:
        if (block := BLOCK.match(name)) and len(block[2]) < 6:
            numbers.setdefault(block[1], set()).add(int(block[2]))
    return numbers


def _compare_stated(run: Path, path: Path, config: dict[str, object]) -> None:
    """Saved folders of earlier versions have no digests.json; their config.json states the digest of the weights."""
    stated = config.get("digest")
    if path.stem != "model" or not isinstance(stated, str) or not DIGEST.fullmatch(stated):
        return
    if not same_digest(file_sha256(path), stated):
        raise WeightsError(
            f"cannot read weights: {path} is damaged: its SHA-256 is not the one in config.json ({stated[:12]}): "
            'restore the file, or, if you replaced it on purpose, remove "digest" from config.json'
        )


def _notes(run: Path, weights: str) -> list[str]:
    notes = []
    if weights == "auto" and (note := automatic_weights(run)[1]) is not None:
        notes.append(note)
    try:
        faults = check_digests(run, ("config.json", "features.json"))
    except ValueError as error:
        raise WeightsError(str(error)) from error
    advice = "if you did not edit it, restore it; if you did, remove its entry from digests.json"
    return notes + [f"{fault}; {advice}" for fault in faults]


def weight_file(run: Path, weights: str) -> Path:
    """The safetensors file that `weights` names in a run folder; WeightsError lists what is there."""
    path = automatic_weights(run)[0] if weights == "auto" else run / f"{weights}.safetensors"
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in run.glob("*.safetensors"))) or "none; has training saved yet?"
        raise WeightsError(f"no weights {path.stem!r} in {run}; found: {found}")
    return path


def automatic_weights(run: Path) -> tuple[Path, str | None]:
    """What "auto" means in a run folder, and a line where that is not the average it should be.

    It is the narrowest average that the run's own configuration keeps (loop.ema_std), as the last save left it. Never
    one that mf-ema made, and never one of an earlier save than model.safetensors: then it is model.safetensors. Where
    config.json says nothing of averages, it is the narrowest one there. The file need not exist.
    """
    model = run / "model.safetensors"
    config = read_run_config(run) if (run / "config.json").exists() else {}
    if model.is_file() and WHOLE & set(config):
        return model, None
    widths = _configured_averages(config)
    if widths is None:
        there = [path for path in run.glob("ema-*.safetensors") if made_afterwards(path) is None]
        return min(there, key=width, default=model), None
    if not widths:
        return model, None
    path = run / f"{average_name(min(widths))}.safetensors"
    fault = _fault(path, model)
    if fault is None or not model.is_file():
        return path, None
    return model, f"{run}: {path.name} {fault}, so the weights are those of {model.name}; name others if you want them"


WHOLE = frozenset({CONSOLIDATED, "digest"})
"""Entries of config.json in folders that hold one file of weights, taken out of a run or saved to be given away."""


def average_name(std: float) -> str:
    """Name of the weights averaged with relative width `std`: ema-0.05."""
    return f"ema-{std:g}"


def made_afterwards(path: Path) -> int | None:
    """The step at which an average ends that mf-ema made of snapshots; None for weights that training saved."""
    try:
        made = json.loads(read_header(path).metadata["json"])["made_afterwards"]
        return int(made["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def published(names: Iterable[str]) -> list[str]:
    """Of names of files in a run folder, those of trained weights."""
    return sorted(n for n in names if n.endswith(".safetensors") and "/" not in n and n not in NO_WEIGHTS)


NO_WEIGHTS = ("codec.safetensors", "held_out.safetensors")


def _fault(path: Path, model: Path) -> str | None:
    """Why an average is not what the last save left; None where nothing speaks against it."""
    if not path.is_file():
        return "is missing"
    if (step := made_afterwards(path)) is not None:
        return f"was made afterwards by mf-ema, up to step {step}"
    try:
        steps = recorded_steps(path.parent)
    except ValueError:  # a damaged digests.json, which is refused where weights are read
        return None
    last, own = steps.get(model.name), steps.get(path.name)
    if last is not None and own is None:
        return f"is not of the last save (step {last})"
    if last is not None and own is not None and own < last:
        return f"is of step {own} and {model.name} of step {last}"
    return None


def _configured_averages(config: dict[str, object]) -> list[float] | None:
    """Widths of the averages that a run keeps; None where its configuration does not say."""
    plain: object = config
    for name in ("run", "loop", "ema_std"):
        plain = plain.get(name) if isinstance(plain, dict) else None
    if not isinstance(plain, list) or not all(isinstance(std, int | float) for std in plain):
        return None
    return [float(std) for std in plain]


def width(path: Path) -> tuple[float, str]:
    """Key by which files of averages are sorted, the narrowest first: ema-5e-05 before ema-0.05."""
    try:
        return float(path.stem.removeprefix("ema-")), path.name
    except ValueError:
        return float("inf"), path.name


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which weights are meant, whatever their files are called today."""

    name: str
    """Name of the run folder or of the published model."""
    weights: str
    """Which weights of it: model, ema-0.05, ..."""
    digest: str
    """SHA-256 of their file."""
    licence: str = "unspecified"
    teacher: str | None = None
    """Name of what a student was distilled from."""
    teacher_digest: str | None = None
    """SHA-256 of its file, or the first 12 digits."""
    codec_digest: str | None = None
    """SHA-256 of the codec's file, where the run folder holds one."""


def identify(run: Path, weights: str = "auto") -> ModelIdentity:
    """The identity of the weights that `weights` names in a run folder, read from its files. Raises WeightsError."""
    run = Path(run)
    file = weight_file(run, weights)
    config = read_run_config(run)
    training, digests = config.get("run"), config.get("digests")
    teacher = training.get("teacher") if isinstance(training, dict) else None
    digest = digests.get("teacher") if isinstance(digests, dict) else None
    codec = run / "codec.safetensors"
    folder = run.resolve()
    name = folder.name
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):  # the hub's cache
        name = folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return ModelIdentity(
        name=name,
        weights=file.stem,
        digest=file_sha256(file),
        licence=read_licence(run),
        teacher=Path(teacher).name if isinstance(teacher, str) else None,
        teacher_digest=digest if isinstance(digest, str) and DIGEST.fullmatch(digest) else None,
        codec_digest=file_sha256(codec) if codec.is_file() else None,
    )


def which_weights(digest: str, run: Path) -> str | None:
    """The weights of a run folder (model, ema-0.05, ...) that have this digest; None if none have."""
    files = sorted(Path(run).glob("*.safetensors"))
    files = [file for file in files if file.stem != "codec"]
    if not files:
        raise WeightsError(f"{run} holds no weights to compare with")
    return next((f.stem for f in files if same_digest(file_sha256(f), digest)), None)
