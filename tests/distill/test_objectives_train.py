"""Every objective trains from its configuration in the one loop, with one call of the network per step."""

import json
import shutil
import typing
from dataclasses import replace

import pytest
import torch
import tyro
from safetensors.torch import load_file

from distill.config import DistillRun, FromData, FromTeacher, GuidedInput, Method
from distill.method.step import train_step
from distill.method.student import student_from_teacher
from distill.tasks import distil, train_teacher
from meanflow import (
    AlphaFlow,
    ConsistencyTraining,
    ImprovedMeanFlow,
    MixedGuidance,
    Objective,
    TerminalVelocity,
)
from meanflow.config import dumps, from_plain, loads, to_plain
from meanflow.time_sampling import MixedTimes
from scripts.distill import commands
from teacher.network.batch import Batch
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig
from teacher.network.velocity import student_velocity
from teacher.weights.loading import load_network
from tests.distill import tiny
from tests.teacher.network.test_network import conditions, opened, small

HALF = MixedTimes(fm_fraction=0.5)
GUIDED = FromData(mixed=MixedGuidance(omega=0.3, kappa=0.9), predictions="student")
METHOD = {kind.__name__: Method(objective=kind(), times=HALF) for kind in typing.get_args(Objective)} | {
    "velocity head": Method(objective=ImprovedMeanFlow(head=True), times=HALF, velocity_head=1),
    "anchored to the teacher": Method(objective=TerminalVelocity(source="teacher"), times=HALF, velocity=FromTeacher()),
    "guided by itself": Method(times=HALF, velocity=GUIDED),
    "guidance as an input": Method(
        objective=ImprovedMeanFlow(head=True), times=HALF, velocity=GuidedInput(), velocity_head=1
    ),
}


PRESETS, RECIPES = commands(), dict(tiny.METHODS)
RECIPES["improved-head"] = replace(RECIPES["improved-head"], velocity_head=1)  # small networks have one fused block


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.features(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    return train_teacher(tiny.teacher_run(data), tmp_path_factory.mktemp("teacher"))


def run_of(data, teacher, method, steps=2):
    return DistillRun(data=(data,), teacher=teacher, method=method, loop=replace(tiny.LOOP, steps=steps))


@pytest.mark.parametrize("name", METHOD)
def test_two_steps_of_the_real_loop(data, teacher, tmp_path, name):
    """Finite losses, weights that moved, and a configuration that comes back from the run folder."""
    config = run_of(data, teacher, METHOD[name])
    run = distil(config, tmp_path / "run")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2
    assert all(line["error"] >= 0 and line["skipped_in_a_row"] == 0 for line in logged)  # nan is not >= 0
    assert from_plain(DistillRun, json.loads((run / "config.json").read_text())["run"]) == config

    trained, start = load_network(run, weights="model"), load_network(teacher)
    assert trained.config.velocity_head == METHOD[name].velocity_head
    assert trained.config.guidance_embedding == isinstance(METHOD[name].velocity, GuidedInput)
    started = student_from_teacher(
        start, guidance_embedding=trained.config.guidance_embedding, velocity_head=trained.config.velocity_head
    ).state_dict()
    moved = {n for n, p in trained.state_dict().items() if not torch.equal(p, started[n])}
    assert {"final_layer.conv.weight", "t_embed.mlp.2.weight"} <= moved
    assert ("velocity_layer.conv.weight" in moved) == (METHOD[name].velocity_head > 0)


def test_flow_matching_jumps_as_euler_steps(data, teacher, tmp_path):
    """It sees r = t only; the interval stays unheard, so that u(x_t, r, t) = u(x_t, t, t) for every r."""
    net = load_network(distil(run_of(data, teacher, METHOD["PlainFlowMatching"]), tmp_path / "run"))
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 31, 20, generator=g), torch.tensor([0.4, 0.9])
    encoded = net.encode_conditions(Conditions.empty(2, 1.0), 31)
    assert torch.equal(student_velocity(net, x, 0 * t, t, encoded), student_velocity(net, x, t, t, encoded))


def test_share_of_training_reaches_objective_and_times(data, teacher, tmp_path, monkeypatch):
    """Four steps are 0, 1/4, 1/2 and 3/4 of the training for both schedules."""
    seen = {"times": [], "objective": []}
    objective, times = AlphaFlow.__call__, MixedTimes.__call__

    def told_objective(self, *a, progress):
        seen["objective"].append(progress)
        return objective(self, *a, progress=progress)

    def told_times(self, n, *, generator, progress):
        seen["times"].append(progress)
        return times(self, n, generator=generator, progress=progress)

    monkeypatch.setattr(AlphaFlow, "__call__", told_objective)
    monkeypatch.setattr(MixedTimes, "__call__", told_times)
    annealed = MixedTimes(fm_fraction=0.75, fm_fraction_end=0.25)
    distil(run_of(data, teacher, Method(objective=AlphaFlow(), times=annealed), steps=4), tmp_path / "run")
    assert seen == {"times": [0.0, 0.25, 0.5, 0.75], "objective": [0.0, 0.25, 0.5, 0.75]}


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", [*METHOD, *RECIPES])
def test_one_call_of_the_wrapper_per_step(name, progress):
    """Whatever the objective, a data-parallel wrapper sees one ordinary forward; only it leaves gradients behind."""
    method, base = (METHOD | RECIPES)[name], opened(small())
    net = student_from_teacher(
        base, guidance_embedding=isinstance(method.velocity, GuidedInput), velocity_head=method.velocity_head
    )
    calls, graphs = [], []

    def wrapped(*a):
        calls.append(len(a[0]))
        return net(*a)

    def watch(module, inputs, output):
        graphs.append(torch.is_grad_enabled())

    net.audio_input_proj.register_forward_hook(watch)
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 9, 4, generator=g, dtype=torch.float64)
    batch = Batch(latents=latents, conditions=conditions(small(), 8), indices=torch.arange(8))
    terms = train_step(wrapped, net, base, batch, method, generator=g, progress=progress)
    terms.loss.mean().backward()
    assert len(calls) == 1
    assert sum(graphs) == 1
    assert terms.loss.shape == (8,)
    second_error = isinstance(method.objective, TerminalVelocity) or method.velocity_head > 0
    assert ("error/extra" in terms.logs) == second_error
    learns = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"final_layer.conv.weight", "fused_blocks.0.linear1.weight"} <= learns
    assert all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize("method", [*METHOD.values(), *RECIPES.values()])
def test_configuration_survives_json(method):
    assert loads(Method, dumps(method)) == method


@pytest.mark.parametrize("name", PRESETS)
def test_help_of_every_preset_names_its_flags(name, capsys):
    with pytest.raises(SystemExit) as left:
        tyro.extras.overridable_config_cli(PRESETS, args=[name, "--help"])
    assert left.value.code == 0
    assert "--method.times." in capsys.readouterr().out


def test_flags_change_the_numbers_of_a_preset():
    arguments = ["alpha-flow", "--method.objective.end", "0.5", "--method.times.fm-fraction", "0.25"]
    method = tyro.extras.overridable_config_cli(PRESETS, args=arguments).run.method
    assert method.objective == AlphaFlow(end=0.5)
    assert method.times == replace(RECIPES["alpha-flow"].times, fm_fraction=0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": ImprovedMeanFlow(head=True)}, "velocity_head must be above 0"),
        ({"velocity_head": 1}, "got 1 with MeanFlow"),
        ({"velocity_head": -1}, "velocity_head"),
        ({"objective": ConsistencyTraining(), "velocity": GUIDED}, "predictions must be teacher"),
        ({"objective": ConsistencyTraining(), "velocity": GuidedInput()}, "predictions must be teacher"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Method(**changes)


def test_networks_of_before_load_without_the_new_fields():
    plain = to_plain(tiny.NETWORK)
    for name in ("guidance_embedding", "velocity_head"):
        del plain[name]
    assert from_plain(MMAudioConfig, plain) == tiny.NETWORK
    names = set(MMAudio(tiny.NETWORK).state_dict())
    assert not any(n.startswith(("guidance_embed", "velocity_")) for n in names)


@pytest.mark.parametrize("name", ["ConsistencyTraining", "TerminalVelocity"])
def test_targets_come_from_averaged_weights(data, teacher, tmp_path, monkeypatch, capsys, name):
    """At every step the network behind the targets has the weights that the narrowest average had after the step
    before, which from the third step on are not the present ones; the history says so."""
    config = run_of(data, teacher, METHOD[name], steps=4)
    used = []
    step = train_step

    def watched(student, plain, *rest, averaged, **options):
        of = [dict(net.named_parameters())["final_layer.conv.weight"].clone() for net in (plain, averaged)]
        used.append(of)
        return step(student, plain, *rest, averaged=averaged, **options)

    monkeypatch.setattr("distill.tasks.train_step", watched)
    run = distil(replace(config, loop=replace(config.loop, save_every=1, keep_last=4)), tmp_path / "run")
    assert torch.equal(*used[0])
    assert torch.equal(*used[1])  # the first update copies the weights
    assert not torch.equal(*used[2])
    for step_done in (1, 2, 3):
        kept = load_file(run / "trainer" / f"step-{step_done:07d}" / "ema-0.1.safetensors")
        assert torch.equal(used[step_done][1], kept["final_layer.conv.weight"])
    assert json.loads((run / "history.jsonl").read_text().splitlines()[0])["targets"] == "ema-0.1"
    assert "targets:" not in capsys.readouterr().out


def test_without_averages_targets_come_from_the_present_weights_and_a_line_says_so(data, teacher, tmp_path, capsys):
    """The first two steps are alike, since the first update of an average copies the weights; the third is not."""
    config = run_of(data, teacher, METHOD["ConsistencyTraining"], steps=3)
    averaged = tiny.losses(distil(config, tmp_path / "averaged"))
    capsys.readouterr()
    present = tiny.losses(distil(replace(config, loop=replace(config.loop, ema_std=())), tmp_path / "present"))
    assert "targets: from the present weights, since loop.ema_std names no average" in capsys.readouterr().out
    assert averaged[:2] == present[:2]
    assert averaged[2] != present[2]


def test_a_run_of_before_is_told_that_its_targets_change(data, teacher, tmp_path, capsys):
    """A folder that an earlier version left after its first step: no line of its history speaks of targets."""
    config = run_of(data, teacher, METHOD["ConsistencyTraining"], steps=2)
    config = replace(config, loop=replace(config.loop, save_every=1))
    run = distil(config, tmp_path / "run")
    shutil.rmtree(run / "trainer" / "step-0000002")
    history = run / "history.jsonl"
    history.write_text(history.read_text().replace(', "targets": "ema-0.1"', ""))
    capsys.readouterr()
    distil(config, run)
    assert "targets: from averaged weights (ema-0.1) from step 2 on, from the present weights before" in (
        capsys.readouterr().out
    )
