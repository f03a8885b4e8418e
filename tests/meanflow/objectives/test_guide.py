"""The example of docs/write-your-own-objective.md is a working objective."""

import itertools
import re
from pathlib import Path

import pytest
import torch

from meanflow import GaussianFlow, StudentCalls, u_only

GUIDE = Path(__file__).parents[3] / "docs" / "write-your-own-objective.md"


@pytest.fixture(scope="module")
def blocks():
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def objective(blocks):
    names = {}
    exec(compile(blocks[0], str(GUIDE), "exec"), names)
    return names["IntegralDistillation"]


def test_the_second_example_runs_and_shows_the_order(blocks, objective, capsys):
    torch.manual_seed(0)
    names = {
        "GaussianFlow": GaussianFlow,
        "StudentCalls": StudentCalls,
        "torch": torch,
        "IntegralDistillation": objective,
    }
    exec(compile(blocks[1], str(GUIDE), "exec"), names)
    errors = [float(line.split("tensor(")[1].rstrip(")")) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 3
    # Heun's error is O(h^2) with the largest h = 0.7 / 2 still coarse: ratios between 3 and 6 around the limit 4.
    assert all(3.0 < before / after < 6.0 for before, after in itertools.pairwise(errors))


def test_rows_at_rest_are_flow_matching_and_cost_no_teacher(objective):
    flow = GaussianFlow(mu=torch.zeros(1, 2), s=torch.full((1, 2), 0.5))
    asked = []

    def teacher(rows):
        asked.append(rows.tolist())
        return flow.v

    calls = StudentCalls(train=lambda rows: u_only(flow.u), plain=lambda rows: u_only(flow.u), teacher=teacher)
    x_t, t = torch.randn(4, 1, 2), torch.tensor([0.2, 0.5, 0.8, 1.0])
    r = torch.tensor([0.2, 0.1, 0.8, 0.0])
    residual = objective()(calls, x_t, r, t, flow.v(x_t, t))
    assert asked == [[1, 3]]
    assert residual.delta[[0, 2]].abs().max() < 1e-5


def test_no_gradient_reaches_the_target(objective):
    scale = torch.tensor(1.3, requires_grad=True)
    flow = GaussianFlow(mu=torch.zeros(1, 2), s=torch.full((1, 2), 0.5))

    def u(x, r, t):
        return scale * flow.u(x, r, t)

    x_t, t = torch.randn(8, 1, 2), torch.rand(8)
    r = 0.5 * t
    residual = objective()(StudentCalls.of(u, lambda x, t: scale * flow.v(x, t)), x_t, r, t, flow.v(x_t, t))
    (gradient,) = torch.autograd.grad(residual.delta.sum(), scale)
    torch.testing.assert_close(gradient, flow.u(x_t, r, t).sum())


def test_a_missing_teacher_is_named(objective):
    flow = GaussianFlow(mu=torch.zeros(1, 2), s=torch.full((1, 2), 0.5))
    with pytest.raises(ValueError, match="needs a teacher"):
        objective()(StudentCalls.of(flow.u), torch.zeros(1, 1, 2), torch.zeros(1), torch.ones(1), torch.zeros(1, 1, 2))
