"""Guidance: worked numbers, identities, limits."""

import pytest
import torch

from meanflow import Guidance, MixedGuidance


def test_plain_guidance_worked_example():
    """omega 2: u + 2 (c - u) = 2 * 4 - 3 = 5."""
    c, u, t = torch.full((1, 1, 1), 4.0), torch.full((1, 1, 1), 3.0), torch.ones(1)
    assert Guidance(omega=2.0, rescale=False)(c, u, t).value.item() == 5.0


def test_rescaled_guidance_worked_example():
    """c = (1, 1), u = (1, 0): s* = <c, u> / ||u||^2 = 1; omega 3 gives (1, 0) + 3 (0, 1) = (1, 3)."""
    c, u = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
    guided = Guidance(omega=3.0)(c, u, torch.ones(1))
    torch.testing.assert_close(guided.s_star, torch.ones(1))
    torch.testing.assert_close(guided.value, torch.tensor([[[1.0, 3.0]]]))


def test_rescaling_leaves_the_remainder_orthogonal_to_the_unconditional_prediction(generator):
    c = torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)
    u = c + 0.3 * torch.randn(6, 4, 3, generator=generator, dtype=torch.float64)
    s = Guidance(omega=2.0).s_star(c, u)
    remainder = c - s[:, None, None] * u
    assert (remainder * u).flatten(1).sum(1).abs().max() < 1e-6


def test_rescaling_ignores_the_scale_of_the_unconditional_prediction(generator):
    """Guidance must not depend on how large the unconditional prediction is, only on its direction."""
    c = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    u = c + 0.5 * torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    rule, t = Guidance(omega=2.5, clamp=(0.0, 10.0)), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(rule(c, u, t).value, rule(c, 0.5 * u, t).value, rtol=1e-6, atol=1e-6)


def test_scale_one_is_the_conditional_prediction(generator):
    c, u = torch.randn(2, 3, 4, 2, generator=generator).unbind(0)
    rule = Guidance(omega=1.0)
    assert not rule.active
    torch.testing.assert_close(rule(c, u, torch.ones(3)).value, c)


def test_scalar_is_clamped():
    c, u = torch.full((1, 1, 2), 5.0), torch.full((1, 1, 2), 0.1)
    assert Guidance(omega=2.0, clamp=(0.0, 2.0)).s_star(c, u).item() == 2.0


def test_outside_the_interval_nothing_is_guided():
    c, u = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)
    value = Guidance(omega=3.0, interval=(0.0, 0.5))(c, u, torch.tensor([0.25, 0.75])).value
    assert value.flatten().tolist() == [3.0, 1.0]


def test_mixed_guidance_worked_example():
    """omega 0.5, kappa 0.4: 0.5 * 1 + 0.4 * 2 + 0.1 * 3 = 1.6."""
    one = torch.ones(1, 1, 1)
    mixed = MixedGuidance(omega=0.5, kappa=0.4)(one, 2 * one, 3 * one, torch.full((1,), 0.5))
    torch.testing.assert_close(mixed, 1.6 * one)


def test_mixed_guidance_does_nothing_when_off(generator):
    v, c, u = torch.randn(3, 2, 4, 2, generator=generator).unbind(0)
    torch.testing.assert_close(MixedGuidance()(v, c, u, torch.rand(2)), v)


@pytest.mark.parametrize("bad", [{"omega": -1.0}, {"clamp": (2.0, 1.0)}, {"interval": (0.5, 0.2)}])
def test_wrong_values_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Guidance(**bad)
