"""Copies weights out of a run: one folder with a safetensors file and all that sampling and evaluation need."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch

from distill.checkpoints.store import Checkpoint, at, newest, read_manifest
from distill.method.adapters import merged
from meanflow.config import from_plain
from teacher.files import Written, copy_file, new_folder, write_digests, write_new
from teacher.files.components import check_fit, compare_weights, read_shapes, read_tensors
from teacher.files.errors import WeightsError
from teacher.files.safetensors import stream_tensors
from teacher.network.lora import LoRAConfig
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig
from teacher.weights.loading import weight_file, width
from teacher.weights.run_folder import CONSOLIDATED, read_features_info, read_run_config

Which: TypeAlias = int | Literal["newest", "best"]
"""A checkpoint: that of a step, the newest, or the one whose evaluation was best."""


@dataclass(frozen=True, kw_only=True)
class Consolidated:
    """The checkpoint and weights that were copied, and the folder they were written to."""

    out: Path
    step: int
    weights: str


def consolidate(run: Path, out: Path, *, which: Which = "newest", weights: str = "auto") -> Consolidated:
    """Write model.safetensors, config.json, codec.safetensors and features.json into the new folder `out`, which is
    then used like a run folder.

    weights: "model" (the step's own), "ema-0.05" and so on, or "auto": the narrowest average, else the step's own.
    Adapters are merged, and digests.json records what was written. The checkpoint is verified first; the run may be in
    training, since nothing is written into it. Raises ValueError, in one line, where the checkpoint, or something
    beside it, is missing or damaged, or where `out` exists; `out` then holds nothing, not even in part.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder, or remove it first")
    document = read_run_config(run)
    read_features_info(run)
    if not (run / "codec.safetensors").is_file():
        raise WeightsError(f"{run} has no codec.safetensors; is it the run folder of a training?")
    checkpoint = _choose(run, which)
    compare_weights(run / "codec.safetensors")
    source = _source(checkpoint.folder, weights)
    origin = {"run": run.resolve().name, "step": checkpoint.step, "weights": source.stem}
    origin["sha256"] = read_manifest(checkpoint.folder)[source.name].sha256
    with new_folder(out) as staging:
        written = {"model.safetensors": _write_weights(source, staging / "model.safetensors", document)}
        config = json.dumps(document | {CONSOLIDATED: origin}, indent=2).encode()
        written["config.json"] = write_new(staging / "config.json", config)
        for name in ("codec.safetensors", "features.json"):
            written[name] = copy_file(run / name, staging / name)
        write_digests(staging, written, known=written, step=checkpoint.step)
    return Consolidated(out=out, step=checkpoint.step, weights=source.stem)


def _choose(run: Path, which: Which) -> Checkpoint:
    if isinstance(which, int):
        return at(run, which)
    found = newest(run)
    if found is None:
        raise ValueError(f"{run} has no checkpoint; has training saved yet?")
    if which == "newest":
        return found
    best = found.state.get("best")
    if best is None:
        raise ValueError(f"{run} has not been evaluated up to step {found.step}, so no step is best; name one")
    return at(run, int(best["step"]))


def _source(folder: Path, weights: str) -> Path:
    """A file of a checkpoint, whose averages are all the run's own."""
    if weights == "auto" and (averages := sorted(folder.glob("ema-*.safetensors"), key=width)):
        return averages[0]
    return weight_file(folder, "model" if weights == "auto" else weights)


def _write_weights(source: Path, target: Path, document: Mapping[str, object]) -> Written:
    """Copied where they fit the network as they are, block by block; else with their adapters merged."""
    network = from_plain(MMAudioConfig, document.get("network"), "network")
    lora = cast(dict[str, Any], document.get("run") or {}).get("lora")
    if lora is None:
        with torch.device("meta"):  # names and shapes alone
            expected = {name: tensor.shape for name, tensor in MMAudio(network).state_dict().items()}
        check_fit(expected, read_shapes(source), str(source))
        written = copy_file(source, target)
        if written != read_manifest(source.parent)[source.name]:  # verified a moment ago
            raise WeightsError(f"{source} changed while it was copied; the disk may be failing")
        return written
    alpha = from_plain(LoRAConfig, lora, "lora").alpha
    return stream_tensors(target, merged(read_tensors(source), network, alpha, str(source)))
