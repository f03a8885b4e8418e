"""Clocks, noise, guidance wrapping and sampling of networks."""

from dataclasses import replace

import pytest
import torch
import tyro

from meanflow import Adaptive, Guidance, time_grid
from meanflow.guidance import JointGuidance
from meanflow.sampling import midpoint
from scripts.sample import Sample, sampling_config
from teacher.network.mmaudio import Encoded
from teacher.network.sequence import SEQUENCE_16K, SEQUENCE_44K, image_frames, sync_frames
from teacher.network.velocity import Guide, forward_velocity, student_velocity
from teacher.sampling.generator import clip_seed, generate, network_evaluations, noise
from teacher.sampling.pipeline import SamplingConfig
from tests.teacher.network.test_network import conditions, opened, small


def test_clock_is_reversed_once():
    """v(x_t, t) here is minus the network at 1 - t."""
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(forward_velocity(net, x, t, c), -net(x, 1 - t, c), rtol=0, atol=0)


def test_one_euler_step_of_a_teacher_by_hand():
    """From e at t = 1: x = e - 1 * v(e, 1) = e + net(e, 0)."""
    config = small()
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    made = generate(net, c, e, SamplingConfig())
    torch.testing.assert_close(made, e + net(e, torch.zeros(2, dtype=e.dtype), c).detach(), rtol=0, atol=1e-12)


def test_two_student_steps_by_hand():
    """From t = 1 over r = 1/2 to 0, each a jump of half the average velocity over that interval."""
    config = small(interval_embedding=True)
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    encoded = net.encode_conditions(c, 9)
    full = lambda value: torch.full((2,), value, dtype=e.dtype)  # noqa: E731
    x = e - 0.5 * student_velocity(net, e, full(0.5), full(1.0), encoded)
    x = x - 0.5 * student_velocity(net, x, full(0.0), full(0.5), encoded)
    made = generate(net, c, e, SamplingConfig(steps=2))
    torch.testing.assert_close(made, x.detach(), rtol=0, atol=1e-12)


def test_guided_prediction_equals_two_separate_ones():
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    rule = Guidance(omega=2.5)

    def v(x, r, t, encoded: Encoded):
        return -net.predict(x, 1 - t, encoded)

    seen = []
    guided = Guide.of(net, c, 9, rule, seen.append)(v, x, t, t)
    expected = rule(-net(x, 1 - t, c), -net(x, 1 - t, c.unconditional()), t)
    torch.testing.assert_close(guided, expected.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[0].s_star, expected.s_star)
    assert seen[0].clamped.shape == (2,)


@pytest.mark.parametrize("negative", [None, torch.randn(1, 3, 7, dtype=torch.float64)])
def test_separate_scales_call_the_network_once_and_equal_three_calls(negative):
    """Video alone is everything but the words; those are the empty or the negative ones, as they are in nothing."""
    config = small()
    net, c = opened(config), conditions(config)
    x, t = torch.randn(2, 9, 4, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    rule, batches, seen = JointGuidance(video=3.0, text=2.0), [], []

    def v(x, r, t, encoded: Encoded):
        batches.append(len(x))
        return -net.predict(x, 1 - t, encoded)

    guided = Guide.of(net, c, 9, rule, seen.append, negative)(v, x, t, t)
    assert batches == [6]
    absent = torch.zeros(2, dtype=torch.bool)
    nothing = replace(c, has_clip=absent, has_sync=absent, has_text=absent)
    video = replace(c, has_text=absent)
    if negative is not None:
        words = {"text": negative.expand(2, -1, -1), "has_text": ~absent}
        nothing, video = replace(nothing, **words), replace(video, **words)
    expected = rule(*(-net(x, 1 - t, part) for part in (c, video, nothing)), t)
    torch.testing.assert_close(guided, expected.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[0].s_star, expected.s_star, rtol=0, atol=1e-12)
    assert seen[0].s_star.shape == (2, 2)


def test_scales_of_one_ask_for_nothing_more():
    config = small()
    net, c = opened(config), conditions(config)
    guide = Guide.of(net, c, 9, JointGuidance())
    assert guide.unconditional is None
    assert guide.video is None


@pytest.mark.parametrize("interval_embedding", [False, True])
@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("rule", [Guidance(), Guidance(omega=4.5), JointGuidance(video=2.0, text=3.0)])
def test_evaluations_are_counted(interval_embedding, solver, rule):
    """The count is the rows that the network sees over the rows that come out."""
    if interval_embedding and solver != "euler":
        return
    config = small(interval_embedding=interval_embedding)
    net, c = opened(config), conditions(config)
    rows = []
    net.final_layer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    generate(net, c, torch.randn(2, 9, 4, dtype=torch.float64), SamplingConfig(steps=3, guidance=rule, solver=solver))
    assert sum(rows) / 2 == network_evaluations(3, rule, solver=solver)


def test_worked_counts_of_evaluations():
    assert network_evaluations(25, Guidance(omega=4.5)) == 50
    assert network_evaluations(1, Guidance()) == 1
    assert network_evaluations(4, JointGuidance(video=2.0)) == 12
    assert network_evaluations(4, Guidance(omega=2.0), solver="midpoint") == 16
    assert network_evaluations(25, Guidance(), zero_init_steps=1) == 24


def test_solver_grid_and_first_steps_reach_the_sampler():
    config = small()
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    made = generate(net, c, e, SamplingConfig(steps=25, solver="midpoint", shift=2.0, zero_init_steps=20))
    by_hand = midpoint(lambda x, t: forward_velocity(net, x, t, c), e, time_grid(25, 2.0)[20:])
    torch.testing.assert_close(made, by_hand.detach(), rtol=0, atol=1e-12)


def test_an_adaptive_solver_has_no_grid():
    config = small()
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    for option in ({"shift": 2.0}, {"zero_init_steps": 1}):
        with pytest.raises(ValueError, match="chooses its own steps"):
            generate(net, c, e, SamplingConfig(steps=25, solver=Adaptive(), **option))


def flags(*words):
    return sampling_config(tyro.cli(Sample, args=list(words)))


def test_command_line_choices():
    """Without flags nothing is guided, as ever; each flag lands where it belongs."""
    assert flags() == SamplingConfig()
    assert flags("--guidance", "4.5", "--no-rescale", "--steps", "25") == SamplingConfig(
        steps=25, guidance=Guidance(omega=4.5, rescale=False)
    )
    scales = [flags("--guidance", "auto", "--steps", n).guidance.omega for n in ("1", "2", "25")]
    assert scales == [1.4, 2.0, 4.5]
    assert flags("--guidance", "auto", "--solver", "adaptive").guidance.omega == 4.5
    assert flags("--guidance-text", "3").guidance == JointGuidance(text=3.0)
    shared = ["--no-rescale", "--std-rescale", "0.7", "--guidance-interval", "0.1", "0.9"]
    same = {"rescale": False, "std_rescale": 0.7, "interval": (0.1, 0.9)}
    assert flags("--guidance", "2", "--parallel", "0", *shared).guidance == Guidance(omega=2.0, parallel=0.0, **same)
    assert flags("--guidance-video", "2", *shared).guidance == JointGuidance(video=2.0, **same)
    grid = flags("--solver", "midpoint", "--steps", "25", "--shift", "2", "--zero-init-steps", "1")
    assert grid == SamplingConfig(steps=25, solver="midpoint", shift=2.0, zero_init_steps=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--guidance 2 --guidance-video 3", "cannot be combined"),
        ("--guidance auto --guidance-text 3", "cannot be combined"),
        ("--guidance-text 3 --parallel 0", "cannot be combined"),
        ("--zero-init-steps 1", "25 or more steps|below the number of steps"),
        ("--zero-init-steps 1 --steps 24", "25 or more steps"),
        ("--shift 0", "shift must be positive"),
    ],
)
def test_command_line_choices_that_do_not_go_together(words, message):
    with pytest.raises(ValueError, match=message):
        flags(*words.split())


def test_noise_of_a_clip_does_not_depend_on_its_batch():
    seeds = [clip_seed(0, name) for name in ("a", "b", "c")]
    torch.testing.assert_close(noise(seeds, 5, 4)[1], noise(seeds[1:2], 5, 4)[0], rtol=0, atol=0)
    assert len(set(seeds)) == 3
    assert clip_seed(1, "a") != clip_seed(0, "a")


@pytest.mark.parametrize(
    ("duration_s", "n16", "n44", "tc", "ts"),
    [
        (1, 32, 44, 8, 16),
        (2, 63, 87, 16, 40),
        (5, 157, 216, 40, 112),
        (8, 250, 345, 64, 192),
        (30, 938, 1292, 240, 736),
    ],
)
def test_published_sequence_lengths(duration_s, n16, n44, tc, ts):
    assert SEQUENCE_16K.latent_frames(duration_s) == n16
    assert SEQUENCE_44K.latent_frames(duration_s) == n44
    assert image_frames(duration_s) == tc
    assert sync_frames(duration_s) == ts


def test_too_short_a_clip_is_refused():
    with pytest.raises(ValueError, match=r"0\.64"):
        sync_frames(0.6)


def test_a_network_with_the_scale_as_an_input_is_evaluated_once_per_step(monkeypatch):
    """u(x_t, r, t) shown omega, instead of two predictions combined."""
    config = small(interval_embedding=True, guidance_embedding=True)
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    zero, one = torch.zeros(2, dtype=e.dtype), torch.ones(2, dtype=e.dtype)
    encoded = net.encode_conditions(c, 9)
    shown = {w: (e - student_velocity(net, e, zero, one, encoded, w)).detach() for w in (1.0, 3.0)}
    rows, predict = [], type(net).predict

    def counted(self, x, *rest):
        rows.append(len(x))
        return predict(self, x, *rest)

    monkeypatch.setattr(type(net), "predict", counted)
    for w, expected in shown.items():
        made = generate(net, c, e, SamplingConfig(guidance=Guidance(omega=w)))
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    assert rows == [2, 2]
    assert (shown[1.0] - shown[3.0]).abs().max() > 1e-3
    assert network_evaluations(4, Guidance(omega=3.0), guided_input=True) == 4
    with pytest.raises(ValueError, match="takes one, and no negative prompt"):
        generate(net, c, e, SamplingConfig(guidance=JointGuidance(video=2.0, text=1.5)))
