"""Frechet distance, its bias, moments and the kernel distance against closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eval.frechet import frechet_bias, frechet_distance
from eval.kernel import KAD_SCALE, kernel_distance, reference_bandwidth
from eval.statistics import GaussianStats, as_matrix


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


def test_merged_moments_are_those_of_the_joined_rows():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged = GaussianStats.from_features(features[:11]).merge(GaussianStats.from_features(features[11:]))
    whole = GaussianStats.from_features(features)
    assert merged.count == 30
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(features.numpy().T), atol=1e-13)


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
    # The rank-deficient case of the recordings, kept here: 20 and 18 vectors of 32 numbers.
    stored = json.loads((Path(__file__).parent / "golden" / "frechet.json").read_text())
    sets = [GaussianStats.from_features(np.array(stored[name], np.float32)) for name in ("reference", "generated")]
    assert frechet_distance(*sets) == pytest.approx(stored["frechet"], rel=1e-4)
