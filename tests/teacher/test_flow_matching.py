"""The teacher's step: the flow-matching loss, and the shares of conditions that training rows keep."""

import pytest
import torch

from teacher.flow_matching import ConditionDropout, FlowMatching, flow_matching_step
from teacher.network.batch import Batch
from teacher.network.mmaudio import MMAudio
from tests.teacher.network.test_network import conditions, opened, small

ROWS = 20_000
"""A share p of this many rows has a standard deviation of at most 0.0036, so 0.015 is more than four of them."""


@pytest.fixture
def batch():
    x = torch.randn(8, 9, 4, generator=torch.Generator().manual_seed(3))
    return Batch(latents=x, conditions=conditions(small(), 8).to("cpu", torch.float32), indices=torch.arange(8))


def shares(mask_a, mask_b=None):
    return (mask_a if mask_b is None else mask_a & mask_b).float().mean().item()


def test_dropout_shares(generator):
    c = conditions(small(), ROWS)
    kept = ConditionDropout(video=0.1, text=0.2, text_only=0.5)(c, generator=generator)
    assert shares(kept.has_clip) == pytest.approx(0.9 * 0.5, abs=0.015)
    assert shares(kept.has_text) == pytest.approx(0.8, abs=0.015)
    assert bool((kept.has_clip == kept.has_sync).all())
    assert bool(c.has_clip.all())


def test_published_dropout_drops_image_and_sync_together_and_text_on_its_own(generator):
    kept = ConditionDropout()(conditions(small(), ROWS), generator=generator)
    assert bool((kept.has_clip == kept.has_sync).all())
    assert shares(~kept.has_clip) == pytest.approx(0.1, abs=0.015)
    assert shares(~kept.has_text) == pytest.approx(0.1, abs=0.015)
    assert shares(~kept.has_clip, ~kept.has_text) == pytest.approx(0.01, abs=0.005)


def test_independent_dropout_shows_either_part_of_the_video_alone(generator):
    kept = ConditionDropout(joint_video=False)(conditions(small(), ROWS), generator=generator)
    assert shares(~kept.has_clip) == pytest.approx(0.1, abs=0.015)
    assert shares(~kept.has_sync) == pytest.approx(0.1, abs=0.015)
    assert shares(kept.has_clip, ~kept.has_sync) == pytest.approx(0.09, abs=0.012)
    assert shares(~kept.has_clip, ~kept.has_sync) == pytest.approx(0.01, abs=0.005)


def test_rows_shown_as_text_alone_lose_image_and_sync_even_when_dropped_independently(generator):
    dropout = ConditionDropout(video=0.0, text=0.0, text_only=0.3, joint_video=False)
    kept = dropout(conditions(small(), ROWS), generator=generator)
    assert bool((kept.has_clip == kept.has_sync).all())
    assert shares(~kept.has_clip) == pytest.approx(0.3, abs=0.015)
    assert bool(kept.has_text.all())


def test_what_is_absent_stays_absent(generator):
    empty = conditions(small(), 64).unconditional()
    kept = ConditionDropout(video=0.0, text=0.0)(empty, generator=generator)
    assert not bool((kept.has_clip | kept.has_sync | kept.has_text).any())


def test_flow_matching_loss_of_a_zero_network_is_the_power_of_the_velocity(batch):
    """A fresh network outputs zero, so the loss is the mean of (e - x)^2."""
    config = FlowMatching(dropout=ConditionDropout(video=0.0, text=0.0))
    terms = flow_matching_step(MMAudio(small()), batch, config, generator=torch.Generator().manual_seed(5))
    e = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(terms.loss, (e - batch.latents).pow(2).flatten(1).mean(1))


def test_step_depends_on_nothing_but_its_generator(batch):
    net, config = opened(small()).float(), FlowMatching()
    a, b, c = (
        flow_matching_step(net, batch, config, generator=torch.Generator().manual_seed(s)).loss for s in (5, 5, 6)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("field", ["video", "text", "text_only"])
def test_dropout_of_everything_is_refused(field):
    with pytest.raises(ValueError, match=f"dropout {field} must lie in"):
        ConditionDropout(**{field: 1.0})
