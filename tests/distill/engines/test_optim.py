"""Learning rates by hand, the published schedule to the step, and which parameters are decayed."""

import pytest
import torch

from distill.config import OptimConfig
from distill.engines.optim import adamw, learning_rate
from distill.presets.teachers import PUBLISHED, teacher_published
from teacher.network.mmaudio import MMAudio
from tests.teacher.network.test_network import small

PUBLISHED_OPTIM = teacher_published("small_16k").loop.optim
STEPS = 300_000


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 1e-4 / 1001),
        (499, 1e-4 * 500 / 1001),
        (999, 1e-4 * 1000 / 1001),
        (1000, 1e-4),
        (240_999, 1e-4),
        (241_000, 1e-5),
        (270_999, 1e-5),
        (271_000, 1e-6),
        (299_999, 1e-6),
    ],
)
def test_published_schedule(step, lr):
    assert learning_rate(step, STEPS, PUBLISHED_OPTIM) == pytest.approx(lr, rel=1e-12)


def test_published_schedule_has_three_levels_after_the_warm_up():
    rates = [learning_rate(step, STEPS, PUBLISHED_OPTIM) for step in range(1000, STEPS)]
    changes = [1000 + i for i in range(1, len(rates)) if rates[i] != rates[i - 1]]
    assert changes == [241_000, 271_000]


def test_inclusive_warm_up_reaches_the_rate_on_its_last_step():
    config = OptimConfig(lr=1.0, warmup_steps=10)
    assert [learning_rate(s, 100, config) for s in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])


def test_cosine_by_hand():
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(4, 110, config) == pytest.approx(0.5)
    assert learning_rate(60, 110, config) == pytest.approx(0.5)  # half way down the cosine
    assert learning_rate(110, 110, config) == pytest.approx(0.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optimiser_is_one_group_with_decay_on_everything(name):
    run = teacher_published(name)
    optimizer = adamw(MMAudio(small()), run.loop.optim)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["eps"], group["scale"]) == ((0.9, 0.95), 1e-6, 1e-6, 1.0)
    assert (run.loop.steps, run.loop.batch_size, run.loop.optim.clip_norm) == (300_000, 512, 1.0)
    assert (run.loop.ema_std, run.loop.ema_correction, run.loop.ema_snapshot_every) == ((0.05, 0.1), True, 5000)
    dropout = run.method.dropout
    assert (dropout.video, dropout.text, dropout.joint_video) == (0.1, 0.1, name != "large_44k_v2")


def test_otherwise_gains_biases_and_tokens_are_not_decayed():
    net = MMAudio(small())
    groups = {g["weight_decay"]: g["params"] for g in adamw(net, OptimConfig(weight_decay=0.5)).param_groups}
    assert set(groups) == {0.0, 0.5}
    assert all(p.ndim >= 2 and len(p) > 1 for p in groups[0.5])
    assert any(p is net.empty_clip_feat for p in groups[0.0])


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_epsilon_is_in_the_denominator(eps):
    """The first step of Adam is lr g / (|g| + eps) against the gradient g."""
    layer = torch.nn.Linear(1, 1, bias=False).double()
    before = layer.weight.item()
    optimizer = adamw(layer, OptimConfig(lr=0.1, adam_eps=eps, weight_decay=0.0))
    (0.01 * layer.weight.sum()).backward()
    optimizer.step()
    assert before - layer.weight.item() == pytest.approx(0.1 * 0.01 / (0.01 + eps), rel=1e-9)


@pytest.mark.parametrize(
    ("field", "value"), [("milestones", (0.9, 0.8)), ("milestones", (1.5,)), ("decay", 0.0), ("adam_eps", 0.0)]
)
def test_bad_values_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must"):
        OptimConfig(**{field: value})
