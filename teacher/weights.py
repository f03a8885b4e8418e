"""Networks on disk: a run folder holds config.json and safetensors files; nothing in it can execute code."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from meanflow.config import from_plain
from teacher.network import MMAudio
from teacher.variants import MMAudioConfig


class WeightsError(ValueError):
    """A run folder or weight file that cannot be used; the message says which and why, in one line."""


def load_network(run: Path, *, weights: str = "auto") -> MMAudio:
    """The network of a run folder, rebuilt from its config.json and loaded strictly, in evaluation mode.

    weights: "model" (last step), "ema-0.05" and so on, or "auto": the narrowest average, else the last step. Raises
    WeightsError naming what is missing, and the names that do not match.
    """
    path = weight_file(run, weights)
    net = MMAudio(from_plain(MMAudioConfig, read_run_config(run)["network"], "network"))
    load_strictly(net, path)
    return net.eval().requires_grad_(False)


def load_strictly(net: MMAudio, path: Path) -> None:
    """Load a safetensors file whose names and shapes must be exactly those of `net`."""
    tensors = read_tensors(path)
    expected = net.state_dict()
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    shapes = [
        f"{n} {tuple(tensors[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in expected
        if n in tensors and tensors[n].shape != expected[n].shape
    ]
    if missing or unexpected or shapes:
        raise WeightsError(f"{path} does not fit: missing {missing}, unexpected {unexpected}, wrong shapes {shapes}")
    net.load_state_dict(tensors, strict=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; WeightsError if it is absent or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error


def read_run_config(run: Path) -> dict[str, object]:
    """config.json of a run folder as plain values."""
    path = run / "config.json"
    try:
        plain: dict[str, object] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{run} is not a run folder: it has no config.json") from error
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from error
    return plain


@dataclass(frozen=True)
class FeaturesInfo:
    """What a run folder keeps of the features it was trained on."""

    duration_s: float
    encoders: str


def read_features_info(run: Path) -> FeaturesInfo:
    """Window duration and encoders from the features.json that training copied into the run folder."""
    path = run / "features.json"
    try:
        config = json.loads(path.read_text())["config"]
        return FeaturesInfo(float(config["duration_s"]), str(config["encoders"]))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
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


def file_digest(path: Path) -> str:
    """First 12 hexadecimal digits of a file's SHA-256, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]
