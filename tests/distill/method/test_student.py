"""The student starts as its teacher, and one step of it is the MeanFlow step."""

import pytest
import torch

from distill.config import FromData, FromTeacher, Method
from distill.method.step import train_step
from distill.method.student import student_from_teacher
from meanflow import (
    AdaptiveL2,
    CentralDifference,
    Correction,
    Guidance,
    ImprovedMeanFlow,
    MeanFlow,
    MixedGuidance,
    Prediction,
    TimePairs,
)
from teacher.flow_matching import ConditionDropout
from teacher.network.batch import Batch
from teacher.network.velocity import forward_velocity, student_prediction, student_velocity
from tests.teacher.network.test_network import conditions, opened, small


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    c = conditions(small(), 8)
    return Batch(latents=torch.randn(8, 9, 4, generator=g, dtype=torch.float64), conditions=c, indices=torch.arange(8))


@pytest.mark.parametrize("guidance_embedding", [False, True])
@pytest.mark.parametrize("velocity_head", [0, 1, 3])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_student_starts_as_the_teachers_velocity_for_every_interval_and_scale(
    batch, guidance_embedding, velocity_head, version
):
    """Bit for bit: what is new adds an exact zero, and the head's blocks are copies."""
    teacher = opened(small(fused_depth=3, version=version))
    student = student_from_teacher(
        teacher, guidance_embedding=guidance_embedding, velocity_head=velocity_head, time_embedding="teacher"
    )
    x, t = batch.latents, torch.rand(8, dtype=torch.float64)
    v = forward_velocity(teacher, x, t, batch.conditions)
    encoded = student.encode_conditions(batch.conditions, 9)
    for r in (t, 0.3 * t, torch.zeros_like(t)):
        for omega in (1.0, 7.0) if guidance_embedding else (1.0,):
            assert torch.equal(student_velocity(student, x, r, t, encoded, omega), v)
            if velocity_head:
                made = student_prediction(student, x, r, t, encoded, omega)
                assert torch.equal(made.u, v)
                assert torch.equal(made.v, v)


def test_the_head_learns_apart_from_what_is_sampled(batch):
    """The two branches share no block: noise in the head's leaves u alone, and the network returns both in training."""
    teacher = opened(small(fused_depth=3))
    student = student_from_teacher(teacher, velocity_head=2)
    names = {n.split(".")[0] for n, _ in student.named_parameters()} - {
        n.split(".")[0] for n, _ in teacher.named_parameters()
    }
    assert names == {"interval_embed", "velocity_blocks", "velocity_layer"}
    t = torch.rand(8, dtype=torch.float64)
    before = student(batch.latents, t, batch.conditions, t)
    assert isinstance(before, Prediction)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.startswith("velocity_"):
                parameter.add_(0.1)
    after = student(batch.latents, t, batch.conditions, t)
    assert torch.equal(before.u, after.u)
    assert (before.v - after.v).abs().max() > 1e-3


def test_a_scale_goes_with_a_network_that_embeds_it(batch):
    teacher = opened(small())
    t, x = torch.rand(8, dtype=torch.float64), batch.latents
    plain, guided = student_from_teacher(teacher), student_from_teacher(teacher, guidance_embedding=True)
    with torch.no_grad():
        for parameter in guided.guidance_embed.parameters():
            parameter.add_(0.1)
    encoded = guided.encode_conditions(batch.conditions, 9)
    off, on = (student_velocity(guided, x, 0 * t, t, encoded, omega) for omega in (1.0, 3.0))
    assert torch.equal(student_velocity(guided, x, 0 * t, t, encoded), off)
    assert (on - off).abs().max() > 1e-3
    assert torch.equal(student_velocity(guided, x, 0 * t, t, encoded, torch.full_like(t, 3.0)), on)
    with pytest.raises(ValueError, match="omega must stay 1"):
        student_velocity(plain, x, 0 * t, t, encoded, 3.0)
    with pytest.raises(ValueError, match="omega goes with a network"):
        guided.predict(x, t, encoded, t)
    with pytest.raises(ValueError, match="without a velocity head"):
        plain.predict_headed(x, t, encoded, t)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocity_head": 2, "interval_embedding": True}, r"velocity_head must lie in \[0, fused_depth = 1\], got 2"),
        ({"velocity_head": 1}, "interval_embedding=True"),
        ({"guidance_embedding": True}, "interval_embedding=True"),
    ],
)
def test_networks_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_student_of_a_student_is_refused():
    with pytest.raises(ValueError, match="already has an interval"):
        student_from_teacher(student_from_teacher(opened(small())))


@pytest.mark.parametrize("velocity", [FromTeacher(), FromTeacher(guidance=Guidance(omega=2.0))])
def test_flow_matching_rows_of_a_fresh_student_have_no_error(batch, velocity):
    """With r = t everywhere and v from the teacher, u(x_t, t, t) - v = 0 at the start, unless v is guided."""
    teacher = opened(small())
    student = student_from_teacher(teacher).double()
    method = Method(velocity=velocity, times=TimePairs(fm_fraction=1.0))
    terms = train_step(student, student, teacher, batch, method, generator=torch.Generator().manual_seed(0))
    guided = velocity.guidance.active
    assert (terms.logs["error"].mean() < 1e-20) == (not guided)


def test_a_fresh_head_has_no_error_either(batch):
    """At r = t both branches are the teacher's velocity, through the wrapper as well: two errors of exactly zero."""
    teacher = opened(small())
    student = student_from_teacher(teacher, velocity_head=1)
    method = Method(
        objective=ImprovedMeanFlow(head=True),
        velocity=FromTeacher(),
        velocity_head=1,
        times=TimePairs(fm_fraction=1.0),
    )
    terms = train_step(student, student, teacher, batch, method, generator=torch.Generator().manual_seed(0))
    assert terms.logs["error"].max() < 1e-20
    assert terms.logs["error/extra"].max() < 1e-20


def test_exact_and_differenced_derivative_agree_on_the_network(batch):
    teacher = opened(small())
    student = opened(small(interval_embedding=True), seed=1)
    losses = []
    for derivative in (MeanFlow(), MeanFlow(correction=Correction(derivative=CentralDifference(eps=1e-5)))):
        method = Method(objective=derivative, times=TimePairs(fm_fraction=0.0), loss=AdaptiveL2(p=0.0))
        losses.append(
            train_step(student, student, teacher, batch, method, generator=torch.Generator().manual_seed(0)).loss
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-9)


def test_target_carries_no_gradient_and_the_teacher_gets_none(batch):
    """The gradient of the step equals that of ||u - constant||^2 with the constant taken from the logs' residual."""
    teacher, student = opened(small()), opened(small(interval_embedding=True), seed=1)
    method = Method(times=TimePairs(fm_fraction=0.5), loss=AdaptiveL2(p=0.0), velocity=FromTeacher())
    calls = []

    def wrapped(x, t, c, interval):
        calls.append(len(x))
        return student(x, t, c, interval)

    terms = train_step(wrapped, student, teacher, batch, method, generator=torch.Generator().manual_seed(0))
    terms.loss.mean().backward()
    assert calls == [8]
    assert all(p.grad is None for p in teacher.parameters())
    assert student.interval_embed.mlp[2].weight.grad.abs().max() > 0


def test_mixed_guidance_leaves_unconditional_rows_alone(batch):
    """Rows without any condition keep v = e - x: dropping every condition makes guidance a no-op."""
    teacher, student = opened(small()), opened(small(interval_embedding=True), seed=1)
    dropped = ConditionDropout(video=1 - 1e-9, text=1 - 1e-9)
    errors = []
    for mixed in (MixedGuidance(), MixedGuidance(omega=0.3, kappa=0.5)):
        method = Method(velocity=FromData(mixed=mixed), dropout=dropped)
        generator = torch.Generator().manual_seed(0)
        errors.append(train_step(student, student, teacher, batch, method, generator=generator).logs["error"].mean())
    torch.testing.assert_close(errors[0], errors[1], rtol=0, atol=0)
