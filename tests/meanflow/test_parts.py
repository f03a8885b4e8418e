"""Time densities, losses and configuration files."""

import math

import pytest
import torch

from meanflow import AdaptiveL2, Correction, LogitNormal, MeanFlow, PseudoHuber, TimePairs, Uniform
from meanflow.config import digest, dumps, loads


def test_pairs_are_ordered_and_shares_are_exact(generator):
    r, t = TimePairs(fm_fraction=0.25, full_fraction=0.5)(200, generator=generator)
    assert bool((r <= t).all())
    assert int((r == t).sum()) == 50
    assert int(((r == 0) & (t == 1)).sum()) == 75


def test_rows_are_assigned_at_random(generator):
    r, t = TimePairs(fm_fraction=0.5)(1000, generator=generator)
    first = (r == t)[:500].float().mean().item()
    assert 0.4 < first < 0.6  # 500 of 1,000 without replacement: standard deviation 0.016


def test_logit_normal_has_its_median_at_the_sigmoid_of_the_mean(generator):
    t = LogitNormal(mean=-0.4)(100_000, generator=generator)
    assert t.median().item() == pytest.approx(1 / (1 + math.exp(0.4)), abs=0.005)


def test_same_generator_state_same_times():
    a = TimePairs()(16, generator=torch.Generator().manual_seed(3))
    b = TimePairs()(16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_uniform_bounds(generator):
    t = Uniform(low=0.2, high=0.3)(1000, generator=generator)
    assert t.min() >= 0.2
    assert t.max() <= 0.3


def test_adaptive_weight_of_power_one_is_the_logarithm_in_gradient(generator):
    """p = 1: the gradient of w ||delta||^2 is delta / (||delta||^2 + c) up to 2 / n, that of log(||delta||^2 + c)."""
    delta = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    AdaptiveL2(p=1.0, c=1e-2)(delta).sum().backward()
    other = delta.detach().clone().requires_grad_()
    (other.pow(2).flatten(1).mean(1) + 1e-2).log().sum().backward()
    torch.testing.assert_close(delta.grad, other.grad)


def test_power_zero_is_the_squared_error(generator):
    delta = torch.randn(3, 4, 2, generator=generator)
    torch.testing.assert_close(AdaptiveL2(p=0.0)(delta), delta.pow(2).flatten(1).mean(1))
    torch.testing.assert_close(AdaptiveL2(p=0.0, reduction="sum")(delta), delta.pow(2).flatten(1).sum(1))


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far():
    near, far = torch.full((1, 1, 1), 1e-4, dtype=torch.float64), torch.full((1, 1, 1), 1e3, dtype=torch.float64)
    loss = PseudoHuber(c=0.1)
    assert loss(near).item() == pytest.approx(1e-8 / 0.2, rel=1e-3)
    assert loss(far).item() == pytest.approx(1e3 - 0.1, rel=1e-3)


def test_configuration_survives_the_file():
    pairs = TimePairs(density=Uniform(high=0.5), fm_fraction=0.1)
    assert loads(TimePairs, dumps(pairs)) == pairs
    assert digest(pairs) == digest(loads(TimePairs, dumps(pairs)))
    assert digest(pairs) != digest(TimePairs())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "TimePairs", "fm_fracton": 0.5}', "unknown fields.*fm_fracton"),
        ('{"type": "TimePairs", "density": {"type": "Normal"}}', "density.type must be one of"),
        ('{"type": "MeanFlow"}', "must be a TimePairs"),
        ('{"type": "TimePairs", "fm_fraction": 2.0}', "fm_fraction must lie in"),
    ],
)
def test_wrong_files_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        loads(TimePairs, text)


def test_nested_unions_keep_their_kind():
    assert loads(MeanFlow, dumps(MeanFlow(correction=Correction(clip=1.5)))) == MeanFlow(
        correction=Correction(clip=1.5)
    )
