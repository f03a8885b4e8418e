"""The run folder: config.json, weights for use (model, averages) and, under trainer/, what resuming needs.

Tensors only, in safetensors; a checkpoint is written under a temporary name and renamed when complete, so an
interrupted save leaves the previous one in place.
"""

import json
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.ema import PowerEMA
from meanflow.config import to_plain
from teacher.variants import MMAudioConfig
from teacher.weights import WeightsError, load_strictly, read_run_config, read_tensors


def write_config(run: Path, kind: str, config: Any, network: MMAudioConfig, digests: dict[str, str]) -> None:
    """config.json before step 0; a folder that already holds another configuration is refused."""
    document = {
        "kind": kind,
        "run": to_plain(config),
        "network": to_plain(network),
        "digests": digests,
        "package_version": _package_version(),
    }
    path = run / "config.json"
    if path.exists():
        kept = read_run_config(run)
        changed = [
            k for k in ("kind", "run", "network", "digests") if kept.get(k) != json.loads(json.dumps(document[k]))
        ]
        if changed:
            raise ValueError(
                f"{run} holds a run with another configuration ({', '.join(changed)}); choose another --out"
            )
        return
    run.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(document, indent=2))


def save(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None, averages: list[PowerEMA]
) -> Path:
    """Write trainer/step-NNNNNNN and refresh the weights for use; older trainer folders go once it is complete.

    `optimizer` is None where an engine saves its own state into the returned folder's parent beforehand.
    """
    folder = run / "trainer" / f"step-{step:07d}"
    staging = folder.with_suffix(".tmp")
    staging.mkdir(parents=True, exist_ok=True)
    weights = {"model": {n: p.detach().contiguous() for n, p in model.state_dict().items()}}
    weights |= {f"ema-{a.std:g}": a.state(model) for a in averages}
    for name, tensors in weights.items():
        save_file(tensors, staging / f"{name}.safetensors")
    if optimizer is not None:
        save_file(_flatten(optimizer), staging / "optimizer.safetensors")
    (staging / "state.json").write_text(json.dumps({"step": step}))
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    for name in weights:
        copy = run / f"{name}.safetensors.tmp"
        shutil.copyfile(folder / f"{name}.safetensors", copy)
        copy.rename(run / f"{name}.safetensors")
    for old in (run / "trainer").iterdir():
        if old != folder:
            shutil.rmtree(old)
    return folder


def latest(run: Path) -> Path | None:
    """The newest complete trainer folder."""
    complete = sorted(p for p in run.glob("trainer/step-*") if (p / "state.json").is_file() and p.suffix != ".tmp")
    return complete[-1] if complete else None


def resume(folder: Path, model: Any, optimizer: torch.optim.Optimizer | None, averages: list[PowerEMA]) -> int:
    """Load a trainer folder in place; the step to go on from."""
    load_strictly(model, folder / "model.safetensors")
    for average in averages:
        kept = read_tensors(folder / f"ema-{average.std:g}.safetensors")
        for name in average.shadow:
            average.shadow[name].copy_(kept[name])
    if optimizer is not None:
        _unflatten(optimizer, read_tensors(folder / "optimizer.safetensors"))
    step: int = json.loads((folder / "state.json").read_text())["step"]
    return step


def replace_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it into place."""
    staging = path.with_name(path.name + ".tmp")
    with staging.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    staging.rename(path)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": torch.as_tensor(value).contiguous() for i, entry in state.items() for key, value in entry.items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    document = optimizer.state_dict()
    known = sum(len(group["params"]) for group in document["param_groups"])
    if state and set(state) != set(range(known)):
        raise WeightsError(f"the optimiser state covers {len(state)} parameters, the model has {known}")
    optimizer.load_state_dict({"state": state, "param_groups": document["param_groups"]})


def _package_version() -> str:
    try:
        return version("mf-mjt")
    except PackageNotFoundError:
        return "source tree"
