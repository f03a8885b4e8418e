"""Densities of a time, pairs of times, and the published samplers."""

import json
import math
from typing import get_args

import pytest
import torch

from meanflow.config import dumps, from_plain
from meanflow.time_sampling import (
    PUBLISHED,
    Capped,
    Density,
    Gap,
    LogitNormal,
    MixedTimes,
    Ordered,
    Pairs,
    Shifted,
    TimePairs,
    Times,
    Uniform,
    other_clock,
)  # fmt: skip


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("pairs", [TimePairs(), TimePairs(fm_fraction=0.3, full_fraction=0.4)])
@pytest.mark.parametrize("n", [1, 16, 37])
def test_time_pairs_keep_their_numbers(pairs, n):
    """The draws and the rounding that earlier runs were made with: two normals, then a permutation of ranks."""
    g = torch.Generator().manual_seed(5)
    a, b = (torch.sigmoid(-0.4 + 1.0 * torch.randn(n, generator=g)) for _ in range(2))
    order = torch.randperm(n, generator=g)
    num_fm = round(pairs.fm_fraction * n)
    num_full = round(pairs.full_fraction * (n - num_fm))
    r, t = torch.minimum(a, b), torch.maximum(a, b)
    r = torch.where(order < num_fm, t, r)
    full = (order >= num_fm) & (order < num_fm + num_full)
    r, t = torch.where(full, 0.0, r), torch.where(full, 1.0, t)
    made = pairs(n, generator=torch.Generator().manual_seed(5), progress=0.5)
    torch.testing.assert_close(made, (r, t), rtol=0, atol=0)


def test_pairs_are_ordered_and_shares_are_exact(generator):
    r, t = TimePairs(fm_fraction=0.25, full_fraction=0.5)(200, generator=generator)
    assert bool((r <= t).all())
    assert int((r == t).sum()) == 50
    assert int(((r == 0) & (t == 1)).sum()) == 75


def test_rows_are_assigned_at_random(generator):
    for times in (TimePairs(fm_fraction=0.5), MixedTimes(fm_fraction=0.5)):
        r, t = times(1000, generator=generator)
        first = (r == t)[:500].float().mean().item()
        assert 0.4 < first < 0.6  # 500 of 1,000 without replacement: standard deviation 0.016


@pytest.mark.parametrize("mean", [-0.4, 0.7])
def test_logit_normal_has_its_median_at_the_sigmoid_of_the_mean(generator, mean):
    t = LogitNormal(mean=mean)(100_000, generator=generator)
    assert t.median().item() == pytest.approx(sigmoid(mean), abs=0.005)


def test_same_generator_state_same_times():
    for times in (TimePairs(), *PUBLISHED.values()):
        a, b = (times(16, generator=torch.Generator().manual_seed(3)) for _ in range(2))
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_uniform_bounds(generator):
    t = Uniform(low=0.2, high=0.3)(1000, generator=generator)
    assert t.min() >= 0.2
    assert t.max() <= 0.3


def test_shift_moves_a_half_to_five_sixths():
    """5 / 2 / (1 + 4 / 2) = 5 / 6; the ends stay."""
    t = Shifted(shift=5.0).at(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(t, torch.tensor([0.0, 5 / 6, 1.0]))


@pytest.mark.parametrize(
    "density",
    [
        Uniform(low=0.1, high=0.4),
        LogitNormal(mean=-0.4, scale=1.6),
        Shifted(),
        Shifted(density=LogitNormal(), shift=3.0),
    ],
)
def test_other_clock_is_one_minus_t_on_mirrored_draws(density):
    """A normal draw mirrors to -z, a uniform one to 1 - u; twice is the identity."""
    inner = density.density if isinstance(density, Shifted) else density
    draw = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    mirrored = 1 - draw if isinstance(inner, Uniform) else -draw
    torch.testing.assert_close(other_clock(density).at(mirrored), 1 - density.at(draw), rtol=0, atol=1e-14)
    torch.testing.assert_close(other_clock(other_clock(density)).at(draw), density.at(draw), rtol=0, atol=1e-14)


def test_every_density_has_another_clock():
    for kind in get_args(Density):
        assert isinstance(other_clock(kind()), kind)


def test_truncated_draws_fill_the_part_below_the_bound():
    """F(r) = u F(bound): at u = 1/2, bound at the median, r is the quartile sigmoid(mean + scale Phi^-1(1/4))."""
    density = LogitNormal(mean=-0.4, scale=1.3)
    bound = torch.tensor([sigmoid(-0.4), 1.0, 0.0, 0.3], dtype=torch.float64)
    r = density.below(bound, torch.tensor([0.5, 0.5, 0.5, 0.999999], dtype=torch.float64))
    quartile = sigmoid(-0.4 - 1.3 * 0.6744897501960817)
    torch.testing.assert_close(r, torch.tensor([quartile, sigmoid(-0.4), 0.0, 0.3]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pairs", [kind() for kind in get_args(Pairs)])
def test_free_pairs_are_ordered_within_the_unit_interval(pairs, generator):
    r, t = MixedTimes(pairs=pairs, fm_fraction=0.0)(20_000, generator=generator)
    assert bool(((r >= 0) & (r <= t) & (t <= 1)).all())


def test_gap_is_drawn_first_and_kept(generator):
    """The gap is logit-normal whatever r is: its median is sigmoid(-0.8) = 0.310."""
    pairs = Gap()
    a, b = pairs.draw(100_000, generator=generator)
    r, t = pairs.at(a, b)
    torch.testing.assert_close(t - r, pairs.gap.at(a), rtol=0, atol=1e-6)
    assert (t - r).median().item() == pytest.approx(sigmoid(-0.8), abs=0.005)


def test_capped_draws_above_t_become_t():
    a, b = torch.tensor([0.0, 0.0]), torch.tensor([5.0, 0.0])
    r, t = Capped(late=LogitNormal(mean=0.0), early=LogitNormal(mean=-1.0)).at(a, b)
    torch.testing.assert_close(t, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(r, torch.tensor([0.5, sigmoid(-1.0)]))


def test_shares_are_rounded_down_and_stand_at_the_front():
    """7 rows: floor(3.5) = 3 with r = t, floor(1.4) = 1 with r = 0, floor(0.7) = 0 on the corner; then one of 10."""
    times = MixedTimes(fm_fraction=0.5, zero_fraction=0.2, corner_fraction=0.1, assign="prefix")
    r, t = times(7, generator=torch.Generator().manual_seed(1))
    assert (r == t).tolist() == [True] * 3 + [False] * 4
    assert (r == 0).tolist() == [False] * 3 + [True] + [False] * 3
    r, t = times(10, generator=torch.Generator().manual_seed(1))
    assert ((r == 0) & (t == 1)).tolist() == [False] * 7 + [True] + [False] * 2


def test_share_of_flow_matching_follows_progress(generator):
    times = MixedTimes(fm_fraction=0.75, fm_fraction_end=0.25)
    for progress, count in ((0.0, 75), (0.5, 50), (1.0, 25)):
        r, t = times(100, generator=generator, progress=progress)
        assert int((r == t).sum()) == count


def test_flow_matching_rows_have_the_density_asked_for(generator):
    """Without one, t is the larger of two: P(t <= median) = 1/4, so its upper quartile of medians moves."""
    for density, below in ((None, 0.25), (LogitNormal(), 0.5)):
        r, t = MixedTimes(fm_fraction=1.0, fm_density=density)(40_000, generator=generator)
        assert bool((r == t).all())
        # A fraction of 40,000 has a standard deviation of at most 0.0025.
        assert (t <= sigmoid(-0.4)).float().mean().item() == pytest.approx(below, abs=0.01)


def test_intervals_are_no_longer_than_the_bound(generator):
    """Longer pairs keep t and end at t - 0.2, shorter ones stay as they were."""
    free, bound = MixedTimes(fm_fraction=0.0), MixedTimes(fm_fraction=0.0, max_gap=0.2)
    r, t = free(5000, generator=torch.Generator().manual_seed(2))
    r_bound, t_bound = bound(5000, generator=torch.Generator().manual_seed(2))
    assert 0.1 < (t - r > 0.2).float().mean() < 0.9
    torch.testing.assert_close(t_bound, t, rtol=0, atol=0)
    torch.testing.assert_close(r_bound, torch.where(t - r > 0.2, t - 0.2, r), rtol=0, atol=1e-7)


SHARES = {
    "meanflow_imagenet": (0.75, 0.0), "improved_meanflow": (0.5, 0.0), "decoupled_meanflow": (0.5, 0.0),
    "transition": (0.5, 0.1), "terminal_velocity": (0.0, 0.0), "anyflow": (0.5, 0.25), "meanaudio": (0.75, 0.0),
}  # fmt: skip
"""P(r = t) and P(r = 0) of the published samplers with exact counts."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shares(name, generator):
    """Exact counts where rows are dealt out; else four standard deviations of 20,000 independent rows, 0.013."""
    times, n = PUBLISHED[name], 20_000
    r, t = times(n, generator=generator, progress=0.0)
    assert bool(((r >= 0) & (r <= t) & (t <= 1)).all())
    same, zero = (r == t).float().mean().item(), (r == 0).float().mean().item()
    if name in SHARES:
        # Two float32 draws coincide about once in 10^7 rows' pairs, and a draw of 0 is no likelier.
        assert (same, zero) == pytest.approx(SHARES[name], abs=2 / n)
    elif name == "meanflow_cifar_v1":
        # Also r drawn above t: P(late < early) = Phi(-3.4 / (1.6 sqrt 2)) = Phi(-1.5026) = 0.0665.
        assert same == pytest.approx(0.25 + 0.75 * 0.0665, abs=0.013)
    else:
        assert same == pytest.approx({"meanflow_cifar_v0": 0.25, "voxcpm": 0.75}[name], abs=0.013)


@pytest.mark.parametrize(
    ("name", "which", "median"),
    [
        # A free pair's t has its 1/2 quantile where both draws lie below: Phi(z)^2 = 1/2, z = 0.5449521; r at -z.
        ("meanflow_imagenet", "t", sigmoid(-0.4 + 0.5449521)),
        ("meanflow_imagenet", "r", sigmoid(-0.4 - 0.5449521)),
        ("meanflow_cifar_v0", "t", sigmoid(-2.0 + 2.0 * 0.5449521)),
        ("meanflow_cifar_v1", "t", sigmoid(-0.6)),
        # Phi((m - 0.4) / 1) Phi((m + 1.2) / 1) = 1/2 at m = 0.47 (0.5279 x 0.9525 = 0.5028): solved below.
        ("decoupled_meanflow", "t", None),
        # The larger of two uniforms has its median at sqrt(1/2) = 0.7071; shifted, 5 q / (1 + 4 q) = 0.9235.
        ("anyflow", "t", 5 * 0.5**0.5 / (1 + 4 * 0.5**0.5)),
    ],
)
def test_published_medians(name, which, median, generator):
    """Medians of the pairs before any row is set aside; 100,000 draws put them within 0.008."""
    pairs = PUBLISHED[name].pairs
    r, t = pairs.at(*pairs.draw(100_000, generator=generator))
    if median is None:
        m = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
        both = torch.special.ndtr(m - 0.4) * torch.special.ndtr(m + 1.2)
        median = sigmoid(float(m[(both - 0.5).abs().argmin()]))
    assert (t if which == "t" else r).median().item() == pytest.approx(median, abs=0.008)


def test_share_of_the_annealed_sampler(generator):
    """VoxCPM: P(r != t) from 0.25 to 0.75, standard deviation 0.003 in 20,000 rows."""
    for progress, fraction in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.75)):
        r, t = PUBLISHED["voxcpm"](20_000, generator=generator, progress=progress)
        assert (r < t).float().mean().item() == pytest.approx(fraction, abs=0.013)


@pytest.mark.parametrize("times", [TimePairs(), MixedTimes(max_gap=0.3), *PUBLISHED.values()])
def test_samplers_survive_the_file(times):
    assert from_plain(Times, json.loads(dumps(times))) == times


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fm_fraction": 1.5}, "fm_fraction must lie"),
        ({"fm_fraction_end": -0.1}, "fm_fraction_end must lie"),
        ({"fm_fraction": 0.5, "fm_fraction_end": 0.9, "zero_fraction": 0.2}, "add up to at most 1"),
        ({"max_gap": 0.0}, "max_gap must lie"),
        ({"max_gap": 0.5, "zero_fraction": 0.1}, "max_gap must be 1"),
        ({"assign": "front"}, "assign"),
    ],
)
def test_wrong_values_are_named(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):  # the shape checker of the tests is first for a word
        MixedTimes(**wrong)


def test_ordered_pairs_may_have_two_densities():
    """max and min over both draws, whichever density they are from."""
    pairs = Ordered(first=Uniform(), second=LogitNormal(mean=0.0))
    r, t = pairs.at(torch.tensor([0.1, 0.9]), torch.tensor([0.0, 0.0]))
    torch.testing.assert_close((r, t), (torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.9])))
