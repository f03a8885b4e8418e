"""Frechet distance, its bias, precision and jackknife, moments and the kernel distance against closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eval.metrics.kernel import KAD_SCALE, kernel_distance, reference_bandwidth
from eval.metrics.moments import distance
from eval.metrics.moments.distance import frechet_bias, frechet_distance
from eval.metrics.moments.gaussian import Float32Moments, GaussianStats, as_matrix
from eval.metrics.moments.jackknife import frechet_jackknife
from eval.metrics.uncertainty import jackknife


def gaussian(mean, covariance, count=1000):
    return GaussianStats(mean=np.asarray(mean, float), covariance=np.asarray(covariance, float), count=count)


def random_stats(seed, d=7):
    rng = np.random.default_rng(seed)
    return GaussianStats.from_features(rng.normal(size=(50, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d))


def test_equal_covariances_leave_the_squared_shift():
    covariance = random_stats(0).covariance
    a, b = gaussian(np.zeros(7), covariance), gaussian(np.arange(7.0), covariance)
    assert frechet_distance(a, b) == pytest.approx(91.0, rel=1e-9)  # 0 + 1 + 4 + 9 + 16 + 25 + 36


def test_diagonal_covariances_have_a_closed_form():
    first, second = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.0])
    expected = 4.0 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    a, b = gaussian([0, 0, 0], np.diag(first)), gaussian([2, 0, 0], np.diag(second))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_distance_of_a_set_to_itself_is_zero_and_the_distance_is_symmetric():
    a, b = random_stats(1), random_stats(2)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_rotation_changes_nothing_and_scale_acts_squared():
    a, b = random_stats(3), random_stats(4)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(7, 7)))[0]

    def moved(stats, matrix):
        return gaussian(matrix @ stats.mean, matrix @ stats.covariance @ matrix.T)

    plain = frechet_distance(a, b)
    assert frechet_distance(moved(a, rotation), moved(b, rotation)) == pytest.approx(plain, rel=1e-10)
    assert frechet_distance(moved(a, 3 * np.eye(7)), moved(b, 3 * np.eye(7))) == pytest.approx(9 * plain, rel=1e-10)


def test_fewer_clips_than_dimensions_equals_the_nuclear_norm_of_the_cross_product():
    # Tr (S_a S_b)^(1/2) = || X Y^T ||_nuclear / sqrt((n-1)(m-1)) with X, Y the centred data: never forms a covariance.
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(12, 40)), rng.normal(size=(15, 40)) * 2 + 1
    xc, yc = x - x.mean(0), y - y.mean(0)
    overlap = np.linalg.svd(xc @ yc.T, compute_uv=False).sum() / np.sqrt(11 * 14)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() / 11 + (yc**2).sum() / 14 - 2 * overlap
    actual = frechet_distance(GaussianStats.from_features(x), GaussianStats.from_features(y))
    assert actual == pytest.approx(expected, rel=1e-9)


def test_bias_table_of_isotropic_features():
    # Tr S = 1 and n = m = N: 2 (5/4 + d/4) / N, that is 66.5 for d = 128.
    assert frechet_bias(gaussian(np.zeros(128), np.eye(128) / 128), 1000, 1000) == pytest.approx(0.0665, rel=1e-9)


def test_bias_formula_predicts_the_mean_over_many_draws():
    # 60 draws of N = 800 at d = 8: standard error about 2 %, next order about d / N = 1 %.
    rng = np.random.default_rng(7)
    scale = np.sqrt(1.0 / np.arange(1, 9))
    law = gaussian(np.zeros(8), np.diag(scale**2))

    def draw():
        return GaussianStats.from_features(rng.normal(size=(800, 8)) * scale)

    mean = np.mean([frechet_distance(draw(), draw()) for _ in range(60)])
    assert mean == pytest.approx(frechet_bias(law, 800, 800), rel=0.08)


def test_moments_of_fewer_and_of_more_rows_than_dimensions():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for rows in (features, features[:4]):
        found = GaussianStats.from_features(rows)
        assert found.count == len(rows)
        np.testing.assert_allclose(found.mean, rows.mean(dim=0), atol=1e-14)
        np.testing.assert_allclose(found.covariance, np.cov(rows.numpy().T), atol=1e-13)


def test_bad_moments_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"row 1"):
        as_matrix(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="at least 2"):
        GaussianStats.from_features(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        gaussian([0, 0], [[1, 0.5], [0, 1]])
    with pytest.raises(ValueError, match="negative eigenvalue"):
        frechet_distance(gaussian([0, 0], [[1, 2], [2, 1]]), gaussian([0, 0], np.eye(2)))
    with pytest.raises(ValueError, match="same dimension"):
        frechet_distance(gaussian([0], [[1]]), gaussian([0, 0], np.eye(2)))


def test_kernel_distance_of_one_law_averages_to_zero():
    # Standard deviation of one draw about 0.9 at n = 60 here, so 0.13 for the mean of 50; four of them allowed.
    rng = np.random.default_rng(8)
    values = [kernel_distance(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), bandwidth=2.7) for _ in range(50)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(50)
    assert min(values) < 0 < max(values)


def test_kernel_distance_of_shifted_gaussians_has_a_closed_form():
    # E k(x, y) = (s^2 / (s^2 + 2))^(d/2) exp(-|shift|^2 / (2 (s^2 + 2))) for unit Gaussians and bandwidth s.
    rng = np.random.default_rng(9)
    d, bandwidth, shift = 3, 1.5, 1.0
    scale = (bandwidth**2 / (bandwidth**2 + 2)) ** (d / 2)
    expected = KAD_SCALE * 2 * scale * (1 - np.exp(-d * shift**2 / (2 * (bandwidth**2 + 2))))
    actual = kernel_distance(rng.normal(size=(1500, d)), rng.normal(size=(1500, d)) + shift, bandwidth=bandwidth)
    assert actual == pytest.approx(expected, rel=0.06)


def test_bandwidth_is_the_median_distance_of_the_reference():
    assert reference_bandwidth(np.array([[0.0], [1.0], [3.0]])) == 2.0  # distances 1, 2, 3
    with pytest.raises(ValueError, match="distinct"):
        reference_bandwidth(np.zeros((4, 2)))


def test_recorded_reference_numbers(recordings):
    tensors = load_file(recordings / "H1_fd.safetensors")
    expected = json.loads((recordings / "H1_fd.json").read_text())["expected"]
    # Where n < d the recorded matrix root of a singular product is itself only good to about 1e-4.
    for case, tolerance in (("full_rank", 1e-10), ("rank_deficient", 1e-4), ("identical", 1e-10)):
        sets = [GaussianStats.from_features(tensors[f"in.{case}.{name}"]) for name in ("reference", "generated")]
        value = expected[f"{case}.fd_from_float64"]
        assert frechet_distance(*sets) == pytest.approx(value, rel=tolerance, abs=tolerance)


def test_stored_reference_number():
    # The rank-deficient case of the recordings, written out here: 20 and 18 vectors of 32 numbers.
    stored = json.loads((Path(__file__).parents[3] / "golden" / "frechet.json").read_text())
    sets = [GaussianStats.from_features(np.array(stored[name], np.float32)) for name in ("reference", "generated")]
    assert frechet_distance(*sets) == pytest.approx(stored["frechet"], rel=1e-4)


# ---- float32 products


def mixed(seed, n, d, *, decay=0.5, scale=1.0, shift=0.0):
    """Rows with standard deviations falling as i^-decay, mixed by a rotation that depends on d alone."""
    rotation = np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))[0]
    spread = scale * np.arange(1, d + 1) ** -decay
    return (np.random.default_rng(seed).normal(size=(n, d)) * spread) @ rotation + shift


def both_precisions(monkeypatch, x, y):
    """What `auto` finds when float32 is tried at every size, and whether it was used, beside the float64 value."""
    monkeypatch.setattr(distance, "SINGLE_LEAST", 0)
    return frechet_distance(x, y), distance._single_distance(x, y) is not None, frechet_distance(x, y, form="moments")


def test_float32_products_keep_the_distance_to_a_part_in_ten_million(monkeypatch):
    # The estimate is a standard error held below 1e-7; 2e-7 allows for twice that.
    x, y = mixed(1, 2500, 48, decay=0.2), mixed(2, 2100, 48, decay=0.2, scale=1.5, shift=0.02)
    positive = np.maximum(x, 0.0), np.maximum(y, 0.0)
    for a, b in ((x, y), (x + 100.0, y + 100.0), (1e6 * x, 1e6 * y), (np.exp(x), np.exp(y)), positive):
        auto, used, double = both_precisions(monkeypatch, a, b)
        assert used
        assert auto != double
        assert auto == pytest.approx(double, rel=2e-7)
        assert frechet_distance(b, a) == pytest.approx(auto, rel=1e-10)


def test_float32_products_are_not_kept_where_they_would_not_do(monkeypatch):
    x, y = mixed(1, 600, 48), mixed(2, 700, 48, scale=1.1)
    steep = mixed(1, 600, 48, decay=2.5), mixed(2, 700, 48, decay=2.5, scale=1.1)
    dead = np.hstack([x, np.zeros((600, 1))]), np.hstack([y, np.zeros((700, 1))])
    copied = np.hstack([x, x[:, :1]]), np.hstack([y, y[:, :1]])
    cases = {"same": (x, x), "alike": (x, x * 1.0001), "steep": steep, "dead": dead, "copied": copied}
    cases |= {"overflow": (1e30 * x, 1e30 * y), "underflow": (1e-30 * x, 1e-30 * y)}
    for name, (a, b) in cases.items():
        auto, used, double = both_precisions(monkeypatch, a, b)
        assert not used, name
        assert auto == double, name
    assert abs(frechet_distance(x, x)) < 1e-12


def test_float32_products_are_for_large_sets_of_more_clips_than_dimensions_only():
    x = mixed(1, 600, 48)
    assert distance._single_distance(x, mixed(2, 600, 48, scale=1.1)) is None  # 600 x 48^2 is far below 2^33
    with pytest.raises(ValueError, match="same dimension"):
        frechet_distance(x, x[:, :5])
    with pytest.raises(ValueError, match="must have shape"):
        frechet_distance(x[0], x)


def test_estimated_error_is_that_of_repeated_rounding():
    # Errors drawn by the law the estimate assumes: e_ij = rounding s_i s_j g_ij off the diagonal. Of 40 draws the root
    # mean square is known to 11 %. The estimate bounds it: C^2 <= k S costs a factor, here below 8.
    x, y = (Float32Moments.from_matrix(z) for z in (mixed(1, 400, 24), mixed(2, 500, 24, scale=1.2)))
    other, rounding, rng = gaussian(y.mean, y.covariance), 1e-6, np.random.default_rng(3)
    base = frechet_distance(gaussian(x.mean, x.covariance), other)
    moved = []
    for _ in range(40):
        noise = np.triu(rng.normal(size=x.covariance.shape), 1) * np.sqrt(np.outer(*[x.covariance.diagonal()] * 2))
        found = frechet_distance(gaussian(x.mean, x.covariance + rounding * (noise + noise.T)), other)
        moved.append(found - base)
    exact = Float32Moments(mean=x.mean, covariance=x.covariance, rounding=rounding)
    root, rest = exact.frechet_errors(torch.linalg.cholesky(torch.from_numpy(x.covariance)))
    estimate = root * np.sqrt(base) + rest * np.sqrt(y.trace)
    assert 0.9 < estimate / np.sqrt(np.mean(np.square(moved))) < 8.0


def test_single_moments_are_the_moments_and_know_their_rounding():
    matrix = mixed(4, 5000, 20, shift=3.0)  # 5000 rows are three blocks
    single, double = Float32Moments.from_matrix(matrix), GaussianStats.from_features(matrix)
    np.testing.assert_allclose(single.covariance.diagonal(), double.covariance.diagonal(), rtol=1e-13)
    spread = np.sqrt(double.covariance.diagonal())
    errors = (single.covariance - double.covariance) / np.outer(spread, spread)
    # Root mean square over 8 of 20 columns against all; a float32 has 6e-8.
    assert 0.0 < single.rounding < 6e-8
    assert single.rounding == pytest.approx(np.sqrt((errors**2).sum() / (20 * 19)), rel=0.5)
    np.testing.assert_allclose(double.covariance, np.cov(matrix.T), atol=1e-14)
    assert (double.covariance == double.covariance.T).all()


# ---- jackknife


@pytest.mark.parametrize(
    ("n", "m", "d"), [(90, 90, 8), (90, 70, 8), (24, 24, 40), (20, 31, 40), (60, 30, 40), (30, 60, 40), (44, 60, 40)]
)
def test_quick_jackknife_equals_deleting_the_groups_one_by_one(n, m, d):
    # 44 clips in 40 dimensions: more than dimensions with all groups, fewer without one.
    x, y = mixed(1, n, d, shift=20.0), mixed(2, m, d, scale=1.3, shift=20.2)
    quick = frechet_jackknife(x, torch.from_numpy(y), groups=6, seed=3)
    slow = jackknife(frechet_distance, x, y, groups=6, seed=3)
    assert quick.value == pytest.approx(slow.value, rel=1e-10)
    assert quick.replicates == pytest.approx(slow.replicates, rel=1e-10)
    assert (quick.counts, quick.seed) == (slow.counts, slow.seed) == ((n, m), 3)
    assert quick.minus(slow).value == pytest.approx(0.0, abs=1e-10 * slow.value)  # may stand in one difference


def test_quick_jackknife_of_singular_covariances():
    x, y = mixed(1, 90, 6), mixed(2, 80, 6, scale=1.2)
    copied = [np.hstack([z, z[:, :1]]) for z in (x, y)]
    dead = [np.pad(z, ((0, 0), (0, 2))) for z in (x, y)]
    for a, b in (copied, dead):
        quick, slow = frechet_jackknife(a, b, groups=5), jackknife(frechet_distance, a, b, groups=5)
        assert quick.replicates == pytest.approx(slow.replicates, rel=1e-10)


def test_quick_jackknife_refuses():
    with pytest.raises(ValueError, match="same dimension"):
        frechet_jackknife(mixed(1, 30, 4), mixed(1, 30, 5))
    with pytest.raises(ValueError, match="at least 20 clips"):
        frechet_jackknife(mixed(1, 30, 4), mixed(1, 19, 4))
