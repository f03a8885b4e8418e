"""The clock of stages: what is added up, how the parts of decoding are joined, and where work ends."""

import pytest
import torch

from meanflow import Guidance
from teacher.network.conditions import Conditions
from teacher.sampling import stages
from teacher.sampling.generator import SamplingConfig, generate, noise
from teacher.sampling.stages import DECODE, FLOW, StageClock
from tests.saved_student import tiny_pipeline


@pytest.fixture
def now(monkeypatch):
    """A clock that goes on by 1 s whenever it is read."""
    ticks = iter(range(1000))
    monkeypatch.setattr(stages.time, "perf_counter", lambda: float(next(ticks)))


def test_seconds_add_up_by_stage_until_they_are_taken(now):
    clock = StageClock()
    for name in (FLOW, "latent decode", "vocoder", FLOW):
        with clock.stage(name):
            pass
    assert clock.seconds == {FLOW: 2.0, "latent decode": 1.0, "vocoder": 1.0}
    assert clock.take() == {FLOW: 2.0, DECODE: 2.0}
    assert clock.take() == {}
    with clock.stage(DECODE):
        pass
    assert clock.take() == {DECODE: 1.0}


def test_a_check_that_raises_ends_the_work_before_the_stage_and_nothing_is_added():
    asked = []

    def check():
        asked.append(1)
        if len(asked) > 1:
            raise InterruptedError("stop")

    clock = StageClock(check=check)
    with clock.stage(FLOW):
        pass
    with pytest.raises(InterruptedError), clock.stage("vocoder"):
        pytest.fail("the stage was entered")
    assert set(clock.seconds) == {FLOW}


def test_the_stages_of_a_generator_make_what_generate_and_the_codec_make():
    made = tiny_pipeline()
    conditions, sampling = Conditions.empty(2, 1.0), SamplingConfig(guidance=Guidance(omega=1.4))
    e = noise([3, 4], made.codec.sequence.latent_frames(1.0), made.codec.latent_channels)
    clock, checked = StageClock(), []
    wave = made.generator(conditions, e, sampling, clock=clock)
    latents = generate(made.net, conditions, e, SamplingConfig(guidance=sampling.guidance))
    assert torch.equal(wave, made.codec.decode(latents))
    assert torch.equal(made.generator.latents(conditions, e, sampling), latents)
    assert list(clock.seconds) == [stage.name for stage in made.generator.stages(conditions, sampling)]
    two = StageClock(check=lambda: checked.append(1))
    made.generator(conditions, e, SamplingConfig(steps=2), clock=two)
    assert len(checked) == 3 + 2  # three stages, two evaluations
