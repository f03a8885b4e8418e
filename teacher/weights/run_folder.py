"""Run folders: config.json, the weights of a network, and what it was trained on."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from meanflow.config import from_plain
from teacher.files import read_json
from teacher.sequence import check_window
from teacher.weights.errors import WeightsError
from teacher.weights.files import load_strictly, read_shapes

if TYPE_CHECKING:
    from teacher.network import MMAudio
    from teacher.variants import MMAudioConfig

UNSPECIFIED = "unspecified"
"""Licence of a run that states none."""
LONGEST_LICENCE, LONGEST_NAME = 2000, 100
"""Characters that are read of a licence, and of the name of encoders or of a codec."""
BLOCK = re.compile(r"(joint|fused|velocity)_blocks\.(\d+)\.")


def load_network(run: Path, *, weights: str = "auto") -> "MMAudio":
    """The network of a run folder, rebuilt from its config.json and loaded strictly, in evaluation mode.

    weights: "model" (last step), "ema-0.05" and so on, or "auto": the narrowest average, else the last step. Raises
    WeightsError naming what is missing, and the names that do not match.
    """
    from teacher.network import MMAudio  # models import this package for its files; only this function needs a network
    from teacher.variants import MMAudioConfig

    config = read_run_config(run)
    if "network" not in config:
        raise WeightsError(f"{run / 'config.json'} describes no network; is {run} the run folder of a training?")
    try:
        network = from_plain(MMAudioConfig, config["network"], "network")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{run / 'config.json'}: {error}") from error
    path = weight_file(run, weights)
    _check_size(path, network, run)
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


def read_run_config(run: Path) -> dict[str, object]:
    """config.json of a run folder as plain values."""
    try:
        return read_json(run / "config.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"{run} is not a run folder: it has no config.json") from error
    except ValueError as error:
        raise WeightsError(str(error)) from error


def read_licence(run: Path) -> str:
    """The line in config.json that says under which licence the weights are; "unspecified" where there is none."""
    said = " ".join(str(read_run_config(run).get("licence") or UNSPECIFIED)[: 2 * LONGEST_LICENCE].split())
    return "".join(c for c in said if c.isprintable())[:LONGEST_LICENCE]


@dataclass(frozen=True)
class FeaturesInfo:
    """What a run folder keeps of the features it was trained on."""

    duration_s: float
    encoders: str
    codec: str = "embedded"
    weights_dir: Path | None = None
    """Folder of the official components, where encoders or codec need them; named relative to the run folder or not."""


def read_features_info(run: Path) -> FeaturesInfo:
    """Window duration, encoders, codec and weights folder from the features.json of a run folder."""
    path = run / "features.json"
    try:
        document = read_json(path)
        config, folder = document["config"], document.get("weights_dir")
        duration_s = float(config["duration_s"])
        check_window("duration_s", duration_s)
        return FeaturesInfo(
            duration_s=duration_s,
            encoders=str(config["encoders"])[:LONGEST_NAME],
            codec=str(config.get("codec", "embedded"))[:LONGEST_NAME],
            weights_dir=None if folder is None else run / folder,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise WeightsError(f"{path} cannot be used: {error}; is {run} the run folder of a training?") from error


def weight_file(run: Path, weights: str) -> Path:
    """The safetensors file that `weights` names in a run folder; WeightsError lists what is there."""
    averages = sorted(run.glob("ema-*.safetensors"))
    if weights == "auto":
        path = averages[0] if averages else run / "model.safetensors"
    else:
        path = run / f"{weights}.safetensors"
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in run.glob("*.safetensors"))) or "none; has training saved yet?"
        raise WeightsError(f"no weights {path.stem!r} in {run}; found: {found}")
    return path
