"""Facts about any engine, stated inside each of its processes and held against `Reference`, in the same process.

`every_fact` is what a test launches; which engine it gets is up to the environment (`distill.engines.choose`).
"""

import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distill.engines import choose_engine
from distill.engines.base import TogetherError
from meanflow import ForwardAD
from teacher.network.lora import LoRAConfig, add_lora
from teacher.network.mmaudio import MMAudio
from teacher.network.velocity import student_velocity
from tests.distill.driving import BETA, gradient, moments, prepared, same, step, weights, worst
from tests.distill.reference import FRAMES, OPTIM, Reference, Sounds, network, sounds


def gradients_of(net: MMAudio, *, accumulation: int = 1) -> float:
    """The largest relative error of a parameter's gradient in two steps; the first is what a hook may get right alone.

    Sums in another order differ by some 1e-7; 1e-5 leaves room for parameters whose gradient nearly cancels.
    """
    engine, reference, errors = prepared(net, accumulation=accumulation), Reference(net), []
    for seed in range(2):
        batch = sounds(seed)
        value, grads = reference.gradient(batch)
        wanted_norm = torch.stack([g.norm() for g in grads.values()]).norm()
        found_value, norm = step(engine, batch, accumulation=accumulation)
        assert norm == pytest.approx(float(wanted_norm), rel=1e-5), (norm, wanted_norm)
        assert found_value == pytest.approx(value, rel=1e-5), (found_value, value)
        reference.step(batch)
        errors.append(worst(gradient(moments(engine)), gradient(reference.moments())))
        # Every weight moves by about lr, and by other amounts where a gradient is near Adam's epsilon: few, so 1e-2 of
        # lr in the mean. A decay in the wrong group or a lost learning-rate scale moves a tenth of lr and more.
        with torch.no_grad():
            for name, parameter in reference.net.named_parameters():
                current = engine.plain.get_parameter(name)
                apart = float((current - parameter).square().mean().sqrt())
                assert apart < 1e-2 * OPTIM.lr, (name, apart)
                parameter.copy_(current)  # the second gradient is to be taken where the engine takes it
    assert max(errors) < 1e-5, errors
    return max(errors)


def gradients() -> float:
    """Every parameter's gradient is that of the whole batch in one process."""
    return gradients_of(network())


def gradients_accumulated() -> float:
    """So it is when the rows of a process come in two parts."""
    return gradients_of(network(), accumulation=2)


def gradients_beside_frozen() -> float:
    """And with a block that is frozen, one that has low-rank adapters alone, and the rest trained as usual."""
    net = network()
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    adapters = add_lora(net, LoRAConfig(rank=1, targets=("fused_blocks",)), generator=generator)
    for name, parameter in net.named_parameters():
        if name in adapters:
            parameter.data.normal_(std=0.1, generator=generator)
        elif name in trained:
            parameter.requires_grad_(not name.startswith(("fused_blocks", "joint_blocks")))
    return gradients_of(net)


def gradients_checkpointed() -> float:
    """And with blocks that are computed again in the backward pass."""
    net = network()
    net.checkpoint_blocks = True
    return gradients_of(net)


def clipping() -> None:
    """Clipped at half its norm, the gradient that Adam sees is half as large, and the reported norm is that before."""
    batch, net = sounds(0), network()
    _, wanted = Reference(net).gradient(batch)
    full = float(torch.stack([g.norm() for g in wanted.values()]).norm())
    engine = prepared(net)
    _, norm = step(engine, batch, clip_norm=full / 2)
    assert norm == pytest.approx(full, rel=1e-5), (norm, full)
    assert worst(gradient(moments(engine)), {n: (1 - BETA) * g / 2 for n, g in wanted.items()}) < 1e-5


def curve() -> float:
    """Twenty steps have the losses of one process; the largest relative difference.

    Rounding (1e-7) may grow from step to step, where Adam divides by gradients near zero; 1e-5 leaves it room and is
    far below what a lost or doubled gradient does.
    """
    net = network()
    engine, reference = prepared(net), Reference(net)
    found, wanted = [], []
    for k in range(20):
        batch = sounds(k % 3)
        found.append(step(engine, batch, clip_norm=0.5)[0])
        wanted.append(reference.step(batch, clip_norm=0.5))
    apart = max(abs(a / b - 1) for a, b in zip(found, wanted, strict=True))
    assert apart < 1e-5, (apart, found, wanted)
    assert min(wanted[-3:]) < 0.98 * wanted[0], wanted
    return apart


def bad_steps() -> None:
    """A NaN or infinite loss in one process, or an unhealthy step, changes nothing anywhere."""
    net = network()
    engine, untroubled = prepared(net), prepared(net)
    for e in (engine, untroubled):
        step(e, sounds(0))
    before = weights(engine), moments(engine)
    for changes in ({"factor": math.nan}, {"factor": math.inf}, {"healthy": False}):
        assert step(engine, sounds(1), **changes)[1] is None, changes  # type: ignore[arg-type]
        assert same(before[0], weights(engine)), changes
        assert same(before[1], moments(engine)), changes
    for seed in (2, 3):
        norms = [step(e, sounds(seed))[1] for e in (engine, untroubled)]
        assert norms[0] is not None
        assert norms[0] == norms[1], norms
    assert same(weights(engine), weights(untroubled))
    assert same(moments(engine), moments(untroubled))


def saved_moments() -> None:
    """Moments go into a fresh engine bit by bit, and the steps after are the same bits; none before the first step."""
    engine = prepared(network())
    assert not moments(engine)
    engine.load_moments({})
    for seed in range(2):
        step(engine, sounds(seed))
    saved = moments(engine)
    assert float(saved["step"]) == 2
    assert all(m.dtype == torch.float32 and m.device.type == "cpu" for m in saved.values())
    again = prepared(_trainable(engine.plain))
    given = {name: tensor.clone() for name, tensor in saved.items()}
    again.load_moments(given)
    assert same(saved, moments(again))
    for seed in (2, 3):
        assert step(engine, sounds(seed))[0] == step(again, sounds(seed))[0]
    assert same(saved, given), "the tensors that were loaded from are trained on"
    assert same(weights(engine), weights(again))
    assert same(moments(engine), moments(again))
    for wrong in ({n: m for n, m in saved.items() if n != "step"}, saved | {"exp_avg.latent_mean": torch.zeros(1)}):
        with pytest.raises(ValueError, match="does not fit"):
            again.load_moments(wrong)


def other_numbers_of_processes() -> float:
    """Three steps here, three in a single process, three here again: the curve of nine steps here."""
    straight, engine = prepared(network()), prepared(network())
    wanted = [step(straight, sounds(k))[0] for k in range(9)]
    found = [step(engine, sounds(k))[0] for k in range(3)]
    alone = Reference(_trainable(engine.plain))
    alone.load_moments(moments(engine))
    found += [alone.step(sounds(k)) for k in range(3, 6)]
    back = prepared(alone.net)
    back.load_moments(alone.moments())
    found += [step(back, sounds(k))[0] for k in range(6, 9)]
    apart = max(abs(a / b - 1) for a, b in zip(found, wanted, strict=True))
    assert apart < 1e-5, (apart, found, wanted)  # as for the curve
    return apart


def plain_network() -> None:
    """`plain` is whole and current, the same in every process, without hooks, and has an exact derivative."""
    net = network()
    engine, reference = prepared(net), Reference(net)
    for seed in range(3):
        batch = sounds(seed)
        with torch.no_grad():
            args = batch.x_t, 1 - batch.t, batch.conditions, batch.t - batch.r
            assert torch.allclose(engine.model(*args), engine.plain(*args), rtol=1e-5, atol=1e-6), seed
        dudt, wanted = (_derivative(n, batch) for n in (engine.plain, reference.net))
        assert (dudt - wanted).norm() < 1e-4 * wanted.norm(), seed
        digests = engine.gather([float(p.detach().double().sum()) for p in engine.plain.parameters()])
        assert all(d == digests[0] for d in digests)
        step(engine, batch)
        reference.step(batch)
    assert type(engine.plain) is MMAudio
    for name, module in engine.plain.named_modules():
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        assert not any(hooks), name
    assert all(type(p) is nn.Parameter for p in engine.plain.parameters())


def first_weights() -> None:
    """Should the processes be given different weights, the main process's count, in all of them and in every view."""
    net, other = network(), network(seed=1)
    engine = prepared(net if choose_engine(timeout_s=600.0).main else other)
    assert same(weights(engine), {n: p.detach() for n, p in net.named_parameters()})
    wanted = Reference(net).step(sounds(0))
    assert step(engine, sounds(0))[0] == pytest.approx(wanted, rel=1e-5)


def bfloat16() -> float:
    """Under autocast weights and moments stay float32 and gradients come within 3e-2; the largest difference."""
    net, batch = network(), sounds(0)
    _, wanted = Reference(net).gradient(batch)
    engine = prepared(net, precision=torch.bfloat16)
    _, norm = step(engine, batch)
    assert norm is not None
    found = {n: m / (1 - BETA) for n, m in gradient(moments(engine)).items()}
    assert all(p.dtype == torch.float32 for p in engine.plain.parameters())
    assert all(g.dtype == torch.float32 and bool(torch.isfinite(g).all()) for g in found.values())
    apart = torch.stack([(found[n] - g).norm() for n, g in wanted.items()]).norm()
    error = float(apart / torch.stack([g.norm() for g in wanted.values()]).norm())
    assert 1e-4 < error < 3e-2, error  # below 1e-4 it was no bfloat16
    return error


def company() -> None:
    """Sums, gathered items, and errors that reach everybody."""
    engine = choose_engine(timeout_s=600.0)
    assert f"{engine.device}, float32" in engine.describe()
    count = engine.processes
    assert float(engine.total(torch.tensor(engine.process + 1.0))) == count * (count + 1) / 2
    assert engine.gather({"process": engine.process}) == [{"process": k} for k in range(count)]
    engine.together(None)
    engine.wait()
    with pytest.raises(TogetherError, match="the disk is full"):
        engine.together("the disk is full" if engine.process == count - 1 else None)


def _trainable(plain: MMAudio) -> MMAudio:
    """A copy that trains what `network` trains, whatever an engine froze in its plain view."""
    net = network()
    net.load_state_dict(plain.state_dict())
    return net


def _derivative(net: MMAudio, batch: Sounds) -> Tensor:
    encoded = net.encode_conditions(batch.conditions, FRAMES)
    return ForwardAD()(lambda x, r, t: student_velocity(net, x, r, t, encoded), batch.x_t, batch.r, batch.t, batch.v)


FACTS: tuple[Callable[[], float | None], ...] = (
    company,
    gradients,
    gradients_accumulated,
    gradients_beside_frozen,
    gradients_checkpointed,
    clipping,
    curve,
    bad_steps,
    saved_moments,
    other_numbers_of_processes,
    plain_network,
    first_weights,
    bfloat16,
)


def every_fact(engine: str, only: tuple[str, ...] = ()) -> dict[str, float | None]:
    """All facts in turn, or `only` those named, for the engine of this name; what they measured."""
    assert choose_engine(timeout_s=600.0).name == engine
    found = {}
    for fact in FACTS:
        if only and fact.__name__ not in only:
            continue
        began = time.perf_counter()
        found[fact.__name__] = fact()
        print(f"{fact.__name__}: {found[fact.__name__]} in {time.perf_counter() - began:.1f} s", flush=True)
    return found
