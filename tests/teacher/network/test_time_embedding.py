"""Smooth time embeddings: a part of the published table, fitted to what the whole table computed."""

import copy
from dataclasses import replace

import pytest
import torch

from teacher.network.embeddings import (
    FIT_INTERVALS,
    FIT_RIDGE,
    SMOOTH_LIMIT,
    TimestepEmbedder,
    compare_embeddings,
    fit_smooth,
)
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant
from tests.teacher.network.test_network import small

HIDDEN = 128


def published(seed=0, fast=1.0, hidden=HIDDEN):
    """A v2 embedding with weights of unit gain; those of frequencies that smooth ones lack times `fast`."""
    torch.manual_seed(seed)
    made = TimestepEmbedder(hidden, "v2").double()
    slow = TimestepEmbedder(hidden, "v2", frequencies="smooth").features // 2
    with torch.no_grad():
        for layer in (made.mlp[0], made.mlp[2]):
            layer.weight.normal_(std=hidden**-0.5)
            layer.bias.normal_(std=0.1)
        made.mlp[0].weight.view(hidden, 2, -1)[:, :, :-slow].mul_(fast)
    return made


def smooth(hidden=HIDDEN):
    return TimestepEmbedder(hidden, "v2", frequencies="smooth").double()


def fitted(base):
    made = smooth(base.table)
    return made, fit_smooth(made, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [4, 6, 16, 18, 64, 448, 896])
def test_smooth_frequencies_are_the_published_ones_up_to_the_limit(hidden, dtype):
    whole, part = TimestepEmbedder(hidden, "v2"), TimestepEmbedder(hidden, "v2", frequencies="smooth")
    w, slow = whole.frequencies(torch.zeros(1, dtype=dtype)), part.frequencies(torch.zeros(1, dtype=dtype))
    assert torch.equal(slow, w[len(w) - len(slow) :])
    assert (slow <= SMOOTH_LIMIT * (1 + 1e-6)).all()
    assert (w[: len(w) - len(slow)] > SMOOTH_LIMIT * (1 + 1e-6)).all()
    for embedder, table in ((whole, w), (part, slow)):
        assert embedder.fastest == pytest.approx(table.max().item(), rel=1e-6)


@pytest.mark.parametrize("frequencies", ["published", "smooth"])
def test_v1_is_what_it_was_to_the_bit(frequencies):
    """256 features of w_i = 10000^(-2i/256), in either mode, and the formula written out gives the same bits."""
    torch.manual_seed(0)
    embedder = TimestepEmbedder(16, "v1", frequencies=frequencies)
    t = torch.rand(9)
    phases = t[:, None] * (1.0 / 10_000.0 ** (torch.arange(0, 256, 2, dtype=torch.float32) / 256))
    assert torch.equal(embedder(t), embedder.mlp(torch.cat([phases.cos(), phases.sin()], dim=1)))


def test_fit_of_a_slow_embedding_is_exact():
    """Weights of the shared frequencies are taken over, so that nothing is left to fit where only they are used."""
    base = published(fast=0.0)
    made, fit = fitted(base)
    assert fit.error < 1e-12
    t = torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(made(t), base(t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [0.01, 0.1])
def test_error_is_in_proportion_to_the_fast_part(fast):
    """To first order what is missed is linear in the weights of the fast frequencies; the second is below a tenth."""
    tenth, whole = (fitted(published(fast=f))[1].error for f in (fast / 10, fast))
    assert whole == pytest.approx(10 * tenth, rel=0.1)


def test_half_the_power_of_random_weights_is_missed():
    """Every frequency carries the same power, and half of them are left out: sqrt(1/2) of what varies is missed.

    SiLU turns some of the rest into sums and differences of frequencies, slow ones among them; hence a tenth around it.
    """
    for seed in range(3):
        _, fit = fitted(published(seed))
        assert 0.9 * 0.5**0.5 < fit.variation < 1.1 * 0.5**0.5
        assert fit.error < fit.variation


def test_fit_is_the_stated_minimum():
    """The gradient of ||H W - E||^2 + ridge ||W - W0||^2 vanishes at the weights found, not at those taken over."""
    base = published()
    made, _ = fitted(base)
    t = torch.linspace(0, 1, FIT_INTERVALS + 1, dtype=torch.float64)
    phases = made.phases(t)
    hidden = made.mlp[:2](torch.cat([phases.cos(), phases.sin()], dim=1)).detach()
    h = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    ridge = FIT_RIDGE * h.square().sum(0).mean()

    def layer(embedder):
        return torch.cat([embedder.mlp[2].weight, embedder.mlp[2].bias[:, None]], dim=1).T.detach()

    def gradient(w):
        w = w.clone().requires_grad_()
        loss = (h @ w - base(t).detach()).square().sum() + ridge * (w - layer(base)).square().sum()
        return torch.autograd.grad(loss, w)[0].norm()

    assert gradient(layer(made)) < 1e-8 * gradient(layer(base))


def test_what_is_compared_is_left_alone():
    base = published()
    before = copy.deepcopy(base.state_dict())
    made, fit = fitted(base)
    assert all(torch.equal(before[n], p) for n, p in base.state_dict().items())
    assert compare_embeddings(made, base) == fit
    assert compare_embeddings(base, base).error == 0.0


@pytest.mark.parametrize("other", [(HIDDEN, "v1"), (64, "v2"), (HIDDEN, "v2", "float32", "smooth")])
def test_only_published_embeddings_of_the_same_kind_are_followed(other):
    with pytest.raises(ValueError, match="of the same version and width"):
        fit_smooth(smooth(), TimestepEmbedder(*other))


def test_fit_survives_single_precision():
    """Weights stored in float32 and phases computed in it: 100 rad are right to 100 * 2^-24 * 2 = 1e-5 rad."""
    base = published(fast=0.01)
    made, fit = fitted(base)
    single = copy.deepcopy(made).float()
    t = torch.rand(200, dtype=torch.float64)
    with torch.no_grad():
        error = (single(t.float()).double() - base(t.float().double())).square().mean().sqrt()
        assert (error / base(t).square().mean().sqrt()).item() == pytest.approx(fit.error, rel=0.3)


def test_both_embeddings_of_a_network_are_smooth_and_guidance_stays_v1():
    config = small(version="v2", interval_embedding=True, guidance_embedding=True, time_frequencies="smooth")
    net = MMAudio(config)
    assert net.t_embed.fastest == net.interval_embed.fastest <= SMOOTH_LIMIT
    assert (net.guidance_embed.fastest, net.guidance_embed.features) == (1.0, 256)
    assert MMAudio(replace(config, time_frequencies="published")).interval_embed.fastest == 1e4


def test_networks_too_narrow_to_keep_any_frequency_are_refused():
    with pytest.raises(ValueError, match="hidden width of at least 4"):
        replace(small(version="v2", time_frequencies="smooth"), num_heads=1, head_dim=2)
    with pytest.raises(ValueError, match="time_frequencies must be one of published, smooth"):
        small(time_frequencies="slow")


@pytest.mark.parametrize("name", ["small_16k", "large_44k_v2"])
def test_published_networks_keep_their_parameters(name):
    with torch.device("meta"):
        shape = MMAudio(variant(name)).t_embed.mlp[0].weight.shape
        halved = MMAudio(replace(variant(name), time_frequencies="smooth")).t_embed.mlp[0].weight.shape
    assert shape == {"small_16k": (448, 256), "large_44k_v2": (896, 896)}[name]
    assert halved == {"small_16k": (448, 256), "large_44k_v2": (896, 448)}[name]
