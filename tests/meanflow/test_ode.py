"""The adaptive integrator against SciPy's implementation of the same pair, closed forms, and its own promises."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from meanflow import Adaptive, GaussianFlow


def swirl(x, t):
    """A stiff-free nonlinear velocity with a known scale."""
    return torch.sin(3 * x) + torch.cos(5 * t)[:, None, None] * x.flip(2)


def start(batch=1):
    return torch.randn(batch, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_steps_and_values_are_those_of_scipy(tolerance):
    """Same pair, same control: number of evaluations equal, end state equal to rounding."""
    e = start()

    def backwards(s, y):
        x = torch.from_numpy(y).reshape(1, 4, 3)
        return -swirl(x, torch.tensor([1.0 - s], dtype=torch.float64)).numpy().ravel()

    theirs = solve_ivp(backwards, (0.0, 1.0), e.numpy().ravel(), method="RK45", rtol=tolerance, atol=tolerance)
    ours = Adaptive(rtol=tolerance, atol=tolerance)(swirl, e)
    assert ours.evaluations == theirs.nfev
    assert int(ours.steps[0]) == len(theirs.t) - 1
    np.testing.assert_allclose(ours.x.numpy().ravel(), theirs.y[:, -1], atol=1e-12)


def test_gaussian_flow_to_the_tolerance():
    flow = GaussianFlow(mu=torch.full((1, 3), 0.7, dtype=torch.float64), s=torch.full((1, 3), 0.4, dtype=torch.float64))
    e = start(5)
    exact = flow.flow(e, torch.zeros(5, dtype=e.dtype), torch.ones(5, dtype=e.dtype))
    errors = [float((Adaptive(rtol=t, atol=t)(flow.v, e).x - exact).abs().max()) for t in (1e-3, 1e-5, 1e-8)]
    assert errors[0] < 1e-2
    assert errors[1] < 1e-4
    assert errors[2] < 1e-7
    assert errors[0] > errors[1] > errors[2]


def test_a_row_does_not_depend_on_its_batch():
    """Rows that need many steps and rows that need few keep their own steps."""
    rate = torch.tensor([1.0, 8.0, 30.0], dtype=torch.float64)

    def v(x, t, rate=rate):
        return torch.cos(rate[:, None, None] * x)

    e = start(3)
    together = Adaptive(rtol=1e-6, atol=1e-6)(v, e)
    for i in range(3):
        alone = Adaptive(rtol=1e-6, atol=1e-6)(lambda x, t, i=i: v(x, t, rate[i : i + 1]), e[i : i + 1])
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=0, atol=1e-13)
        assert together.steps[i] == alone.steps[0]
    assert together.steps[2] > together.steps[0]


def test_shape_and_type_of_the_state_are_kept():
    """The published adaptive mode returns the two-point trajectory; this one returns the end."""
    e = start(2).bfloat16()
    made = Adaptive()(lambda x, t: -x, e).x
    assert made.shape == e.shape
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), e.float() * np.e, rtol=0.02, atol=0)


def test_trouble_is_named():
    with pytest.raises(ArithmeticError, match="not finite near t"):
        Adaptive()(lambda x, t: torch.where((t < 0.9)[:, None, None], float("nan"), x), start())
    with pytest.raises(ArithmeticError, match="raise the tolerances"):
        Adaptive(rtol=1e-12, atol=1e-12, max_evaluations=50)(swirl, start())
    with pytest.raises(ValueError, match="rtol must be positive"):
        Adaptive(rtol=0.0)
