"""Gaussian mixtures: what their velocity, flow map and guided flow must satisfy, by means other than the quadrature."""

import math

import pytest
import torch

from meanflow import CentralDifference, ForwardAD, GaussianFlow, MixedGuidance, expand_right
from meanflow.derivative import identity_residual
from meanflow.mixture import GuidedFlow, MixtureFlow, Quadrature

DOUBLE = {"dtype": torch.float64}


@pytest.fixture
def flow():
    """Three components in a latent of 2 frames and 1 channel, with deviations of their own."""
    return MixtureFlow(
        weights=torch.tensor([0.2, 0.3, 0.5], **DOUBLE),
        mu=torch.tensor([[[1.0], [0.5]], [[-1.0], [0.3]], [[0.2], [-1.2]]], **DOUBLE),
        s=torch.tensor([[[0.5], [0.6]], [[0.6], [0.4]], [[0.45], [0.45]]], **DOUBLE),
    )


@pytest.fixture
def line():
    """On a line, where the flow map has a second definition."""
    return MixtureFlow(
        weights=torch.tensor([0.3, 0.7], **DOUBLE),
        mu=torch.tensor([[[1.0]], [[-0.8]]], **DOUBLE),
        s=torch.tensor([[[0.3]], [[0.5]]], **DOUBLE),
    )


@pytest.fixture
def states(generator):
    x_t = torch.randn(12, 2, 1, generator=generator, **DOUBLE)
    t = torch.rand(12, generator=generator, **DOUBLE)
    r = t * torch.rand(12, generator=generator, **DOUBLE)
    t[:3], r[1:4] = 1.0, 0.0
    return x_t, r, t


def test_one_component_is_the_gaussian_flow(generator):
    x_t = torch.randn(8, 2, 3, generator=generator, **DOUBLE)
    t = torch.linspace(0, 1, 8, **DOUBLE)
    r = t * torch.tensor([0.0, 1.0, 0.5, 0.0, 0.999, 1.0, 0.3, 0.0], **DOUBLE)
    mu = torch.randn(1, 2, 3, generator=generator, **DOUBLE)
    alone = MixtureFlow(weights=torch.ones(1, **DOUBLE), mu=mu, s=torch.tensor(0.3, **DOUBLE))
    exact = alone.conditional(0)
    assert isinstance(exact, GaussianFlow)
    torch.testing.assert_close(alone.v(x_t, t), exact.v(x_t, t), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(alone.flow(x_t, r, t), exact.flow(x_t, r, t), rtol=1e-10, atol=1e-10)


def test_velocity_follows_from_the_gradient_of_the_density(flow, states):
    """grad log p_t = -E[e | x_t] / t (Tweedie) and E[e | x_t] = x_t + (1 - t) v."""
    x_t, _, t = states
    x_t = x_t.requires_grad_()
    (score,) = torch.autograd.grad(flow.log_density(x_t, t).sum(), x_t)
    t_ = expand_right(t, x_t)
    torch.testing.assert_close(-score * t_, x_t + (1 - t_) * flow.v(x_t, t), rtol=0, atol=1e-11)


def test_density_integrates_to_one_at_every_time(line):
    """Trapezoidal rule over [-8, 8] in steps of 0.01, far below the narrowest deviation: exact to rounding."""
    x = torch.linspace(-8, 8, 1601, **DOUBLE)[:, None, None]
    for t in (0.0, 0.3, 1.0):
        mass = line.log_density(x, torch.full((1601,), t, **DOUBLE)).exp().sum() * 0.01
        assert float(mass) == pytest.approx(1.0, abs=1e-10)


def test_flow_map_keeps_quantiles(line):
    """On a line a flow keeps the order of points: F_r(flow(x_t)) = F_t(x_t) with the distribution functions F."""

    def distribution(x, t):
        t_ = expand_right(t, x)
        parts = [line.conditional(k) for k in range(2)]
        z = [(x - part.mean(t_)) / part.std(t_) for part in parts]
        return sum(w * torch.special.ndtr(y) for w, y in zip(line.weights, z, strict=True))

    x_t = torch.linspace(-2.5, 2.5, 21, **DOUBLE)[:, None, None]
    for t, r in [(1.0, 0.0), (0.2, 0.9)]:
        t_, r_ = torch.full((21,), t, **DOUBLE), torch.full((21,), r, **DOUBLE)
        # Densities are at most 4, the flow map is good to 1e-9.
        torch.testing.assert_close(distribution(line.flow(x_t, r_, t_), r_), distribution(x_t, t_), rtol=0, atol=1e-9)


@pytest.mark.parametrize("guided", [False, True])
def test_short_steps_agree_with_long_ones(flow, states, guided):
    """Half the longest step and a tenth of the tolerance against the default: to the 1e-9 that is promised."""
    field = GuidedFlow(cond=flow.conditional(0), uncond=flow, omega=3.0) if guided else flow
    fine = Quadrature(scale=0.2, tolerance=1e-13, longest=1 / 8).u(field.v, *states)
    torch.testing.assert_close(field.u(*states), fine, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("derivative", "bound"), [(ForwardAD(), 1e-8), (CentralDifference(eps=1e-4), 1e-5)])
def test_identity(flow, states, derivative, bound):
    """u + (t - r) du/dt = v. Differences are off by eps^2 / 6 times the third derivative, a few (1 / 0.4)^3, and by
    the quadrature's 1e-10 / eps."""
    x_t, r, t = (a[5:8] for a in states)
    r, rule = 0.5 * (r + t), Quadrature(scale=0.4, longest=1.0)

    def u_fn(x_t, r, t):
        return rule.u(flow.v, x_t, r, t)

    v, u = flow.v(x_t, t), u_fn(x_t, r, t)
    dudt = derivative(u_fn, x_t, r, t, v)
    assert identity_residual(u, dudt, v, r, t).abs().max() < bound
    assert (u - expand_right(t - r, u) * dudt - v).abs().max() > 0.1


def test_average_meets_the_velocity_where_the_interval_closes(flow, states):
    x_t, _, t = states
    torch.testing.assert_close(flow.u(x_t, t, t), flow.v(x_t, t), rtol=1e-12, atol=1e-12)
    # u(r) - v(t) is (t - r) / 2 times the acceleration, a few tens.
    torch.testing.assert_close(flow.u(x_t, (t - 1e-9).clamp_min(0), t), flow.v(x_t, t), rtol=0, atol=1e-6)


def test_velocity_is_continuous_at_both_ends(flow, states):
    """At t = 0 the mean of e given x is 0 and v = -x exactly; at t = 1 v = x_t - E[x]."""
    x_t, zero = states[0], torch.zeros(12, **DOUBLE)
    torch.testing.assert_close(flow.v(x_t, zero), -x_t, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(flow.v(x_t, zero + 1e-12), -x_t, rtol=0, atol=1e-9)
    far = 1e4 * x_t
    assert bool(torch.isfinite(flow.v(far, zero)).all())
    mean = torch.einsum("k,knc->nc", flow.weights, flow.mu)
    torch.testing.assert_close(flow.v(x_t, zero + 1), x_t - mean, rtol=1e-13, atol=1e-13)


def test_noise_arrives_with_the_moments_of_the_data(line):
    """Points at the mid-quantiles of N(0, 1): the error of such a sum is below 1e-3 at 1000 points."""
    n = 1000
    e = torch.special.ndtri((torch.arange(n, **DOUBLE) + 0.5) / n)[:, None, None]
    one = torch.ones(n, **DOUBLE)
    x = line.flow(e, 0 * one, one)
    mean = 0.3 * 1.0 - 0.7 * 0.8
    second = 0.3 * (1.0 + 0.09) + 0.7 * (0.64 + 0.25)
    assert float(x.mean()) == pytest.approx(mean, abs=1e-3)
    assert float(x.square().mean()) == pytest.approx(second, abs=3e-3)
    drawn = line.sample(20_000, 1, 1, generator=torch.Generator().manual_seed(0))
    # Four standard errors of a mean with deviation 0.95.
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * 0.95 / math.sqrt(20_000))


def test_a_row_does_not_depend_on_its_batch(flow, states):
    x_t, r, t = states
    torch.testing.assert_close(flow.u(x_t, r, t)[3:4], flow.u(x_t[3:4], r[3:4], t[3:4]), rtol=1e-13, atol=1e-13)


def test_shared_deviations_may_be_given_short(flow, states):
    """s of shape (K, 1, 1) or () stands for the same number in every coordinate."""
    x_t, _, t = states
    for short in (torch.tensor([0.3, 0.5, 0.7], **DOUBLE)[:, None, None], torch.tensor(0.4, **DOUBLE)):
        brief = MixtureFlow(weights=flow.weights, mu=flow.mu, s=short)
        full = MixtureFlow(weights=flow.weights, mu=flow.mu, s=short.expand(3, 2, 1))
        torch.testing.assert_close(brief.v(x_t, t), full.v(x_t, t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(brief.log_density(x_t, t), full.log_density(x_t, t), rtol=1e-12, atol=1e-12)


def test_subset_and_mixture_agree_by_total_probability(flow, states):
    """v = sum over classes of P(class | x_t) v_class, for the classes {0, 2} and {1}."""
    x_t, _, t = states
    gamma = flow.responsibilities(x_t, t)
    torch.testing.assert_close(gamma.sum(1), torch.ones(12, **DOUBLE))
    parts = flow.subset([0, 2]).v(x_t, t), flow.conditional(1).v(x_t, t)
    weight = expand_right(gamma[:, 1], x_t)
    torch.testing.assert_close((1 - weight) * parts[0] + weight * parts[1], flow.v(x_t, t), rtol=1e-12, atol=1e-12)


def test_guided_flow_of_equal_deviations_is_linear_in_omega(generator):
    """N(m, s^2) in N(0, s^2): v_c - v_u = -m t / sig_t^2 at every x, so plain guidance on u is exact at one step."""
    s = torch.full((1, 3), 0.4, **DOUBLE)
    cond, uncond = GaussianFlow(mu=torch.ones(1, 3, **DOUBLE), s=s), GaussianFlow(mu=torch.zeros(1, 3, **DOUBLE), s=s)
    e, one = torch.randn(5, 1, 3, generator=generator, **DOUBLE), torch.ones(5, **DOUBLE)
    c, u = cond.u(e, 0 * one, one), uncond.u(e, 0 * one, one)
    guided = GuidedFlow(cond=cond, uncond=uncond, omega=4.0).u(e, 0 * one, one)
    torch.testing.assert_close(guided, u + 4 * (c - u), rtol=0, atol=1e-9)


def test_guided_flow_contracts_geometrically_where_plain_guidance_does_so_linearly(generator):
    """N(0, s^2) in N(0, S^2): v = x d log(sig) / dt, so the guided flow ends at e s^omega S^(1 - omega); one plain step
    ends at e (omega s + (1 - omega) S), of the wrong sign at omega 3 for s 0.5, S 0.9: 0.154 e against -0.3 e."""
    zero = torch.zeros(1, 3, **DOUBLE)
    cond, uncond = GaussianFlow(mu=zero, s=zero + 0.5), GaussianFlow(mu=zero, s=zero + 0.9)
    e, one = torch.randn(5, 1, 3, generator=generator, **DOUBLE), torch.ones(5, **DOUBLE)
    x = GuidedFlow(cond=cond, uncond=uncond, omega=3.0).flow(e, 0 * one, one)
    torch.testing.assert_close(x, 0.5**3 * 0.9**-2 * e, rtol=1e-9, atol=1e-9)
    c, u = cond.u(e, 0 * one, one), uncond.u(e, 0 * one, one)
    torch.testing.assert_close(e - (u + 3 * (c - u)), -0.3 * e, rtol=1e-12, atol=1e-12)


def test_mixed_guidance_settles_at_the_guided_flow(flow, states):
    """When the network's own conditional velocity is v_g, the target of omega 0.3, kappa 0.9 is v_g of omega 3."""
    x_t, _, t = states
    cond = flow.conditional(2)
    guided = GuidedFlow(cond=cond, uncond=flow, omega=3.0).v(x_t, t)
    target = MixedGuidance(omega=0.3, kappa=0.9)(cond.v(x_t, t), guided, flow.v(x_t, t), t)
    torch.testing.assert_close(target, guided, rtol=1e-12, atol=1e-12)


def test_single_precision_goes_in_and_comes_out(flow, states):
    x_t, r, t = (a.float() for a in states)
    u = flow.u(x_t, r, t)
    assert u.dtype == flow.v(x_t, t).dtype == torch.float32
    torch.testing.assert_close(flow.flow(x_t, r, t), x_t - expand_right(t - r, x_t) * u)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("weights", {"weights": torch.tensor([0.5, 0.6])}),
        ("weights", {"weights": torch.ones(3) / 3}),
        ("mu", {"mu": torch.zeros(2, 3)}),
        ("s", {"s": torch.tensor(-1.0)}),
        ("s", {"s": torch.ones(5, 1, 1)}),
    ],
)
def test_wrong_mixtures_are_named(name, bad):
    with pytest.raises(ValueError, match=f"^{name}"):
        MixtureFlow(**({"weights": torch.tensor([0.5, 0.5]), "mu": torch.zeros(2, 1, 3), "s": torch.tensor(1.0)} | bad))


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"tolerance": 1e-16}, {"longest": 2.0}, {"max_steps": 0}])
def test_wrong_quadratures_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Quadrature(**bad)


def test_quadrature_gives_up_aloud(flow, states):
    with pytest.raises(ArithmeticError, match="max_steps"):
        Quadrature(max_steps=1).u(flow.v, *states)
    with pytest.raises(ArithmeticError, match="not finite"):
        Quadrature().u(lambda x, t: x / 0, *states)
