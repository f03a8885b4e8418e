"""Corpus metrics against closed forms, brute force and torch-fidelity: Frechet, KAD, KL, inception score, manifolds."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist

from eval.metrics import kernel
from eval.metrics.inception import inception_jackknife, inception_score
from eval.metrics.kernel import kernel_distance, kernel_jackknife, reference_bandwidth
from eval.metrics.kl import kl_divergence, kl_sigmoid_positive_part
from eval.metrics.manifold import manifold_scores
from eval.metrics.moments import pairwise
from eval.metrics.moments.distance import frechet_distance, nuclear_norm
from eval.metrics.moments.extrapolation import frechet_infinity
from eval.metrics.moments.gaussian import GaussianStats


def drawn(seed, n, d, *, scale=1.0, shift=0.0):
    """Rows with standard deviations falling as 1 / (1 + i / 8), mixed by a rotation that depends on d alone."""
    rotation = np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))[0]
    spread = scale / (1.0 + np.arange(d) / 8.0)
    return (np.random.default_rng(seed).normal(size=(n, d)) * spread) @ rotation + shift


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity's arithmetic on features; it imports torchvision for its image networks."""
    from mf_mjt_torchvision import guard_torchvision

    guard_torchvision()
    return pytest.importorskip("torch_fidelity")


# ---- Frechet distance


@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(12, 15, 40), (30, 30, 30), (20, 200, 30), (31, 40, 30), (300, 200, 24), (500, 400, 3), (90, 80, 1)],
)
def test_both_forms_agree_in_every_regime(n, m, d):
    x, y = drawn(1, n, d), drawn(2, m, d, scale=1.3, shift=0.2)
    moments = frechet_distance(x, y, form="moments")
    assert frechet_distance(x, y, form="rows") == pytest.approx(moments, rel=1e-8)
    assert frechet_distance(x, y) == pytest.approx(moments, rel=1e-8)
    assert frechet_distance(GaussianStats.from_features(x), y) == pytest.approx(moments, rel=1e-8)
    # A 64-bit matrix root of a product of full rank, the way others take it.
    if min(n, m) > d + 50:
        first, second = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
        shift = x.mean(0) - y.mean(0)
        expected = shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real)
        assert moments == pytest.approx(expected, rel=1e-9)


def test_a_copied_dimension_leaves_no_noise():
    # A Cholesky pivot of 1e-16, where rounding makes it positive, would enter as its root.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 4))
        x = np.hstack([x, x @ rng.normal(size=(3, 1))])
        assert frechet_distance(x, y, form="moments") == pytest.approx(frechet_distance(x, y, form="rows"), rel=1e-10)


def test_dead_dimensions_and_a_constant_set_are_no_special_case():
    x, y = drawn(3, 200, 6), drawn(4, 150, 6, scale=1.5)
    wide = [np.hstack([z, np.zeros((len(z), 10))]) for z in (x, y)]  # features a ReLU never lets through
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(x, y), rel=1e-10)
    constant = np.full((9, 6), 0.5)
    expected = float(((x.mean(0) - 0.5) ** 2).sum() + np.trace(np.cov(x.T)))
    assert frechet_distance(x, constant) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(constant, constant + 1.0) == pytest.approx(6.0, rel=1e-12)


def test_equal_sets_give_rounding_of_either_sign_and_never_a_sentinel():
    values = [frechet_distance(drawn(seed, 300, 8), drawn(seed, 300, 8), form="moments") for seed in range(12)]
    assert max(abs(value) for value in values) < 1e-12
    assert min(values) < 0.0  # reported as it is
    with pytest.raises(ValueError, match="row 2"):
        frechet_distance(drawn(0, 5, 2), np.array([[0.0, 1.0], [1.0, 0.0], [np.inf, 0.0]]))
    with pytest.raises(ValueError, match="features themselves"):
        frechet_distance(GaussianStats.from_features(drawn(0, 9, 2)), drawn(0, 9, 2), form="rows")
    with pytest.raises(ValueError, match="form must be"):
        frechet_distance(drawn(0, 9, 2), drawn(0, 9, 2), form="row")


def test_nuclear_norm_keeps_small_singular_values():
    # diag(1, 1e-9): from the eigenvalues of the square the second would be lost in rounding of 1e-16.
    rotation = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    product = rotation @ torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64)) @ rotation
    assert nuclear_norm(product) - 1.0 == pytest.approx(1e-9, rel=1e-5)


def test_extrapolation_of_one_law_is_zero_and_of_two_laws_their_distance():
    # Exact: shift 3^2 d and (1.5 - 1)^2 Tr S.
    d = 5
    trace = float((1.0 / (1.0 + np.arange(d) / 8.0) ** 2).sum())
    same = [frechet_infinity(drawn(k, 600, d), drawn(900 + k, 600, d), seed=k).intercept for k in range(12)]
    plain = np.mean([frechet_distance(drawn(k, 600, d), drawn(900 + k, 600, d)) for k in range(12)])
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(12)
    assert abs(np.mean(same)) < 0.3 * plain
    other = frechet_infinity(drawn(1, 4000, d), drawn(2, 4000, d, scale=1.5, shift=0.3), points=5)
    assert other.intercept == pytest.approx(0.09 * d + 0.25 * trace, rel=0.05)
    assert other.sizes == (1000, 1231, 1600, 2286, 4000)  # 4000 / (4, 3.25, 2.5, 1.75, 1)
    assert other.distances[-1] == pytest.approx(
        frechet_distance(drawn(1, 4000, d), drawn(2, 4000, d, scale=1.5, shift=0.3)), rel=1e-10
    )


def test_extrapolation_is_seeded_and_says_whether_the_reference_shrank():
    x, y = drawn(1, 150, 4), drawn(2, 200, 4, shift=0.2)
    first, again, other = (frechet_infinity(x, y, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.distances[:-1] != other.distances[:-1]
    assert first.reference_shrinks
    fixed = frechet_infinity(GaussianStats.from_features(x), y)
    assert not fixed.reference_shrinks
    assert fixed.distances[-1] == pytest.approx(frechet_distance(x, y), rel=1e-9)
    # The line and its error as numpy finds them.
    fit, covariance = np.polyfit(1.0 / np.array(first.sizes), first.distances, 1, cov=True)
    assert (first.slope, first.intercept) == pytest.approx(tuple(fit), rel=1e-9)
    assert first.standard_error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-9)
    # Pairs of clips stay together: a copy moved by 1/2 in 4 dimensions is 1 away at every size.
    assert frechet_infinity(x, x + 0.5).distances == pytest.approx([1.0] * 15, abs=1e-12)
    with pytest.raises(ValueError, match="smallest must be between 2 and"):
        frechet_infinity(x, y, smallest=200)
    with pytest.raises(ValueError, match="do not fit"):
        frechet_infinity(x, y[:12])


# ---- kernel distance


def kernel_between_gaussians(first, second, bandwidth):
    """100 x MMD^2 of N(mean, covariance) pairs.

    E k(x, y) = det(I + (S_x + S_y) / s^2)^(-1/2) exp(-1/2 shift^T (s^2 I + S_x + S_y)^(-1) shift), s the bandwidth.
    """

    def expected(a, b):
        shift, spread = a[0] - b[0], bandwidth**2 * np.eye(len(a[0])) + a[1] + b[1]
        return np.exp(-0.5 * (np.linalg.slogdet(spread / bandwidth**2)[1] + shift @ np.linalg.solve(spread, shift)))

    return 100 * (expected(first, first) + expected(second, second) - 2 * expected(first, second))


def test_kernel_distance_of_two_gaussians_is_the_closed_form():
    rng, d = np.random.default_rng(0), 4
    roots = [rng.normal(size=(d, d)) for _ in range(2)]
    means = [np.zeros(d), np.full(d, 0.4)]
    expected = kernel_between_gaussians(*((m, r.T @ r) for m, r in zip(means, roots, strict=True)), bandwidth=2.5)
    values = [
        kernel_distance(*(rng.normal(size=(400, d)) @ r + m for m, r in zip(means, roots, strict=True)), bandwidth=2.5)
        for _ in range(20)
    ]
    error = np.std(values, ddof=1) / np.sqrt(20)
    assert abs(np.mean(values) - expected) < 4 * error
    assert error < 0.05 * expected


def test_kernel_distance_of_one_law_averages_to_zero():
    values = [kernel_distance(drawn(k, 80, 6), drawn(300 + k, 60, 6), bandwidth=2.0) for k in range(100)]
    assert abs(np.mean(values)) < 3.5 * np.std(values) / 10
    assert 0.2 < np.mean(np.array(values) < 0) < 0.8


@pytest.mark.parametrize("precision", ["double", "single"])
def test_kernel_distance_and_bandwidth_do_not_depend_on_the_blocks(monkeypatch, precision):
    x, y = drawn(1, 75, 9, shift=3.0), drawn(2, 61, 9, scale=1.4, shift=3.1)
    bandwidth = float(np.median(pdist(x)))
    gamma = 0.5 / bandwidth**2
    within = [np.exp(-gamma * pdist(z, "sqeuclidean")).mean() for z in (x, y)]
    expected = 100 * (sum(within) - 2 * np.exp(-gamma * cdist(x, y, "sqeuclidean")).mean())
    tolerance = 1e-12 if precision == "double" else 1e-7
    for block, bins in ((1024, 1 << 16), (13, 7)):
        monkeypatch.setattr(kernel, "BINS", bins)
        monkeypatch.setattr(pairwise.row_blocks, "__defaults__", (block,))
        assert reference_bandwidth(x) == pytest.approx(bandwidth, rel=1e-12)
        assert kernel_distance(x, y, bandwidth=bandwidth, precision=precision) == pytest.approx(expected, rel=tolerance)


def test_no_block_is_larger_than_the_limit():
    x = torch.zeros(2500, 2, dtype=torch.float64)
    blocks = pairwise.row_blocks(2500)
    shapes = [tuple(block.shape) for _, _, block in pairwise.squared_distances_within(x, blocks)]
    assert shapes == [(1024, 1024), (1024, 1024), (1024, 452), (1024, 1024), (1024, 452), (452, 452)]


def test_bandwidth_is_the_median_distance_of_the_reference():
    x = drawn(1, 50, 4)
    assert reference_bandwidth(x) == pytest.approx(np.median(pdist(x)), rel=1e-12)
    # An even number of pairs: distances 1, 2, 3, 4, 6, 7.
    assert reference_bandwidth(np.array([[0.0], [1.0], [3.0], [7.0]])) == pytest.approx(3.5, rel=1e-14)
    with pytest.raises(ValueError, match="distinct"):  # 45 of 66 pairs are one and the same clip
        reference_bandwidth(np.concatenate([np.full((10, 3), 0.1), np.ones((2, 3))]))


def test_products_are_single_only_where_their_rounding_averages_out():
    x, y = torch.randn(2, 1500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert kernel._products(x, y, 1.0, "auto") == torch.float32
    assert kernel._products(x[:1000], y, 1.0, "auto") == torch.float64  # half a million pairs
    assert kernel._products(x, 1e3 + y, 1.0, "auto") == torch.float64  # far apart: x.y cancels
    assert kernel._products(x, y, 1.0, "double") == torch.float64
    # 1e-6 relative with room to spare.
    double, auto = (kernel_distance(x, 1.1 * y, bandwidth=2.0, precision=kind) for kind in ("double", "auto"))
    assert auto != double
    assert auto == pytest.approx(double, rel=1e-7)


def test_kernel_jackknife_equals_deleting_the_groups_one_by_one():
    x, y = drawn(1, 60, 5), drawn(2, 60, 5, shift=0.3)
    quick = kernel_jackknife(x, y, bandwidth=2.0, groups=7, seed=3)
    from eval.metrics.uncertainty import jackknife

    slow = jackknife(lambda a, b: kernel_distance(a, b, bandwidth=2.0), x, y, groups=7, seed=3)
    assert quick.replicates == pytest.approx(slow.replicates, rel=1e-11)
    assert quick.value == pytest.approx(slow.value, rel=1e-11)
    assert (quick.counts, quick.seed) == (slow.counts, slow.seed)


# ---- agreement with torch-fidelity


def test_frechet_kernel_and_inception_equal_torch_fidelity(fidelity):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = drawn(1, 300, 20), drawn(2, 300, 20, scale=1.2, shift=0.1)
    sides = [fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
    theirs = fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(theirs, rel=1e-9)
    found = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_kernel="rbf", kid_kernel_rbf_sigma=4.0, kid_subsets=1,
        kid_subset_size=300, verbose=False,
    )  # fmt: skip
    expected = 100 * found["kernel_inception_distance_mean"]
    assert kernel_distance(x, y, bandwidth=4.0) == pytest.approx(expected, rel=1e-9)
    logits = 4 * torch.randn(1203, 50, generator=torch.Generator().manual_seed(0))
    for splits, seed in ((10, 2020), (1, 2020), (3, 7)):
        theirs = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
        ours = inception_score(logits, splits=splits, seed=seed)
        assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
        assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-8, abs=1e-12)
        assert (ours.splits, ours.seed, ours.count) == (splits, seed, 1203)


@pytest.mark.parametrize("neighbours", [3, 5])
def test_precision_and_recall_equal_torch_fidelity(fidelity, neighbours):
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = drawn(1, 130, 6), drawn(2, 110, 6, scale=0.8, shift=0.35)
    theirs = prc_features_to_metric(
        torch.from_numpy(y), torch.from_numpy(x), prc_neighborhood=neighbours, verbose=False
    )
    ours = manifold_scores(x, y, neighbours=neighbours)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)
    assert ours.precision != pytest.approx(ours.recall, abs=0.05)  # so that an exchange of the two would show


# ---- manifolds


def test_manifold_scores_by_hand():
    # k = 1 on a line. Reference 0, 1, 3: radii 1, 1, 2, balls [-1, 1], [0, 2], [1, 5].
    # Generated 1, 4, 9: radii 3, 3, 5, balls [-2, 4], [1, 7], [4, 14].
    # 1 lies in 3 balls (edges count), 4 in one, 9 in none; every reference ball holds 1; 0, 1, 3 lie in [-2, 4].
    scores = manifold_scores(np.array([[0.0], [1.0], [3.0]]), np.array([[1.0], [4.0], [9.0]]), neighbours=1)
    assert (scores.precision, scores.recall) == pytest.approx((2 / 3, 1.0))
    assert (scores.density, scores.coverage) == pytest.approx((4 / 3, 1.0))


def test_manifold_scores_of_identical_disjoint_and_equal_laws(monkeypatch):
    x = drawn(1, 90, 3)
    same, apart = manifold_scores(x, x, neighbours=3), manifold_scores(x, x + 1e3, neighbours=3)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0.0, 0.0, 0.0, 0.0)
    # One law: density 1, coverage 1 - 2^-k. At n = 1500, k = 3 both are good to about 3 %.
    law = manifold_scores(drawn(2, 1500, 3), drawn(3, 1500, 3), neighbours=3)
    assert law.density == pytest.approx(1.0, abs=0.06)
    assert law.coverage == pytest.approx(1 - 2.0**-3, abs=0.03)
    monkeypatch.setattr(pairwise.row_blocks, "__defaults__", (17,))
    y = drawn(4, 70, 3)
    small = manifold_scores(x, y, neighbours=5)
    monkeypatch.undo()
    assert small == manifold_scores(x, y, neighbours=5)
    with pytest.raises(ValueError, match="at least 6 clips, got 90 and 5"):
        manifold_scores(x, y[:5])


# ---- divergences


def test_the_sigmoid_form_has_the_positive_part_only_and_may_be_negative():
    p, q = np.array([0.9, 0.2, 0.5]), np.array([0.4, 0.7, 0.5])
    logits = [torch.from_numpy(np.log(z / (1 - z)))[None] for z in (p, q)]
    positive = (p * np.log(p / q)).sum()
    assert kl_sigmoid_positive_part(*logits).item() == pytest.approx(positive, rel=1e-12)
    low, high = torch.full((1, 4), -2.0), torch.full((1, 4), 1.0)
    assert kl_sigmoid_positive_part(low, high).item() < 0.0


def test_divergences_of_extreme_logits_are_finite_and_zero_on_equal_ones():
    logits = torch.tensor([[900.0, -900.0, 0.0]])
    for divergence in (kl_divergence, kl_sigmoid_positive_part):
        assert divergence(logits, logits).item() == 0.0
        assert torch.isfinite(divergence(logits, -logits)).all()
        with pytest.raises(ValueError, match="one shape"):
            divergence(logits, logits[:, :2])


def test_recorded_sigmoid_form(recordings):
    tensors = load_file(recordings / "H2_kl.safetensors")
    expected = json.loads((recordings / "H2_kl.json").read_text())["expected"]["f64.kl_sigmoid"]
    actual = kl_sigmoid_positive_part(tensors["in.reference_logits"], tensors["in.generated_logits"])
    assert actual.mean().item() == pytest.approx(expected, rel=1e-12)


# ---- inception score


def test_inception_score_spans_blocks_and_bounds_and_refuses_bad_logits():
    logits = 800.0 * torch.eye(9).repeat(130, 1)  # 1170 rows, three blocks; exp(-800) is 0 in float64
    assert inception_score(logits, splits=1).mean == pytest.approx(9.0, rel=1e-12)
    for bad in (float("nan"), float("inf"), float("-inf")):
        broken = logits.clone()
        broken[700, 3] = bad
        with pytest.raises(ValueError, match="finite"):
            inception_score(broken)


def test_inception_jackknife_keeps_every_clip_in_its_split():
    # Rows of two kinds, one kind per split: each split scores 1 with any clips deleted; a new shuffle would mix them.
    order = np.random.RandomState(2020).permutation(40)
    logits = torch.zeros(40, 3)
    logits[torch.from_numpy(order[:20]), 0] = 5.0
    logits[torch.from_numpy(order[20:]), 1] = 5.0
    found = inception_jackknife(logits, splits=2, groups=10)
    assert found.value == pytest.approx(1.0, abs=1e-12)
    assert found.replicates == pytest.approx([1.0] * 10, abs=1e-12)
    assert inception_score(logits[1:], splits=2).mean > 1.01
