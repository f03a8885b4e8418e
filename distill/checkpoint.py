"""The run folder: config.json, weights for use (model, averages) and, under trainer/, what resuming needs.

Tensors only, in safetensors; a checkpoint is written under a temporary name and renamed when complete, so an
interrupted save leaves the previous one in place.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.ema import PowerEMA
from meanflow.config import from_plain, to_plain
from teacher.variants import MMAudioConfig
from teacher.weights import WeightsError, load_strictly, read_run_config, read_tensors
from teacher.weights.write import replaced


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
        same = {
            "kind": kept.get("kind") == kind,
            "run": _same(config, kept.get("run")),
            "network": _same(network, kept.get("network")),
            "digests": kept.get("digests") == digests,
        }
        if not all(same.values()):
            changed = ", ".join(name for name, equal in same.items() if not equal)
            raise ValueError(f"{run} holds a run with another configuration ({changed}); choose another --out")
        return
    run.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda staging: staging.write_text(json.dumps(document, indent=2)))


def _same(config: Any, plain: object) -> bool:
    try:
        return bool(from_plain(type(config), plain) == config)
    except (ValueError, TypeError):
        return False


Tensors: TypeAlias = dict[str, Tensor]


def save(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    averages: list[PowerEMA],
    publish: Callable[[str, Tensors], dict[str, Tensors]] | None = None,
) -> Path:
    """Write trainer/step-NNNNNNN and refresh the weights for use; older trainer folders go once it is complete.

    `optimizer` is None where an engine saves its own state into the returned folder's parent beforehand. `publish`
    turns each named set of trained tensors into the files for use, by name; without it they are used as they are.
    """
    folder = run / "trainer" / f"step-{step:07d}"
    staging = folder.with_suffix(".tmp")
    staging.mkdir(parents=True, exist_ok=True)
    weights = {"model": {n: p.detach().contiguous() for n, p in model.state_dict().items()}}
    weights |= {a.name: a.state(model) for a in averages}
    for name, tensors in weights.items():
        save_file(tensors, staging / f"{name}.safetensors")
    if optimizer is not None:
        save_file(_flatten(optimizer), staging / "optimizer.safetensors")
    (staging / "state.json").write_text(json.dumps({"step": step}))
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    for name, tensors in weights.items():
        if publish is None:
            _replace(run / f"{name}.safetensors", partial(shutil.copyfile, folder / f"{name}.safetensors"))
        else:
            for file, made in publish(name, tensors).items():
                write_tensors(run / f"{file}.safetensors", made)
    for old in (run / "trainer").iterdir():
        if old != folder:
            shutil.rmtree(old)
    return folder


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, then rename it into place."""
    _replace(path, lambda staging: save_file({n: t.contiguous() for n, t in tensors.items()}, staging, metadata))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename into place."""
    with replaced(path) as staging:
        write(staging)


def latest(run: Path) -> Path | None:
    """The newest complete trainer folder."""
    complete = sorted(p for p in run.glob("trainer/step-*") if (p / "state.json").is_file() and p.suffix != ".tmp")
    return complete[-1] if complete else None


def resume(folder: Path, model: Any, optimizer: torch.optim.Optimizer | None, averages: list[PowerEMA]) -> int:
    """Load a trainer folder in place; the step to go on from."""
    load_strictly(model, folder / "model.safetensors")
    for average in averages:
        kept = read_tensors(folder / f"{average.name}.safetensors")
        for name in average.shadow:
            average.shadow[name].copy_(kept[name])
    if optimizer is not None:
        _unflatten(optimizer, read_tensors(folder / "optimizer.safetensors"))
    step: int = json.loads((folder / "state.json").read_text())["step"]
    return step


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
