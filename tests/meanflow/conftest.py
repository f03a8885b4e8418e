"""The oracle and a batch on it, for the tests of objectives."""

import pytest
import torch

from meanflow import GaussianFlow, interpolate, velocity


@pytest.fixture
def flow():
    return GaussianFlow(
        mu=torch.tensor([[0.7, -1.2]], dtype=torch.float64), s=torch.tensor([[0.4, 1.5]], dtype=torch.float64)
    )


@pytest.fixture
def batch(flow, generator):
    """x_t, r, t, e - x with rows 0, 3, 6, ... at rest and rows 1, 7, 13, ... at r = 0."""
    t = 0.1 + 0.9 * torch.rand(48, generator=generator, dtype=torch.float64)
    r = t * torch.rand(48, generator=generator, dtype=torch.float64)
    r[::3], r[1::6] = t[::3], 0.0
    x = flow.sample(48, 1, 2, generator=generator)
    e = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return interpolate(x, e, t), r, t, velocity(x, e)
