"""Guided training targets: whose predictions, which rows, what scale; and guidance as an input of the student."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from distill.config import FromData, FromTeacher, GuidedInput, Method
from distill.method.step import train_step
from distill.method.student import student_from_teacher
from distill.method.velocity_source import Networks, State
from meanflow import AdaptiveL2, Guidance, MeanFlow, MixedGuidance, PlainFlowMatching
from meanflow.time_sampling import MixedTimes
from teacher.flow_matching import ConditionDropout
from teacher.network.batch import Batch, BatchSlice
from teacher.network.velocity import forward_velocity, student_velocity
from tests.teacher.network.test_network import conditions, opened, small

ROWS = 12
EXACT = {"rtol": 0, "atol": 1e-12}
"""Float64 through two networks of a dozen layers, in batches of other sizes."""


def shaken(net, seed=5):
    """Every parameter moved, so that nothing equals the teacher any more."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g, dtype=parameter.dtype))
    return net


@pytest.fixture
def nets():
    """Teacher, an own student with a guidance input, conditions with the first rows dropped, in whole or in part."""
    teacher = opened(small())
    student = shaken(student_from_teacher(teacher, guidance_embedding=True))
    c, has = conditions(small(), ROWS), torch.ones(ROWS, dtype=torch.bool)
    has_clip, has_text = has.clone(), has.clone()
    has_clip[:4], has_text[:2], has_text[4:6] = False, False, False  # rows 0 and 1 have nothing left
    return Networks(teacher, student, replace(c, has_clip=has_clip, has_sync=has_clip, has_text=has_text), 9)


@pytest.fixture
def state():
    g = torch.Generator().manual_seed(3)
    x_t, v = (torch.randn(ROWS, 9, 4, generator=g, dtype=torch.float64) for _ in range(2))
    return x_t, torch.linspace(0.05, 0.95, ROWS, dtype=torch.float64), v


def predictions(nets, of, x_t, t, omega=None):
    """(v_cond, v_uncond) of one network, each from a whole batch of its own."""
    made = []
    for c, scale in ((nets.conditions, omega), (nets.conditions.unconditional(), 1.0)):
        if of == "teacher":
            made.append(forward_velocity(nets.teacher, x_t, t, c))
        else:
            encoded = nets.student.encode_conditions(c, 9)
            made.append(student_velocity(nets.student, x_t, t, t, encoded, 1.0 if scale is None else scale))
    return [m.detach() for m in made]


def inside(t, interval):
    return ((t >= interval[0]) & (t <= interval[1]))[:, None, None]


def at(state, seed=0):
    return State(*state, torch.Generator().manual_seed(seed), BatchSlice.whole(len(state[0])))


def drawn(source, nets, state, seed=0):
    return source.target(nets, at(state, seed))


@pytest.mark.parametrize("of", ["teacher", "student"])
@pytest.mark.parametrize("kappa", [0.0, 0.6])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
def test_mixed_target_is_the_published_formula(nets, state, of, kappa, interval):
    """v_g = omega v + kappa v_c + (1 - omega - kappa) v_u inside the interval, v outside and without conditions."""
    x_t, t, v = state
    source = FromData(mixed=MixedGuidance(omega=0.7, kappa=kappa, interval=interval), predictions=of)
    v_cond, v_uncond = predictions(nets, of, x_t, t)
    expected = torch.where(inside(t, interval), 0.7 * v + kappa * v_cond + (0.3 - kappa) * v_uncond, v)
    expected[:2] = v[:2]
    made = drawn(source, nets, state)
    torch.testing.assert_close(made.v, expected, **EXACT)
    assert torch.equal(made.v[:2], v[:2])  # dropped rows are v itself
    assert not made.v.requires_grad
    assert made.omega is None


def test_without_guidance_neither_network_is_asked(state):
    assert FromData().target(None, at(state)).v is state[2]


def test_a_dropped_row_does_not_reach_into_the_others(nets, state):
    """Dropping replaces masks, never features: kept rows predict from what they had, the batch stays as it was."""
    x_t, t, v = state
    batch = Batch(latents=x_t, conditions=conditions(small(), ROWS), indices=torch.arange(ROWS))
    kept = {f.name: getattr(batch.conditions, f.name).clone() for f in fields(batch.conditions)}
    source = FromData(mixed=MixedGuidance(omega=0.3, kappa=0.9), predictions="student")
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(FromData):
        def target(self, nets, state):
            made = source.target(nets, state)
            seen.append((nets, *state[:3], made))
            return made

    method = Method(velocity=Watched(), dropout=ConditionDropout(video=0.5, text=0.5))
    draws = torch.Generator().manual_seed(0)
    train_step(
        lambda *a: nets.student(*a, torch.ones(ROWS).double()),
        nets.student,
        nets.teacher,
        batch,
        method,
        generator=draws,
    )
    for name, tensor in kept.items():
        assert torch.equal(getattr(batch.conditions, name), tensor), name
    (used, x_t, t, v, made) = seen[0]
    free = ~used.conditioned
    assert 0 < free.sum() < ROWS  # one in four is dropped whole
    v_cond, v_uncond = predictions(used, "student", x_t, t)
    expected = 0.3 * v + 0.9 * v_cond - 0.2 * v_uncond
    torch.testing.assert_close(made.v[~free], expected[~free], **EXACT)
    assert torch.equal(made.v[free], v[free])
    for name in ("clip", "sync", "text"):
        assert torch.equal(getattr(used.conditions, name), kept[name])


@pytest.mark.parametrize("source", [
    FromData(mixed=MixedGuidance(omega=0.7, kappa=0.6)),
    FromData(mixed=MixedGuidance(omega=2.0, interval=(0.2, 0.7))),
    FromTeacher(guidance=Guidance(omega=2.5, rescale=False)),
    GuidedInput(predictions="teacher", interval=(0.2, 0.7)),
])  # fmt: skip
def test_targets_from_the_teacher_average_to_the_velocity_it_teaches(nets, state, source):
    """With v in place of its mean v_cond, the target is the teacher's guided velocity: one scale in both places."""
    x_t, t, _ = state
    v_cond, v_uncond = predictions(nets, "teacher", x_t, t)
    target = drawn(source, nets, (x_t, t, v_cond))
    taught = source.teaching(nets, target)
    torch.testing.assert_close(target.v, taught(None)(x_t, t), **EXACT)
    rows = torch.tensor([5, 9, 9, 0])
    torch.testing.assert_close(taught(rows)(x_t[rows], t[rows]), target.v[rows], **EXACT)
    if isinstance(source, FromData):
        assert source.scale == source.mixed.omega + source.mixed.kappa
        guided = v_uncond + source.scale * (v_cond - v_uncond)
        torch.testing.assert_close(target.v, torch.where(inside(t, source.mixed.interval), guided, v_cond), **EXACT)


@pytest.mark.parametrize(("omega", "kappa", "scale"), [(0.3, 0.9, 3.0), (1.0, 0.5, 2.0), (3.0, 0.0, 3.0)])
def test_targets_from_the_student_have_the_guided_flow_as_fixed_point(state, omega, kappa, scale):
    """v_g = omega v + kappa v_g + (1 - omega - kappa) v_u holds for v_g = v_u + omega / (1 - kappa) (v - v_u)."""
    v_uncond, t, v = state
    source = FromData(mixed=MixedGuidance(omega=omega, kappa=kappa), predictions="student")
    assert source.scale == pytest.approx(scale, rel=1e-12)
    v_g = v_uncond + source.scale * (v - v_uncond)
    torch.testing.assert_close(source.mixed(v, v_g, v_uncond, t), v_g, **EXACT)


@pytest.mark.parametrize(("of", "factor"), [("student", lambda w: 1 - 1 / w), ("teacher", lambda w: w - 1)])
def test_guided_input_pushes_by_each_rows_scale(nets, state, of, factor):
    x_t, t, v = state
    source = GuidedInput(predictions=of, interval=(0.2, 0.7))
    made = drawn(source, nets, state)
    assert torch.equal(made.omega[:2], torch.ones(2).double())  # nothing to guide: shown as unguided
    assert (made.omega[2:] > 1).all()
    v_cond, v_uncond = predictions(nets, of, x_t, t, made.omega)
    push = factor(made.omega)[:, None, None] * (v_cond - v_uncond)
    expected = torch.where(inside(t, source.interval), v + push, v)
    torch.testing.assert_close(made.v, expected, **EXACT)
    assert not made.v.requires_grad


def test_guided_input_of_a_guided_student_stays_where_it_is(state):
    """v_c = v_g with scale omega solves v_g = v + (1 - 1/omega) (v_g - v_u), v at its mean."""
    v_uncond, _, v = state
    for omega in (1.0, 2.0, 8.0):
        v_g = v_uncond + omega * (v - v_uncond)
        torch.testing.assert_close(v + (1 - 1 / omega) * (v_g - v_uncond), v_g, **EXACT)


@pytest.mark.parametrize(("power", "uniform"), [(1.0, torch.log), (0.0, lambda w: w), (2.0, lambda w: 1 / w)])
def test_scales_follow_their_power_law(power, uniform):
    """A function of omega is uniform between its values at 1 and 8: mean and variance within 5 standard errors."""
    n = 40_000
    omega = GuidedInput(power=power).draw(n, generator=torch.Generator().manual_seed(0)).double()
    assert omega.min() >= 1.0
    assert omega.max() <= 8.0
    ends = [float(uniform(torch.tensor(end, dtype=torch.float64))) for end in (1.0, 8.0)]
    fraction = (uniform(omega) - ends[0]) / (ends[1] - ends[0])
    assert fraction.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / n) ** 0.5)
    assert fraction.var().item() == pytest.approx(1 / 12, abs=5 * (1 / 180 / n) ** 0.5)  # var of (U - 1/2)^2 = 1/180


def test_the_scale_reaches_every_call_of_the_network(nets, state):
    """Through the wrapper and on the plain module alike, on repeated rows too; rows without conditions see 1."""
    batch = Batch(latents=state[0], conditions=nets.conditions, indices=torch.arange(ROWS))
    shown = []

    def wrapped(x, t, c, interval, omega):
        shown.append(omega)
        return nets.student(x, t, c, interval, omega)

    rows = torch.tensor([7, 2, 2, 0])

    @dataclass(frozen=True, kw_only=True)
    class Watched(PlainFlowMatching):
        def __call__(self, calls, x_t, r, t, v, *, progress=1.0):
            plain = calls.plain(rows)(x_t[rows], r[rows], t[rows]).u
            assert not plain.requires_grad
            with torch.no_grad():
                torch.testing.assert_close(calls.train(rows)(x_t[rows], r[rows], t[rows]).u, plain, **EXACT)
            return super().__call__(calls, x_t, r, t, v, progress=progress)

    method = Method(objective=Watched(), velocity=GuidedInput(), dropout=ConditionDropout(video=0.0, text=0.0))
    train_step(wrapped, nets.student, nets.teacher, batch, method, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shown[1][:2], torch.ones(2).double())
    assert len(shown[1].unique()) == ROWS - 1
    assert torch.equal(shown[0], shown[1][rows])


def test_a_guided_input_learns_the_scale_and_derivatives_pass_it_by(nets, state):
    """The guidance embedding gets a gradient under MeanFlow, whose derivative holds omega fixed."""
    batch = Batch(latents=state[0], conditions=nets.conditions, indices=torch.arange(ROWS))
    method = Method(
        objective=MeanFlow(), velocity=GuidedInput(), times=MixedTimes(fm_fraction=0.5), loss=AdaptiveL2(p=0.0)
    )
    terms = train_step(
        nets.student, nets.student, nets.teacher, batch, method, generator=torch.Generator().manual_seed(0)
    )
    terms.loss.mean().backward()
    assert nets.student.guidance_embed.mlp[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in nets.teacher.parameters())


def test_predictions_of_a_student_with_a_head_are_its_heads(nets, state):
    x_t, t, _ = state
    student = shaken(student_from_teacher(nets.teacher, velocity_head=1))
    headed = replace(nets, student=student)
    v_cond = -student.predict_headed(x_t, 1 - t, student.encode_conditions(nets.conditions, 9), 0 * t).v.detach()
    every = torch.arange(ROWS)
    torch.testing.assert_close(headed.pair("student", every, x_t, t).v_cond, v_cond, **EXACT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_omega": 1.0}, "max_omega must be above 1"),
        ({"power": float("inf")}, "power must be finite"),
        ({"interval": (0.8, 0.2)}, "interval must satisfy"),
    ],
)
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        GuidedInput(**wrong)
