"""The doctor finds the one disease that each of a row of networks was given, and finds nothing in a healthy one."""

import copy
import dataclasses
from functools import lru_cache

import pytest
import torch
from torch import nn

from meanflow.doctor import RULES, Failed, ImportPath, Patient, admit, examine, recommend
from meanflow.doctor.accuracy import examine_accuracy
from meanflow.doctor.cost import _Live, examine_cost
from meanflow.doctor.frequency import examine_frequency
from meanflow.doctor.operators import examine_operators
from meanflow.doctor.precision import examine_precision
from meanflow.doctor.processes import examine_processes, gradients
from tests.meanflow.doctor import patients


def patient(name, **inputs):
    return admit(ImportPath(path=f"tests.meanflow.doctor.patients:{name}"), frames=inputs.pop("frames", 6), **inputs)


@lru_cache
def report_on(name):
    return examine(patient(name), processes=False)


@pytest.fixture(scope="module")
def healthy():
    """(module before, random state before, report, patient) with two processes."""
    state = torch.get_rng_state()
    made = patient("Healthy")
    before = copy.deepcopy(made.module.state_dict())
    report = examine(made)
    return before, state, torch.get_rng_state(), report, made


def test_a_healthy_network_needs_nothing(healthy):
    report = healthy[3]
    assert [found.verdict.level for found in report.findings.values()] == ["ok"] * 6, report
    assert report.healthy
    assert recommend(report)[0].startswith("Nothing to mend")
    # float64 rounding through a few products; half the rows each is an exact split of the mean
    assert report.processes.gradient < 1e-12
    assert report.processes.ranks == 0.0
    # differences of fourth order with h = 1e-5: rounding 1e-16 / 1e-5
    assert report.accuracy.error_float64 < 1e-8
    assert report.accuracy.error_float32 < 1e-5


def test_the_seed_makes_a_function_of_a_random_module():
    made = patient("Dropping")
    again, other = (made.u(made.x_t, made.r, made.t) for _ in range(2)), dataclasses.replace(made, seed=1)
    assert torch.equal(*again)
    assert not torch.equal(made.u(made.x_t, made.r, made.t), other.u(made.x_t, made.r, made.t))


def test_examination_leaves_no_trace(healthy):
    before, state, after, _, made = healthy
    assert torch.equal(state, after)
    assert made.module.training
    assert all(torch.equal(a, before[name]) for name, a in made.module.state_dict().items())
    assert all(a.grad is None for a in made.module.parameters())
    assert not made.module._forward_hooks
    buffered = patient("BatchNormed")
    examine_precision(buffered, tangents=False)
    assert int(buffered.module.norm.num_batches_tracked) == 0


def test_fused_attention_is_named_and_math_mends_it():
    found = examine_operators(patient("Attending"))
    assert len(found.missing) == 1
    assert "scaled_dot_product" in found.missing[0].operator
    assert found.missing[0].where == ("(root) (Attending)",)
    assert found.missing_with_math == ()
    assert found.works
    assert found.verdict.level == "warn"


def test_fast_path_of_multihead_attention_is_not_mended_by_math():
    found = examine_operators(patient("FastPath"))
    for group in (found.missing, found.missing_with_math):
        assert [f.operator for f in group] == ["aten._native_multi_head_attention"]
        assert group[0].where == ("attend (MultiheadAttention)",)
    # whatever ForwardAD makes of it must be right
    assert found.works
    assert examine_accuracy(patient("FastPath")).verdict.level == "ok"
    assert examine_precision(patient("FastPath")).verdict.level == "ok"


def test_old_functions_and_buffers_stop_forward_mode_in_a_named_place():
    found = examine_operators(patient("OldFunction"))
    assert not found.works
    assert "(root) (OldFunction)" in found.forward_ad
    found = examine_operators(patient("BatchNormed"))
    assert not found.works
    assert "norm (BatchNorm1d)" in found.forward_ad


def test_detach_is_seen_as_a_dropped_tangent():
    found = examine_operators(patient("Detached"))
    assert [f.operator for f in found.dropped] == ["aten.detach"]
    assert not examine_operators(patient("Healthy")).dropped


@pytest.mark.parametrize(("name", "forgotten"), [("Detached", ("t - r",)), ("DetachedR", ("r",))])
def test_a_forgotten_input_is_named(name, forgotten):
    found = examine_accuracy(patient(name))
    assert found.forgotten == forgotten
    assert found.verdict.level == "bad"
    assert found.partials[1].forward == 0.0 < found.partials[1].difference


def test_an_ignored_r_is_not_a_forgotten_one():
    found = examine_accuracy(patient("Instantaneous"))
    assert (found.forgotten, found.ignored) == ((), ("r",))
    assert found.verdict.level == "warn"


def test_a_wrong_forward_formula_is_red():
    found = report_on("WrongFactor").accuracy
    # twice the derivative everywhere: the relative error is 1
    assert found.error_float64 == pytest.approx(1.0, abs=1e-6)
    assert found.verdict.level == "bad"
    assert found.forgotten == ()


def test_partial_derivatives_by_hand():
    """u = x_t^2 + 3 r + sin t has the partial derivatives 2 x_t v, 3 and cos t."""

    class Known(nn.Module):
        def forward(self, x_t, r, t):
            return x_t.square() + (3 * r + torch.sin(t))[:, None, None]

    x_t, v = torch.full((2, 1, 1), 0.5), torch.full((2, 1, 1), 2.0)
    times = torch.tensor([0.1, 0.2]), torch.tensor([1.0, 1.0])
    found = examine_accuracy(Patient(module=Known(), x_t=x_t, r=times[0], t=times[1], v=v))
    expected = (2 * 0.5 * 2.0, 3.0, 0.5403023)  # cos 1
    assert [p.forward for p in found.partials] == pytest.approx(expected, rel=1e-6)
    assert [p.difference for p in found.partials] == pytest.approx(expected, rel=1e-6)


def test_the_sensitive_layer_is_ranked_first():
    found = report_on("Sensitive").precision
    first = found.layers[0]
    assert first.name == "sick"
    # values of tanh, below 1, on a grid of spacing 1 to 2: the relative error is of order 1; healthy layers 2^-9
    assert first.worst > 0.3
    assert max(layer.worst for layer in found.layers if layer.name != "sick") < 0.02
    assert found.verdict.level == "bad"
    leaving = next(a for a in found.layers if a.name == "leave" and a.mode == "autocast")
    assert leaving.own_value < 0.01 < 0.3 < leaving.sofar_value
    assert examine_precision(patient("Healthy")).verdict.level == "ok"


def test_fast_embeddings_warn_and_slow_ones_do_not():
    slow, fast = (examine_frequency(patient(name)) for name in ("waves_1", "waves_10000"))
    assert slow.verdict.level == "ok"
    assert fast.verdict.level == "bad"
    # sin and cos of one frequency w through tanh, which adds odd multiples: w <= reading <= 3 w
    assert 0.7 < slow.local < 3
    assert 0.7e4 < fast.local < 3e4
    assert 0.7e4 < fast.spectral < 3e4
    assert slow.highest < 10
    assert fast.correction > 100 * slow.correction


def test_gradient_of_a_step_by_hand():
    """u = w t x_t: du/dt = w (t v + x_t), u_target = v - (t - r) du/dt, dL/dw = mean of sum 2 (u - u_target) t x_t."""

    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.7))

        def forward(self, x_t, r, t):
            return self.w * t[:, None, None] * x_t

    x_t, v = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    r, t = torch.tensor([0.1, 0.2]), torch.tensor([0.8, 0.9])
    made = Patient(module=Known(), x_t=x_t, r=r, t=t, v=v)
    found, unused = gradients(made, made.module, forward_mode=True)
    r_, t_ = r[:, None, None], t[:, None, None]
    residual = 0.7 * t_ * x_t - (v - (t_ - r_) * 0.7 * (t_ * v + x_t))
    expected = (2 * residual * t_ * x_t).sum((1, 2)).mean()
    torch.testing.assert_close(found["w"], expected)  # float32 rounding
    assert unused == ()


def test_gradients_of_two_processes_disagree_where_rows_see_each_other():
    found = examine_processes(patient("BatchStatistics"))
    assert found.verdict.level == "bad", found
    assert found.gradient > 1e-3
    assert found.rows > 1e-3
    assert found.random == 0.0
    assert found.ranks == 0.0


def test_gradients_of_two_processes_disagree_under_dropout():
    found = examine_processes(patient("Dropping"), forward_mode=False)
    assert found.verdict.level == "bad", found
    assert found.random > 0.1


def test_conditions_travel_to_the_other_processes():
    made = admit(ImportPath(path="tests.meanflow.doctor.patients:conditioned"))
    assert made.rows(slice(2, 4)).conditions[0]["class"].tolist() == [2, 3]
    found = examine_processes(made)
    assert found.verdict.level == "ok", found
    assert found.gradient < 1e-12


def test_an_error_in_the_other_process_is_one_line():
    found = examine_processes(patient("only_here"))
    assert found.verdict.level == "unknown"
    assert "no such file in this process" in found.error
    assert "\n" not in found.error


def test_a_factory_that_cannot_travel_is_one_line():
    found = examine_processes(dataclasses.replace(patient("Healthy"), source=lambda: patients.Healthy()))
    assert found.verdict.level == "unknown"
    assert found.error.startswith("the factory cannot be sent to another process")


def test_processes_are_given_up_in_time():
    found = examine_processes(patient("Healthy"), limit_s=0.1)
    assert found.error == "two processes gave no answer within 0.1 s"


def test_unused_parameters_are_named():
    found = examine_processes(patient("Unused"), limit_s=0.1)
    assert found.unused == ("spare.weight", "spare.bias")


def test_live_bytes_are_counted_exactly():
    """a + 1 and its double are alive together (2 x 4000 bytes); after the first is dropped one more fits beneath."""
    a = torch.zeros(1000)
    with _Live() as live:
        b = a + 1
        c = 2 * b
        del b
        d = c + 1
        assert (live.now, live.peak) == (8000, 8000)
        d.view(10, 100).add_(1)
        assert live.now == 8000
        del c, d
    assert live.now == 0


def test_costs_in_order():
    """Derivatives without a graph keep nothing for backward; the double-backward form keeps more than the step."""
    found = examine_cost(patient("Healthy", frames=256), repeats=2)
    assert found.of("forward and backward").times == 1.0
    assert found.of("CentralDifference").memory < found.of("double backward").memory
    assert found.of("double backward").memory > 1.0
    failing = examine_cost(patient("OldFunction"), repeats=1)
    assert failing.of("ForwardAD").times is None
    assert "autograd.Function" in failing.of("ForwardAD").error
    assert failing.of("CentralDifference").times > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Attending", "MATH form"),
        ("OldFunction", "setup_context"),
        ("BatchNormed", "running statistics"),
        ("Dropping", "dropout in evaluation mode"),
        ("Detached", "cut off from its derivative"),
        ("WrongFactor", "forward-mode formula is wrong"),
        ("Instantaneous", "does not depend on r"),
        ("waves_10000", "Lower the frequencies"),
        ("Sensitive", "enabled=False"),
    ],
)
def test_recommendations_follow_from_the_disease(healthy, name, words):
    report = report_on(name)
    assert words in " ".join(recommend(report)), report
    with_words = [rule for rule in RULES if words in rule.sentence]
    assert len(with_words) == 1
    assert not with_words[0].applies(healthy[3])


def test_an_examination_that_fails_does_not_cost_the_others():
    report = report_on("BatchNormed")
    assert isinstance(report.accuracy, Failed)
    assert "could not be examined" in report.accuracy.verdict.line
    assert report.precision.autocast_dudt is None
    assert report.precision.autocast_u < 0.05


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "package.module:factory"),
        ("no_such_module_here:f", "cannot be imported"),
        ("tests.meanflow.doctor.patients:absent", "no function 'absent'"),
        ("tests.meanflow.doctor.patients:failing", "failed: KeyError"),
        ("tests.meanflow.doctor.patients:nonsense", "got str"),
        ("tests.meanflow.doctor.patients:Flat", "shaped like x_t"),
        ("tests.meanflow.doctor.patients:Infinite", "not finite"),
        ("tests.meanflow.doctor.patients:Picky", "IndexError: channel 9 of 8"),
    ],
)
def test_factories_that_return_nonsense_get_one_line(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        admit(ImportPath(path=path))
    assert "\n" not in str(caught.value)


def test_wrong_inputs_are_refused():
    x_t, r, t = torch.zeros(2, 3, 8), torch.zeros(2), torch.ones(2)
    for change, message in (
        ({"x_t": torch.zeros(8)}, "x_t must be"),
        ({"r": torch.ones(3)}, "r must be"),
        ({"t": torch.tensor([0.5, 1.5])}, "0 <= r <= t <= 1"),
    ):
        fields = {"module": patients.Healthy(), "x_t": x_t, "r": r, "t": t, "v": x_t} | change
        with pytest.raises(ValueError, match=message):
            Patient(**fields)
    for inputs in ((x_t[:1], r[:1], t[:1]), (x_t, t, t)):
        with pytest.raises(ValueError, match="at least two rows, and one with r < t"):
            admit(lambda inputs=inputs: (patients.Healthy(), inputs))


def test_what_cannot_be_copied_is_refused():
    def made():
        module = patients.Healthy()
        module.cache = module.enter.weight * 2
        return module

    with pytest.raises(ValueError, match="cannot be copied"):
        admit(made)


def test_two_rows_make_two_halves():
    """A half of one row, or without r < t, is examined like any other."""
    x_t, r, t = torch.randn(2, 3, 8), torch.tensor([0.2, 0.5]), torch.tensor([0.9, 0.5])
    made = admit(lambda: (patients.Healthy(), (x_t, r, t)))
    found = examine_processes(dataclasses.replace(made, source=patients.Healthy))
    assert found.verdict.level == "ok", found
