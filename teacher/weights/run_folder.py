"""Run folders: config.json, the weights of a network, and what it was trained on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from meanflow.config import from_plain
from teacher.files import Moved
from teacher.weights.errors import WeightsError
from teacher.weights.files import load_strictly

if TYPE_CHECKING:
    from teacher.network import MMAudio

UNSPECIFIED = "unspecified"
"""Licence of a run that states none."""


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
    path = weight_file(run, weights)
    with torch.device("meta"):  # initial values would be thrown away
        net = MMAudio(from_plain(MMAudioConfig, config["network"], "network"))
    load_strictly(net, path)
    return net.eval().requires_grad_(False)


def read_run_config(run: Path) -> dict[str, object]:
    """config.json of a run folder as plain values."""
    path = run / "config.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsError(f"{run} is not a run folder: it has no config.json") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(plain, dict):
        raise WeightsError(f"{path} is not a JSON object")
    return plain


def read_licence(run: Path) -> str:
    """The line in config.json that says under which licence the weights are; "unspecified" where there is none."""
    return " ".join(str(read_run_config(run).get("licence") or UNSPECIFIED).split())


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
        document = json.loads(path.read_text(encoding="utf-8"))
        config, folder = document["config"], document.get("weights_dir")
        return FeaturesInfo(
            duration_s=float(config["duration_s"]),
            encoders=str(config["encoders"]),
            codec=str(config.get("codec", "embedded")),
            weights_dir=None if folder is None else Moved(run)(run / folder),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
