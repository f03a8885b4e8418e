"""How the checks of engines drive one: a fresh engine, a step on a slice of a global batch, and its results."""

import copy

import torch

from distill.config import OptimConfig
from distill.engines import Engine, Tensors, choose_engine
from teacher.network.mmaudio import MMAudio
from tests.distill.reference import OPTIM, UNCLIPPED, Sounds, loss

BETA = OPTIM.betas[0]


def prepared(
    net: MMAudio,
    *,
    accumulation: int = 1,
    precision: torch.dtype = torch.float32,
    batch: int = 4,
    optim: OptimConfig = OPTIM,
) -> Engine:
    """A fresh engine with a copy of `net`."""
    engine = choose_engine(timeout_s=600.0)
    engine.precision = precision
    micro_batch = batch // engine.processes // accumulation
    engine.prepare(copy.deepcopy(net), optim, micro_batch=micro_batch, accumulation=accumulation)
    return engine


def step(
    engine: Engine,
    batch: Sounds,
    *,
    accumulation: int = 1,
    lr: float = OPTIM.lr,
    clip_norm: float = UNCLIPPED,
    healthy: bool = True,
    factor: float = 1.0,
) -> tuple[float, float | None]:
    """One step on the global batch; its mean loss and the norm. `factor` multiplies the last process's loss."""
    mine = batch.pieces(engine.processes)[engine.process]
    values = []
    for k, piece in enumerate(mine.pieces(accumulation)):
        with engine.micro(last=k == accumulation - 1):
            with engine.autocast():
                value = loss(engine.model, engine.plain, piece)
            if engine.process == engine.processes - 1:
                value = value * factor
            engine.backward(value / accumulation)
        values.append(value.detach())
    mean = engine.total(torch.stack(values).mean()) / engine.processes
    norm = engine.step(lr, clip_norm, healthy=healthy)
    return float(mean), None if norm is None else float(norm)


def moments(engine: Engine) -> Tensors:
    """The main process's moments in every process; elsewhere `moments` must give nothing."""
    own = engine.moments()
    assert engine.main or not own
    shared: Tensors = engine.gather(own)[0]
    return {name: tensor.clone() for name, tensor in shared.items()}


def weights(engine: Engine) -> Tensors:
    return {name: p.detach().clone() for name, p in engine.plain.named_parameters()}


def same(a: Tensors, b: Tensors) -> bool:
    """Whether two sets of tensors have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def worst(found: Tensors, wanted: Tensors) -> float:
    """The largest ||found - wanted|| / ||wanted|| over tensors of the same names; nan if there is one among them.

    Where `wanted` is zero throughout (queries of the text stream, which the last joint block does not use) so must be
    `found`.
    """
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    apart = torch.stack([(found[n] - w).norm() for n, w in wanted.items()])
    scale = torch.stack([w.norm() for w in wanted.values()])
    return float(torch.where(apart == 0, 0.0, apart / scale).max())


def gradient(averages: Tensors) -> Tensors:
    """The running mean of the gradient by parameter; after one step it is (1 - beta) times the gradient."""
    return {n.removeprefix("exp_avg."): m for n, m in averages.items() if n.startswith("exp_avg.")}
