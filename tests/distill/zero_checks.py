"""Facts about DeepSpeed beyond those about any engine, stated inside each of its processes."""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from distill.engines import Engine
from meanflow import Prediction
from teacher.network.mmaudio import MMAudio
from tests.distill import engine_checks
from tests.distill.driving import BETA, gradient, moments, prepared, same, weights, worst
from tests.distill.reference import NETWORK, OPTIM, UNCLIPPED, Sounds, loss, network, sounds


def every_fact(engine: str, only: tuple[str, ...] = ()) -> dict[str, float | None]:
    """Those about any engine, or the ones named, then those of this file; what they measured."""
    found = engine_checks.every_fact(engine, only)
    return found | {fact.__name__: fact() for fact in (bad_parts, two_outputs, own_autocast)}


def bad_parts() -> None:
    """A step of two micro-batches is skipped for the first or the second of them and leaves nothing to the next."""
    net = network()
    engine, untroubled = prepared(net, accumulation=2), prepared(net, accumulation=2)
    for factors in ((math.nan, 1.0), (1.0, math.inf)):
        assert _step_in_parts(engine, sounds(0), factors) is None
    assert _step_in_parts(engine, sounds(0), (1.0, 1.0), healthy=False) is None
    assert not moments(engine)
    assert same(weights(engine), weights(untroubled))
    for seed in (1, 2):
        norms = [_step_in_parts(e, sounds(seed), (1.0, 1.0)) for e in (engine, untroubled)]
        assert norms[0] is not None
        assert norms[0] == norms[1]
    assert same(weights(engine), weights(untroubled))
    assert same(moments(engine), moments(untroubled))


def _step_in_parts(
    engine: Engine, batch: Sounds, factors: tuple[float, float], *, healthy: bool = True
) -> Tensor | None:
    """The main process's losses are multiplied by `factors`, one per micro-batch."""
    for k, piece in enumerate(batch.pieces(engine.processes)[engine.process].pieces(2)):
        with engine.micro(last=k == 1):
            with engine.autocast():
                value = loss(engine.model, engine.plain, piece) / 2
            engine.backward(value * factors[k] if engine.main else value)
    return engine.step(OPTIM.lr, UNCLIPPED, healthy=healthy)


def two_outputs() -> float:
    """A network with a velocity head gives both its outputs and gets the gradients of both."""
    torch.manual_seed(0)
    net = MMAudio(replace(NETWORK, velocity_head=1))
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    batch, alone = sounds(0), copy.deepcopy(net)
    _squares(alone, batch).backward()
    engine = prepared(net)
    with engine.micro(last=True):
        engine.backward(_squares(engine.model, batch.pieces(engine.processes)[engine.process]))
    assert engine.step(OPTIM.lr, UNCLIPPED, healthy=True) is not None
    wanted = {n: p.grad for n, p in alone.named_parameters() if p.requires_grad and p.grad is not None}
    found = {n: m / (1 - BETA) for n, m in gradient(moments(engine)).items()}
    error = worst({n: found[n] for n in wanted}, wanted)
    assert error < 1e-5, error
    return error


def own_autocast() -> None:
    """The wrapped network enters autocast by itself, since DeepSpeed leaves one on a GPU that it does not know of."""
    engine, batch = prepared(network(), precision=torch.bfloat16), sounds(0)
    args = batch.x_t, 1 - batch.t, batch.conditions, batch.t - batch.r
    with torch.no_grad():
        found, wide = engine.model(*args), engine.plain(*args)
        with engine.autocast():
            wanted = engine.plain(*args)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, wide)


def _squares(model: nn.Module, batch: Sounds) -> Tensor:
    out = model(batch.x_t, 1 - batch.t, batch.conditions, batch.t - batch.r)
    assert isinstance(out, Prediction)
    loss: Tensor = out.u.pow(2).mean() + out.v.pow(2).mean()
    return loss
