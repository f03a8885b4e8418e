"""Losses, configuration files, and the recorded numbers of MeanFlow's published code."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meanflow import AdaptiveL2, Correction, MeanFlow, PseudoHuber, TimePairs, Uniform
from meanflow.config import digest, dumps, loads
from tests.golden import meanflow as golden
from tests.golden.recipe import Recording

RECORDINGS = Path(__file__).parents[1] / "golden" / "recordings"
RECORDED = (
    "G1_meanflow_unconditional", "G2_meanflow_guided_sequence", "G3_meanflow_omega_kappa", "G3b_meanflow_omega_only",
    "G4_time_samplers",
)  # fmt: skip


def test_adaptive_weight_of_power_one_is_the_logarithm_in_gradient(generator):
    """p = 1: the gradient of w ||delta||^2 is delta / (||delta||^2 + c) up to 2 / n, that of log(||delta||^2 + c)."""
    delta = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    AdaptiveL2(p=1.0, c=1e-2)(delta).sum().backward()
    other = delta.detach().clone().requires_grad_()
    (other.pow(2).flatten(1).mean(1) + 1e-2).log().sum().backward()
    torch.testing.assert_close(delta.grad, other.grad)


def test_power_zero_is_the_squared_error(generator):
    delta = torch.randn(3, 4, 2, generator=generator)
    torch.testing.assert_close(AdaptiveL2(p=0.0)(delta), delta.pow(2).flatten(1).mean(1))
    torch.testing.assert_close(AdaptiveL2(p=0.0, reduction="sum")(delta), delta.pow(2).flatten(1).sum(1))


def test_weight_is_the_published_one_and_carries_no_gradient():
    """delta = (1, 2), p = 0.75, c = 3: sum 5 weighs 8^-0.75, mean 2.5 weighs 5.5^-0.75; d/d delta = 2 w delta / n."""
    for reduction, error, n in (("sum", 5.0, 1), ("mean", 2.5, 2)):
        delta = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
        loss = AdaptiveL2(p=0.75, c=3.0, reduction=reduction)
        value = loss(delta)
        value.sum().backward()
        weight = (error + 3.0) ** -0.75
        assert loss.error(delta).item() == pytest.approx(error)
        assert loss.weight(loss.error(delta)).item() == pytest.approx(weight)
        assert value.item() == pytest.approx(weight * error)
        torch.testing.assert_close(delta.grad, 2 * weight * delta.detach() / n)


def test_half_precision_errors_are_squared_in_float32():
    """300^2 overflows float16, whose largest number is 65,504."""
    delta = torch.full((1, 2, 3), 300.0, dtype=torch.float16)
    assert AdaptiveL2(p=0.0, reduction="sum")(delta).item() == 6 * 90_000
    assert PseudoHuber(c=1.0)(delta).item() == pytest.approx(299.0, abs=0.01)


def test_pseudo_huber_summed_is_the_averaged_one_on_a_scaled_constant(generator):
    """sqrt(S + c^2) - c with c = k sqrt(d) is sqrt(d) (sqrt(S / d + k^2) - k)."""
    delta = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    summed = PseudoHuber(c=0.3 * 20**0.5, reduction="sum")(delta)
    torch.testing.assert_close(summed, 20**0.5 * PseudoHuber(c=0.3)(delta))


@pytest.mark.parametrize(("field", "value"), [("p", -0.1), ("p", 2.1), ("c", 0.0), ("reduction", "max")])
def test_wrong_loss_settings_are_named(field, value):
    with pytest.raises((ValueError, TypeError), match=field):  # the shape checker of the tests is first for a word
        AdaptiveL2(**{field: value})


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far():
    near, far = torch.full((1, 1, 1), 1e-4, dtype=torch.float64), torch.full((1, 1, 1), 1e3, dtype=torch.float64)
    loss = PseudoHuber(c=0.1)
    assert loss(near).item() == pytest.approx(1e-8 / 0.2, rel=1e-3)
    assert loss(far).item() == pytest.approx(1e3 - 0.1, rel=1e-3)


def test_configuration_survives_the_file():
    pairs = TimePairs(density=Uniform(high=0.5), fm_fraction=0.1)
    assert loads(TimePairs, dumps(pairs)) == pairs
    assert digest(pairs) == digest(loads(TimePairs, dumps(pairs)))
    assert digest(pairs) != digest(TimePairs())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "TimePairs", "fm_fracton": 0.5}', "unknown fields.*fm_fracton"),
        ('{"type": "TimePairs", "density": {"type": "Normal"}}', "density.type must be one of"),
        ('{"type": "MeanFlow"}', "must be a TimePairs"),
        ('{"type": "TimePairs", "fm_fraction": 2.0}', "fm_fraction must lie in"),
    ],
)
def test_wrong_files_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        loads(TimePairs, text)


def test_nested_unions_keep_their_kind():
    assert loads(MeanFlow, dumps(MeanFlow(correction=Correction(clip=1.5)))) == MeanFlow(
        correction=Correction(clip=1.5)
    )


def recorded(name):
    return Recording.read(RECORDINGS, name)


def check(recording):
    kind = getattr(golden, recording.document["kind"])
    return [d for d in kind(recording) if not d.value <= d.tolerance]


def changed(recording, config=None, outputs=None, **tensors):
    """A recording with some settings, inputs and expected outputs replaced; only these outputs are looked at."""
    document = recording.document | {"config": recording.document["config"] | (config or {})}
    outputs = outputs or {}
    document["outputs"] = dict.fromkeys(outputs)
    stored = recording.tensors | {f"in.{n}": t for n, t in tensors.items()}
    return replace(recording, document=document, tensors=stored | {f"out.{n}": t for n, t in outputs.items()})


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_numbers_are_reproduced(name):
    """Every output within ten times the agreement of two independent implementations."""
    recording = recorded(name)
    kind = getattr(golden, recording.document["kind"])
    deviations = list(kind(recording))
    assert set(recording.document["outputs"]) <= {d.name for d in deviations}
    assert [d for d in deviations if not d.value <= d.tolerance] == []


@pytest.mark.parametrize("name", RECORDED[:4])
def test_recorded_numbers_notice_a_small_change(name):
    """Data off by 1e-4 moves every output that knows the data; samples start from noise and stay."""
    recording = recorded(name)
    outputs = {n: recording.tensors[f"out.{n}"] for n in recording.document["outputs"]}
    moved = changed(recording, outputs=outputs, x=recording.tensors["in.x"] * (1 + 1e-4))
    beyond = {d.name for d in check(moved)}
    still = {n for n in outputs if "sample" in n and "per_sample" not in n}
    assert not still & beyond
    # A loss of power 1 stays near 1 whatever the error: its float32 value moves by less than what is allowed.
    assert set(outputs) - still - beyond <= {"f32.loss_mean", "f32.loss_per_sample"}


def test_an_output_that_nothing_makes_is_a_failure():
    recording = changed(recorded("G1_meanflow_unconditional"), outputs={"z.twice": torch.zeros(1)})
    assert [d.name for d in check(recording)] == ["z.twice: not made here"]


def test_recordings_without_guidance_and_with_a_narrow_interval():
    """Without w the velocity is e - x; outside the interval too, and there alone."""
    plain = recorded("G2_meanflow_guided_sequence")
    x, e = (plain.tensors[f"in.{n}"].double() for n in ("x", "e"))
    assert check(changed(plain, config={"w": None, "k": None}, outputs={"v_hat": e - x})) == []
    for name in ("G3_meanflow_omega_kappa", "G3b_meanflow_omega_only"):
        recording = recorded(name)
        x, e, t = (recording.tensors[f"in.{n}"].double() for n in ("x", "e", "t"))
        inside = (t >= 0.2) & (t <= 0.7)
        assert 0 < inside.sum() < len(t)
        expected = torch.where(inside[:, None, None, None], recording.tensors["out.v_guided"], e - x)
        assert check(changed(recording, config={"t_start": 0.2, "t_end": 0.7}, outputs={"v_guided": expected})) == []


def test_recordings_in_other_numbers_of_steps():
    """Three steps by hand, on a grid of the recording's own."""
    recording = recorded("G3b_meanflow_omega_only")
    p = {n: w.double() for n, w in recording.parameters().items()}
    z, y = recording.tensors["in.e"].double().flatten(1), recording.tensors["in.y"].long()
    times = torch.tensor([1.0, 0.75, 0.5, 0.0])
    for t, r in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.0)):
        inner = z @ p["W1"].T + t * p["a"] + (t - r) * p["b"] + p["E"][y] + p["c"]
        z = z - (t - r) * (inner.tanh() @ p["W2"].T + p["d"])
    expected = {"sample": z.reshape(recording.tensors["in.e"].shape)}
    assert check(changed(recording, outputs=expected, sample_times=times)) == []


def test_recorded_samplers_in_an_odd_batch_and_other_shares():
    """41 rows, P(r != t) = 0.6 and P(r = t) = 0.3: floor(12.3) = 12 rows, the first of the permutation."""
    recording = recorded("G4_time_samplers")
    a, b, uniform = (recording.tensors[f"in.{n}"][:41] for n in ("normal_t", "normal_r", "uniform"))
    permutation = torch.randperm(41, generator=torch.Generator().manual_seed(4))
    s_t, s_r = torch.sigmoid(a * 0.9 + 0.1), torch.sigmoid(b * 1.2 - 0.7)
    late, early = torch.maximum(s_t, s_r), torch.minimum(s_t, s_r)
    outputs = {"v0.t": late, "v0.r": torch.where(uniform < 0.4, late, early)}
    outputs |= {"v1.t": s_t, "v1.r": torch.where(uniform < 0.4, s_t, torch.minimum(s_t, s_r))}
    s_t, s_r = torch.sigmoid(a * 0.8 - 0.2), torch.sigmoid(b * 0.8 - 0.2)
    late, early = torch.maximum(s_t, s_r), torch.minimum(s_t, s_r)
    early[permutation[:12]] = late[permutation[:12]]
    outputs |= {"meanaudio.t": late, "meanaudio.r": early, "mmaudio.t": torch.sigmoid(a * 1.5 + 0.3)}
    config = {
        "P_mean_t": 0.1, "P_std_t": 0.9, "P_mean_r": -0.7, "P_std_r": 1.2, "ratio": 0.6, "flow_ratio": 0.3,
        "mu": -0.2, "sigma": 0.8, "mmaudio_mean": 0.3, "mmaudio_scale": 1.5,
    }  # fmt: skip
    drawn = {"normal_t": a, "normal_r": b, "uniform": uniform, "permutation": permutation}
    assert check(changed(recording, config, outputs, **drawn)) == []
