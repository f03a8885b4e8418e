"""Averages of any width after training, from snapshots of two (Karras et al., arXiv 2312.02696, appendix C).

A snapshot of width gamma_i taken at time t_i is the trajectory weighted by p_i(tau) = (gamma_i + 1) tau^gamma_i /
t_i^(gamma_i + 1) on [0, t_i]. The combination of snapshots closest to a wanted profile p is sum_i x_i p_i with

    A x = b,    A_ij = <p_i, p_j>,    b_i = <p_i, p>,

and with t_a <= t_b the inner product is an elementary integral,

    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) * (t_a / t_b)^gamma_b / t_b.

Everything is float64. Only trained tensors are combined; the weights x sum to one only up to the error of the fit, so
tensors that were not trained are copied.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from distill.checkpoints.ema import PowerEMA, clock, gamma_from_std
from distill.checkpoints.store import newest
from distill.method.adapters import merged
from meanflow.config import from_plain
from teacher.files import write_digests
from teacher.files.components import compare_weights, read_tensors
from teacher.files.errors import WeightsError
from teacher.files.safetensors import opened, read_header, write_tensors
from teacher.network.lora import LoRAConfig
from teacher.network.variants import MMAudioConfig
from teacher.weights.run_folder import SNAPSHOTS, read_run_config


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A stored average: its file, and the width and the step that give its profile."""

    path: Path
    std: float
    step: int
    corrected: bool

    @property
    def profile(self) -> tuple[float, float]:
        """The profile of the average: (gamma, end of the averaged time)."""
        return gamma_from_std(self.std), clock(self.step, corrected=self.corrected)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Weights of the snapshots that approximate a wanted profile, and the error of the approximation."""

    weights: np.ndarray
    error: float
    """||sum_i x_i p_i - p|| / ||p||, between 0 and 1."""


Reals: TypeAlias = np.ndarray | np.float64


def inner_product(gamma_a: Reals, t_a: Reals, gamma_b: Reals, t_b: Reals) -> np.ndarray:
    """<p_a, p_b> over training time, elementwise with broadcasting; float64."""
    later_gamma = np.where(t_a <= t_b, gamma_b, gamma_a)
    early, late = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    product: np.ndarray = scale * (early / late) ** later_gamma / late
    return product


def combine(stored: list[tuple[float, float]], wanted: tuple[float, float]) -> Combination:
    """Least-squares weights of the stored profiles that approximate `wanted` (gamma, t). Profiles are scaled to unit
    length for the solution, since those of different lengths of training differ in size by orders of magnitude."""
    if not stored:
        raise ValueError("no stored averages to combine")
    gamma, t = (np.array(column, dtype=np.float64) for column in zip(*stored, strict=True))
    length = np.sqrt(inner_product(gamma, t, gamma, t))
    goal, goal_t = np.float64(wanted[0]), np.float64(wanted[1])
    goal_length = np.sqrt(inner_product(goal, goal_t, goal, goal_t))
    gram = inner_product(gamma[:, None], t[:, None], gamma, t) / np.outer(length, length)
    right = inner_product(gamma, t, goal, goal_t) / (length * goal_length)
    x = np.linalg.lstsq(gram, right, rcond=1e-15)[0]
    error = np.sqrt(max(0.0, 1.0 - 2.0 * float(x @ right) + float(x @ gram @ x)))
    return Combination(weights=x * goal_length / length, error=float(error))


def write_snapshot(run: Path, average: PowerEMA, step: int) -> Path:
    """Write the trained tensors of an average to ema_ckpts/ema-<std>.<step>.safetensors, float32, and its digest."""
    path = run / SNAPSHOTS / f"{average.name}.{step:07d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {"std": average.std, "step": step, "corrected": average.corrected}
    name = f"{SNAPSHOTS}/{path.name}"
    write_digests(run, (), forget=[name])
    written = write_tensors(path, average.shadow, {"json": json.dumps(described)})
    write_digests(run, [name], known={name: written}, step=step)
    return path


def read_snapshots(run: Path) -> list[Snapshot]:
    """The stored averages of a run folder by (step, width); WeightsError if there are none or one is damaged."""
    found = [_describe(path) for path in sorted((run / SNAPSHOTS).glob("ema-*.safetensors"))]
    if not found:
        raise WeightsError(f"{run / SNAPSHOTS} holds no snapshots; train with --loop.ema-snapshot-every above 0")
    if len({s.corrected for s in found}) > 1:
        raise WeightsError(f"{run / SNAPSHOTS} mixes averages with and without step-size correction")
    return sorted(found, key=lambda s: (s.step, s.std))


def _describe(path: Path) -> Snapshot:
    try:
        known = json.loads(read_header(path).metadata["json"])
        return Snapshot(path=path, std=float(known["std"]), step=int(known["step"]), corrected=bool(known["corrected"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is not a snapshot of an average: {error!r}") from error


def combined_tensors(snapshots: list[Snapshot], weights: np.ndarray) -> dict[str, Tensor]:
    """sum_i x_i theta_i of every trained tensor, summed in float64, returned in float32. One tensor of a snapshot is in
    memory at a time beside the result."""
    for snapshot in snapshots:
        compare_weights(snapshot.path, folder=snapshot.path.parents[1])
    with ExitStack() as stack:
        files = [stack.enter_context(opened(s.path)) for s in snapshots]
        names = set(files[0].keys())
        for snapshot, file in zip(snapshots, files, strict=True):
            if set(file.keys()) != names:
                raise WeightsError(f"{snapshot.path} holds other tensors than {snapshots[0].path}")
        made = {}
        for name in sorted(names):
            total = torch.zeros(files[0].get_slice(name).get_shape(), dtype=torch.float64)
            for file, weight in zip(files, weights.tolist(), strict=True):
                total.add_(file.get_tensor(name).double(), alpha=weight)
            made[name] = total.float()
    return made


def write_average(path: Path, run: Path, std: float, tensors: dict[str, Tensor], *, step: int | None = None) -> None:
    """Write an average made by `reconstruct`, with its origin as metadata. In a run folder, digests.json records it;
    hold the run's lock while calling it there."""
    step = read_snapshots(run)[-1].step if step is None else step
    described = {"made_afterwards": {"by": "mf-ema", "std": std, "step": step}}
    written = write_tensors(path, tensors, {"json": json.dumps(described)})
    if path.resolve().parent == run.resolve():
        write_digests(run, [path.name], known={path.name: written}, step=step)


def reconstruct(run: Path, std: float, *, step: int | None = None) -> tuple[dict[str, Tensor], Combination]:
    """Weights of a run averaged with relative width `std` up to `step` (the last stored one if None).

    Tensors that were not trained are copied from the run. Raises WeightsError if there are no snapshots, ValueError for
    a width or step outside what they cover.
    """
    snapshots = read_snapshots(run)
    last = snapshots[-1].step
    step = last if step is None else step
    if not 1 <= step <= last:
        raise ValueError(f"step must lie in 1..{last}, the last snapshot in {run / SNAPSHOTS}, got {step}")
    wanted = (gamma_from_std(std), clock(step, corrected=snapshots[0].corrected))
    combination = combine([s.profile for s in snapshots], wanted)
    trained = combined_tensors(snapshots, combination.weights)
    lora = cast(dict[str, Any], read_run_config(run)["run"]).get("lora")
    if lora is None:
        return _replaced(read_tensors(run / "model.safetensors"), trained, run), combination
    checkpoint = newest(run)
    if checkpoint is None:
        raise WeightsError(f"{run / 'trainer'} holds no checkpoint, which the averages of adapters are merged into")
    network = from_plain(MMAudioConfig, read_run_config(run)["network"], "network")
    alpha = from_plain(LoRAConfig, lora, "lora").alpha
    adapted = _replaced(checkpoint.tensors("model"), trained, run)
    return merged(adapted, network, alpha, str(checkpoint.folder)), combination


def _replaced(tensors: dict[str, Tensor], trained: dict[str, Tensor], run: Path) -> dict[str, Tensor]:
    if unknown := sorted(set(trained) - set(tensors)):
        raise WeightsError(f"the snapshots of {run} hold tensors its weights do not know, such as {unknown[0]}")
    return tensors | {name: tensor.to(tensors[name].dtype) for name, tensor in trained.items()}
