"""Loading the weights of a run folder: choosing a file, its identity, and the network.

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

    weights: "model" (last step), "ema-0.05" and so on, or "auto": the narrowest average that training saves, else the
    last step (`automatic_weights`). The file is compared with its recorded digest. A line on standard error reports
    when "auto" falls back to the last step, and when config.json or features.json were edited.

    Raises WeightsError naming the file that is missing or damaged, or the tensors that do not match.
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
    """Raise WeightsError unless the file has as many blocks of each kind as the network, and enough numbers.

    Only the file's header is read, before a module of the configured size is built.
    """
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
    """Compare the weights with the digest in config.json, where folders saved by earlier versions record it."""
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
    """The safetensors file that `weights` names in a run folder; WeightsError lists the existing ones."""
    path = automatic_weights(run)[0] if weights == "auto" else run / f"{weights}.safetensors"
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in run.glob("*.safetensors"))) or "none; has training saved yet?"
        raise WeightsError(f"no weights {path.stem!r} in {run}; found: {found}")
    return path


def automatic_weights(run: Path) -> tuple[Path, str | None]:
    """The file that "auto" selects in a run folder, and a line of explanation if it is not the expected average.

    "auto" is the narrowest average of the run's configuration (loop.ema_std) as the last save wrote it. If that file is
    missing, was made by mf-ema, or is of an earlier save than model.safetensors, it is model.safetensors. If
    config.json does not name averages, it is the narrowest one in the folder. The file need not exist.
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
    return model, f"{run}: {path.name} {fault}, so the weights are those of {model.name}; select others with --weights"


WHOLE = frozenset({CONSOLIDATED, "digest"})
"""Entries of config.json that mark folders with a single file of weights, exported from a run or saved to publish."""


def average_name(std: float) -> str:
    """Name of the weights averaged with relative width `std`: ema-0.05."""
    return f"ema-{std:g}"


def made_afterwards(path: Path) -> int | None:
    """The last step of an average that mf-ema made from snapshots; None for weights that training saved."""
    try:
        made = json.loads(read_header(path).metadata["json"])["made_afterwards"]
        return int(made["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def published(names: Iterable[str]) -> list[str]:
    """The names of trained weights among names of files in a run folder, sorted."""
    return sorted(n for n in names if n.endswith(".safetensors") and "/" not in n and n not in NO_WEIGHTS)


NO_WEIGHTS = ("codec.safetensors", "held_out.safetensors")


def _fault(path: Path, model: Path) -> str | None:
    """Why an average is not the one of the last save; None if it is, or if nothing is recorded."""
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
    """Relative widths of the averages that a run saves; None if its configuration does not list them."""
    plain: object = config
    for name in ("run", "loop", "ema_std"):
        plain = plain.get(name) if isinstance(plain, dict) else None
    if not isinstance(plain, list) or not all(isinstance(std, int | float) for std in plain):
        return None
    return [float(std) for std in plain]


def width(path: Path) -> tuple[float, str]:
    """Sort key of files of averages, the narrowest first: ema-5e-05 before ema-0.05."""
    try:
        return float(path.stem.removeprefix("ema-")), path.name
    except ValueError:
        return float("inf"), path.name


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Name, digests and licence of weights, which identify them even after their files are renamed."""

    name: str
    """Name of the run folder or of the published model."""
    weights: str
    """Which weights of the run: model, ema-0.05, ..."""
    digest: str
    """SHA-256 of the weights' file."""
    licence: str = "unspecified"
    teacher: str | None = None
    """Name of the teacher that a student was distilled from."""
    teacher_digest: str | None = None
    """SHA-256 of the teacher's file, or its first 12 digits."""
    codec_digest: str | None = None
    """SHA-256 of the codec's file, if the run folder has one."""


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
    """Name of the weights in a run folder (model, ema-0.05, ...) with this digest; None if there are none."""
    files = sorted(Path(run).glob("*.safetensors"))
    files = [file for file in files if file.stem != "codec"]
    if not files:
        raise WeightsError(f"{run} holds no weights to compare with")
    return next((f.stem for f in files if same_digest(file_sha256(f), digest)), None)
