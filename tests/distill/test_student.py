"""The student starts as its teacher, and one step of it is the MeanFlow step."""

import pytest
import torch

from distill.config import Distillation, FromData, FromTeacher
from distill.step import train_step
from distill.student import student_from_teacher
from meanflow import AdaptiveL2, CentralDifference, Correction, Guidance, MeanFlow, MixedGuidance, TimePairs
from teacher.data.dataset import Batch
from teacher.train import ConditionDropout
from teacher.velocity import TeacherVelocity, student_velocity
from tests.teacher.test_network import conditions, opened, small


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    c = conditions(small(), 8)
    return Batch(latents=torch.randn(8, 9, 4, generator=g, dtype=torch.float64), conditions=c, indices=torch.arange(8))


def _double_times(monkeypatch):
    """Times are drawn in float32; this test's networks are float64 throughout."""
    drawn = TimePairs.__call__

    def doubled(self, n, *, generator):
        return tuple(t.double() for t in drawn(self, n, generator=generator))

    monkeypatch.setattr(TimePairs, "__call__", doubled)


def test_student_starts_as_the_teachers_velocity_for_every_interval(batch):
    teacher = opened(small())
    student = student_from_teacher(teacher)
    x, t = batch.latents, torch.rand(8, dtype=torch.float64)
    v = TeacherVelocity(teacher)(x, t, batch.conditions)
    encoded = student.encode_conditions(batch.conditions, 9)
    for r in (t, 0.3 * t, torch.zeros_like(t)):
        torch.testing.assert_close(student_velocity(student, x, r, t, encoded), v, rtol=0, atol=1e-12)


def test_student_of_a_student_is_refused():
    with pytest.raises(ValueError, match="already has an interval"):
        student_from_teacher(student_from_teacher(opened(small())))


@pytest.mark.parametrize("velocity", [FromTeacher(), FromTeacher(guidance=Guidance(omega=2.0))])
def test_flow_matching_rows_of_a_fresh_student_have_no_error(batch, velocity, monkeypatch):
    """With r = t everywhere and v from the teacher, u(x_t, t, t) - v = 0 at the start, unless v is guided."""
    _double_times(monkeypatch)
    teacher = opened(small())
    student = student_from_teacher(teacher).double()
    method = Distillation(velocity=velocity, times=TimePairs(fm_fraction=1.0))
    terms = train_step(student, student, teacher, batch, method, generator=torch.Generator().manual_seed(0))
    guided = velocity.guidance.active
    assert (terms.logs["error"] < 1e-20) == (not guided)


def test_exact_and_differenced_derivative_agree_on_the_network(batch, monkeypatch):
    _double_times(monkeypatch)
    teacher = opened(small())
    student = opened(small(interval_embedding=True), seed=1)
    losses = []
    for derivative in (MeanFlow(), MeanFlow(correction=Correction(derivative=CentralDifference(eps=1e-5)))):
        method = Distillation(objective=derivative, times=TimePairs(fm_fraction=0.0), loss=AdaptiveL2(p=0.0))
        losses.append(
            train_step(student, student, teacher, batch, method, generator=torch.Generator().manual_seed(0)).loss
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-9)


def test_target_carries_no_gradient_and_the_teacher_gets_none(batch, monkeypatch):
    """The gradient of the step equals that of ||u - constant||^2 with the constant taken from the logs' residual."""
    _double_times(monkeypatch)
    teacher, student = opened(small()), opened(small(interval_embedding=True), seed=1)
    method = Distillation(times=TimePairs(fm_fraction=0.5), loss=AdaptiveL2(p=0.0), velocity=FromTeacher())
    calls = []

    def wrapped(x, t, c, interval):
        calls.append(len(x))
        return student(x, t, c, interval)

    terms = train_step(wrapped, student, teacher, batch, method, generator=torch.Generator().manual_seed(0))
    terms.loss.mean().backward()
    assert calls == [8]
    assert all(p.grad is None for p in teacher.parameters())
    assert student.interval_embed.mlp[2].weight.grad.abs().max() > 0


def test_mixed_guidance_leaves_unconditional_rows_alone(batch, monkeypatch):
    """Rows without any condition keep v = e - x: dropping every condition makes guidance a no-op."""
    _double_times(monkeypatch)
    teacher, student = opened(small()), opened(small(interval_embedding=True), seed=1)
    dropped = ConditionDropout(video=1 - 1e-9, text=1 - 1e-9)
    errors = []
    for mixed in (MixedGuidance(), MixedGuidance(omega=0.3, kappa=0.5)):
        method = Distillation(velocity=FromData(mixed=mixed), dropout=dropped)
        generator = torch.Generator().manual_seed(0)
        errors.append(train_step(student, student, teacher, batch, method, generator=generator).logs["error"])
    torch.testing.assert_close(errors[0], errors[1], rtol=0, atol=0)
