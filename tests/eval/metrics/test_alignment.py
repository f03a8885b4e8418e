"""Cosine scores in closed cases."""

import numpy as np
import pytest
import torch

from eval.metrics.alignment import paired_cosines


def rows(seed, clips=12, d=7):
    return np.random.default_rng(seed).normal(size=(clips, d))


def test_identical_is_one_opposite_is_minus_one_and_lengths_do_not_matter():
    a = rows(0)
    np.testing.assert_allclose(paired_cosines(a, 3.0 * a), 1.0, rtol=1e-14)
    np.testing.assert_allclose(paired_cosines(a, -0.1 * a), -1.0, rtol=1e-14)  # and nothing is clipped at 0
    np.testing.assert_allclose(paired_cosines(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])), 24 / 25)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_range_of_the_numbers_does_not_matter(scale):
    np.testing.assert_allclose(paired_cosines(scale * rows(1), rows(2)), paired_cosines(rows(1), rows(2)), rtol=1e-12)


def test_each_clip_keeps_its_value_whatever_the_order_and_batch():
    a, b = rows(3), rows(4)
    values = paired_cosines(a, b)
    expected = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    order = np.random.default_rng(5).permutation(12)
    assert (paired_cosines(a[order], b[order]) == values[order]).all()
    parts = [paired_cosines(a[k : k + 5], b[k : k + 5]) for k in (0, 5, 10)]
    assert (np.concatenate(parts) == values).all()


def test_torch_and_numpy_give_the_same():
    a, b = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    assert (paired_cosines(a, b) == paired_cosines(a.numpy(), b.numpy())).all()


def test_what_has_no_cosine_is_refused():
    good, zero, broken = np.ones((3, 2)), np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), np.ones((3, 2))
    broken[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"b must have no zero row .* row 1 is zero"):
        paired_cosines(good, zero)
    with pytest.raises(ValueError, match=r"a must be finite; .* row 2"):
        paired_cosines(broken, good)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 2\) and \(2, 2\)"):
        paired_cosines(good, good[:2])
    with pytest.raises(ValueError, match="at least one clip, got none"):
        paired_cosines(good[:0], good[:0])
