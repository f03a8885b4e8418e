"""Guidance: worked numbers, identities, limits."""

import pytest
import torch

from meanflow import GaussianFlow, Guidance, MixedGuidance, sample, time_grid
from meanflow.guidance import DEFAULT_OMEGA, JointGuidance, default_omega


def predictions(generator, count, dtype=torch.float64, batch=5):
    """`count` predictions (B, 4, 3) that share most of their direction, as a network's do."""
    base = torch.randn(batch, 4, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, batch, 4, 3, generator=generator, dtype=torch.float64)
    return (base + 0.3 * noise).to(dtype).unbind(0)


def ones(batch=5):
    return torch.ones(batch, dtype=torch.float64)


def inner(a, b):
    return (a * b).flatten(1).sum(1)


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
    joint = JointGuidance(video=2.0, text=2.0)(c, c, u, torch.ones(1))
    assert joint.s_star.tolist() == [[2.0, pytest.approx(1.0)]]
    assert joint.clamped.tolist() == [[True, False]]


def test_clamped_rows_are_counted():
    """Free scalars 5, 1 and -1 against [0, 2]: the first and the last are changed. Without rescaling none is."""
    c, u = torch.tensor([5.0, 1.0, -1.0])[:, None, None].expand(3, 2, 2), torch.ones(3, 2, 2)
    guided = Guidance(omega=2.0)(c, u, torch.ones(3))
    torch.testing.assert_close(guided.s_star, torch.tensor([2.0, 1.0, 0.0]))
    assert guided.clamped.tolist() == [True, False, True]
    plain = Guidance(omega=2.0, rescale=False, clamp=(0.0, 0.5))(c, u, torch.ones(3))
    assert plain.s_star.tolist() == [1.0, 1.0, 1.0]
    assert not plain.clamped.any()


def test_clamp_bounds_what_a_vanishing_unconditional_prediction_can_do(generator):
    """u 10^-3 as large as c: the free scalar is near 1,000; clamped to 2, s* u is at most 2 / 1,000 of c.

    So the push is c to 0.2 % and the result omega c to (omega - 1) 0.2 % = 0.4 %; without the clamp it would be
    c + 2 (c - c') with c' the projection, which is far from 3 c.
    """
    c, base = predictions(generator, 2)
    value = Guidance(omega=3.0)(c, 1e-3 * base, ones()).value
    relative = (value - 3.0 * c).flatten(1).norm(dim=1) / c.flatten(1).norm(dim=1)
    assert relative.max() < 0.01


@pytest.mark.parametrize("omega", [0.0, 1.5, 4.5, 7.0])
@pytest.mark.parametrize("a", [0.3, 1.0, 1.9])
def test_a_multiple_of_the_unconditional_prediction_cannot_be_pushed(generator, omega, a):
    """p_c = a p_u: s* = a, nothing is left to push; the 1e-8 under s* leaves 1e-8 / ||p_u||^2 of it, times omega."""
    (u,) = predictions(generator, 1)
    torch.testing.assert_close(Guidance(omega=omega)(a * u, u, ones()).value, a * u, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rescale", [True, False])
def test_std_rescale_restores_the_standard_deviation(generator, rescale):
    c, u = predictions(generator, 2)
    plain = Guidance(omega=4.0, rescale=rescale)(c, u, ones()).value
    whole = Guidance(omega=4.0, rescale=rescale, std_rescale=1.0)(c, u, ones()).value
    half = Guidance(omega=4.0, rescale=rescale, std_rescale=0.5)(c, u, ones()).value
    std = lambda p: p.flatten(1).std(1)  # noqa: E731
    assert (std(plain) / std(c)).min() > 1.1
    torch.testing.assert_close(std(whole), std(c), rtol=1e-12, atol=0)
    torch.testing.assert_close(half, 0.5 * (plain + whole), rtol=1e-12, atol=1e-12)


def test_std_rescale_survives_a_constant_prediction():
    one = torch.ones(2, 3, 1)
    assert torch.isfinite(Guidance(omega=3.0, std_rescale=1.0)(2 * one, one, torch.ones(2)).value).all()


def test_projection_removes_exactly_the_parallel_part(generator):
    """At 0 the push is orthogonal to p_c (1e-8 as above); what goes is a multiple of p_c; 0.25 keeps a quarter."""
    c, u = predictions(generator, 2)
    push = lambda parallel: Guidance(omega=2.0, rescale=False, parallel=parallel)(c, u, ones()).value - c  # noqa: E731
    full, none, quarter = push(1.0), push(0.0), push(0.25)
    torch.testing.assert_close(full, c - u, rtol=0, atol=1e-12)
    assert inner(none, c).abs().max() < 1e-6
    along = (inner(full, c) / inner(c, c))[:, None, None] * c
    assert along.abs().max() > 1e-2
    torch.testing.assert_close(full - none, along, rtol=0, atol=1e-6)
    torch.testing.assert_close(quarter, none + 0.25 * along, rtol=0, atol=1e-6)


def test_long_pushes_are_shortened_and_short_ones_are_not(generator):
    c, u = predictions(generator, 2)
    u = torch.cat([c[:1] - 0.01, u[1:] - 3.0])
    rule = Guidance(omega=2.0, rescale=False, rms_threshold=0.5)
    push = rule(c, u, ones()).value - c
    rms = push.flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.tensor([0.01, 0.5, 0.5, 0.5, 0.5], dtype=c.dtype), rtol=1e-9, atol=0)
    direction = torch.nn.functional.cosine_similarity(push.flatten(1), (c - u).flatten(1))
    torch.testing.assert_close(direction, ones(), rtol=0, atol=1e-9)


def test_half_precision_is_computed_in_float32(generator):
    """The result is the float32 result of the same rounded inputs, rounded once; in bfloat16 throughout it is not."""
    c, u = predictions(generator, 2, torch.bfloat16, batch=64)
    t = torch.ones(64)
    for rule in (Guidance(omega=4.5), Guidance(omega=4.5, rescale=False, std_rescale=0.7, parallel=0.0)):
        low, wide = rule(c, u, t), rule(c.float(), u.float(), t)
        assert low.value.dtype == torch.bfloat16
        assert low.s_star.dtype == torch.float32
        assert torch.equal(low.value, wide.value.bfloat16())
        assert torch.equal(low.s_star, wide.s_star)
    plain = Guidance(omega=4.5, rescale=False)
    assert not torch.equal(plain(c, u, t).value, c + 3.5 * (c - u))
    joint = JointGuidance(video=3.0, text=2.0)
    assert torch.equal(joint(c, c, u, t).value, joint(c.float(), c.float(), u.float(), t).value.bfloat16())


def test_separate_scales_worked_example():
    """none 1, video 3, both 4, scales 2 and 5: 1 + 2 * 2 + 5 * 1 = 10."""
    p = torch.ones(1, 1, 1)
    rule = JointGuidance(video=2.0, text=5.0, rescale=False)
    assert rule(4 * p, 3 * p, p, torch.ones(1)).value.item() == 10.0


@pytest.mark.parametrize("std_rescale", [0.0, 0.7])
def test_equal_scales_without_rescaling_are_plain_guidance(generator, std_rescale):
    both, video, none = predictions(generator, 3)
    joint = JointGuidance(video=3.0, text=3.0, rescale=False, std_rescale=std_rescale)(both, video, none, ones())
    plain = Guidance(omega=3.0, rescale=False, std_rescale=std_rescale)(both, none, ones())
    torch.testing.assert_close(joint.value, plain.value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rescale", [True, False])
def test_one_condition_alone_is_guided_by_its_own_scale(generator, rescale):
    """Without words p_both = p_video, without video p_video = p_none; the other scale is idle (1e-8 as above)."""
    cond, none = predictions(generator, 2)
    seen = JointGuidance(video=3.0, text=9.0, rescale=rescale)(cond, cond, none, ones()).value
    read = JointGuidance(video=9.0, text=3.0, rescale=rescale)(cond, none, none, ones()).value
    expected = Guidance(omega=3.0, rescale=rescale)(cond, none, ones()).value
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-6)


def test_each_pair_is_rescaled_by_its_own_projection(generator):
    both, video, none = predictions(generator, 3)
    rule = JointGuidance(video=3.0, text=2.0, clamp=(0.0, 10.0))
    guided = rule(both, video, none, ones())
    s_1, s_2 = guided.s_star[:, 0, None, None], guided.s_star[:, 1, None, None]
    assert inner(video - s_1 * none, none).abs().max() < 1e-6
    assert inner(both - s_2 * video, video).abs().max() < 1e-6
    expected = both + 2 * (video - s_1 * none) + (both - s_2 * video)
    torch.testing.assert_close(guided.value, expected, rtol=0, atol=1e-12)
    scaled = rule(both, 1.3 * video, 0.7 * none, ones()).value - both - 2 * 1.3 * (video - s_1 * none)
    torch.testing.assert_close(scaled, both - s_2 * video, rtol=0, atol=1e-6)


def test_separate_scales_of_one_and_times_outside_give_the_whole_condition(generator):
    both, video, none = predictions(generator, 3)
    assert not JointGuidance().active
    torch.testing.assert_close(JointGuidance()(both, video, none, ones()).value, both, rtol=0, atol=0)
    rule = JointGuidance(video=4.0, text=2.0, std_rescale=0.5, interval=(0.0, 0.5))
    t = torch.tensor([0.0, 0.5, 0.51, 0.8, 1.0], dtype=torch.float64)
    inside = (rule(both, video, none, t).value != both).flatten(1).any(1)
    assert inside.tolist() == [True, True, False, False, False]


def test_evaluations_per_prediction():
    assert (Guidance().evaluations, Guidance(omega=2.0).evaluations) == (1, 2)
    joint = [JointGuidance(), JointGuidance(video=2.0), JointGuidance(text=2.0)]
    assert [rule.evaluations for rule in joint] == [1, 3, 3]


def test_default_scales_push_equally_far_at_any_number_of_steps():
    """Data of mean m = 1 and deviation 0.5, all data N(0, 1.25): the class mean is pushed to 1.37 to 1.40 m.

    The mean of an affine flow moves as a point does, so the path of e = 0 is the path of the mean. 4.5, right for 25
    steps, pushes one step to 4.5 m, which is what the table is for.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    cond, everything = GaussianFlow(mu=one, s=0.5 * one), GaussianFlow(mu=0 * one, s=1.25**0.5 * one)

    def mean(steps, omega):
        rule = Guidance(omega=omega, rescale=False)
        u = lambda x, r, t: rule(cond.u(x, r, t), everything.u(x, r, t), t).value  # noqa: E731
        return sample(u, torch.zeros(1, 1, 1, dtype=torch.float64), time_grid(steps)).item()

    assert [mean(n, default_omega(n)) for n in (1, 2, 4, 25)] == pytest.approx([1.39] * 4, abs=0.02)
    assert mean(8, default_omega(8)) == pytest.approx(1.39, abs=0.03)
    assert mean(1, 4.5) == pytest.approx(4.5)


def test_default_scales_interpolate_and_never_fall():
    scales = [default_omega(n) for n in range(1, 101)]
    assert scales == sorted(scales)
    assert [default_omega(n) for n, _ in DEFAULT_OMEGA] == pytest.approx([omega for _, omega in DEFAULT_OMEGA])
    assert default_omega(10) == pytest.approx(3.625)  # log(10 / 4) / log(25 / 4) = 1 / 2
    assert scales[-1] == 4.5
    with pytest.raises(ValueError, match="num_steps"):
        default_omega(0)


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


@pytest.mark.parametrize(
    "bad",
    [
        {"omega": -1.0}, {"clamp": (2.0, 1.0)}, {"interval": (0.5, 0.2)}, {"std_rescale": 1.5}, {"parallel": -0.1},
        {"rms_threshold": 0.0},
    ],
)  # fmt: skip
def test_wrong_values_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Guidance(**bad)


@pytest.mark.parametrize(
    "bad", [{"video": -1.0}, {"text": -1.0}, {"clamp": (2.0, 1.0)}, {"interval": (0.5, 0.2)}, {"std_rescale": -0.1}]
)
def test_wrong_separate_values_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        JointGuidance(**bad)
