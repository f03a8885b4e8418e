"""Recipes of students: what they start from, what they train, what they refuse, and where their numbers come from."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file

from distill.config import DistillRun, FromData, FromTeacher, FromWeights, GuidedInput, Method
from distill.engines.optim import learning_rate
from distill.method.adapters import ADAPTER, adapt
from distill.method.student import NEW_PARAMETERS, student_from_teacher, time_fit
from distill.presets import students as presets
from distill.tasks import distil, student_task, time_note
from meanflow import (
    AlphaFlow,
    CentralDifference,
    Correction,
    ForwardAD,
    ImprovedMeanFlow,
    MeanFlow,
    PlainFlowMatching,
    TerminalVelocity,
    TransitionModel,
)
from meanflow.config import from_plain, to_plain
from scripts.distill import commands
from teacher.network.lora import LoRAConfig
from teacher.network.mmaudio import FROZEN_PARAMETERS, MMAudio
from teacher.network.velocity import student_velocity, teacher_velocity
from teacher.weights.loading import load_network
from tests.distill import tiny
from tests.teacher.network.test_network import conditions, opened, small

LORA = LoRAConfig(rank=2, alpha=4.0)
V2 = replace(tiny.NETWORK, version="v2")
RECIPES = Path(__file__).parents[3] / "docs" / "methods" / "recipes.md"
PRESETS = commands()
DIFFERENCES = Correction(derivative=CentralDifference())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.features(tmp_path_factory.mktemp("data"))


def folder(path, net, data, licence=None):
    """A run folder as training leaves one, with this network as its last step."""
    path.mkdir(parents=True)
    document = {"kind": "any", "run": {}, "network": to_plain(net.config), "digests": {}}
    (path / "config.json").write_text(json.dumps(document | ({} if licence is None else {"licence": licence})))
    save_file({n: p.detach().clone() for n, p in net.state_dict().items()}, path / "model.safetensors")
    for name in ("features.json", "codec.safetensors"):
        (path / name).write_bytes((data / name).read_bytes())
    return path


def shaken(net, seed=0, scale=0.1):
    """The network with noise on every trained parameter."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name not in FROZEN_PARAMETERS:
                p.add_(scale * torch.randn(p.shape, generator=g))
    return net


def network(config, seed=0):
    torch.manual_seed(seed)
    return shaken(MMAudio(config), seed)


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    return {
        "v1": folder(root / "v1", network(tiny.NETWORK), data, "licence of the teacher"),
        "v2": folder(root / "v2", network(V2), data),
    }


def run_of(data, teacher, **changes):
    method = Method(**changes.pop("method", {}))
    return DistillRun(data=(data,), teacher=teacher, method=method, loop=tiny.LOOP, **changes)


def task_of(data, teacher, tmp_path, **changes):
    return student_task(run_of(data, teacher, **changes), tmp_path / "run")


def predictions(net, data, r_of=lambda t: 0 * t):
    """u(x_t, r, t) at four fixed states of the data's shape, in float64.

    Teacher and student put other numbers of rows into a product, and processors may round its rows in another way then:
    equal networks agree to the rounding of float64 (`same`), which nothing that is wrong does.
    """
    net = copy.deepcopy(net).double()
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, 31, 20, generator=g, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    c = task_batch(data).to("cpu", torch.float64)
    with torch.no_grad():
        encoded = net.encode_conditions(c, 31)
        if not net.config.interval_embedding:
            return teacher_velocity(net, x, t, encoded)
        return student_velocity(net, x, r_of(t), t, encoded)


def same(a, b):
    """Values of about 1 after some hundred sums of float64: 2^-53 times a thousand is 1e-13."""
    return float((a - b).abs().max()) < 1e-12


def task_batch(data):
    from teacher.features.dataset import FeatureSet

    return FeatureSet.open(data, "train").batch([0, 1, 2, 3]).conditions


# The treatment of v2's time embedding.


@pytest.mark.parametrize("time_embedding", ["auto", "teacher", "smooth"])
def test_v1_starts_at_its_teacher_to_the_bit_whatever_is_asked(data, teachers, tmp_path, time_embedding):
    task = task_of(data, teachers["v1"], tmp_path, method={"time_embedding": time_embedding})
    teacher = load_network(teachers["v1"])
    assert same(predictions(task.net, data), predictions(teacher, data))
    assert task.net.config == replace(teacher.config, interval_embedding=True)
    assert time_note(task.config, task) == []


@pytest.mark.parametrize(("time_embedding", "fastest"), [("auto", 100.0), ("smooth", 100.0), ("teacher", 1e4)])
def test_v2_gets_a_smooth_embedding_unless_told_otherwise(data, teachers, tmp_path, time_embedding, fastest):
    task = task_of(data, teachers["v2"], tmp_path, method={"time_embedding": time_embedding})
    teacher = load_network(teachers["v2"])
    assert task.net.t_embed.fastest == task.net.interval_embed.fastest == fastest
    at_its_teacher = same(predictions(task.net, data), predictions(teacher, data))
    assert at_its_teacher == (time_embedding == "teacher")
    unchanged = {n for n, p in teacher.state_dict().items() if torch.equal(p, task.net.state_dict()[n])}
    assert set(teacher.state_dict()) - unchanged <= {f"t_embed.mlp.{k}.{p}" for k in (0, 2) for p in ("weight", "bias")}
    assert task.frozen[0].t_embed.fastest == 1e4
    (line,) = time_note(task.config, task)
    assert line.startswith(
        "time embedding: the teacher's" if at_its_teacher else "time embedding: 10,000 rad per unit in the teacher"
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_treatment_shrinks_the_derivative_and_keeps_u(seed):
    """rms d_t u against rms u, r fixed. With weights that know no time scale every frequency counts alike, and
    log-uniform ones up to W have rms W / sqrt(2 log(W / 1)): 2,300 rad for 1e4 (log = 9.2), 33 for 100 (4.6), a factor
    of 70 in an embedding that keeps half of its power, so 100 in all. A tenth of that factor is allowed for."""
    config = small(version="v2", num_heads=4, head_dim=16)
    teacher, n = opened(config, seed), 8
    c = conditions(config, n)
    x = torch.randn(n, 9, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n

    def sizes(net):
        encoded = net.encode_conditions(c, 9)
        u_fn = lambda *a: student_velocity(net, *a, encoded)  # noqa: E731
        dudt = ForwardAD()(u_fn, x, 0 * t, t, torch.zeros_like(x))
        return u_fn(x, 0 * t, t).square().mean().sqrt().item(), dudt.square().mean().sqrt().item()

    with torch.no_grad():
        before = sizes(student_from_teacher(teacher, time_embedding="teacher"))
        after = sizes(student_from_teacher(teacher))
    assert before[1] > 100 * before[0]
    assert after[0] == pytest.approx(before[0], rel=0.2)
    assert before[1] / after[1] > 10


def test_velocity_is_kept_as_well_as_the_teacher_is_smooth():
    """The error of u at r = t falls with the teacher's use of fast frequencies, in proportion: 1e-3 of it, 1e-3 of the
    error. At none, it is zero."""
    config, errors = small(version="v2", num_heads=4, head_dim=16), []
    x = torch.randn(8, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for fast in (0.0, 1e-3, 1e-2):
        teacher = opened(config)
        with torch.no_grad():
            teacher.t_embed.mlp[0].weight.view(64, 2, -1)[:, :, :16].mul_(fast)
        errors.append(time_fit(student_from_teacher(teacher), teacher, x, conditions(config, 8)).velocity)
    assert errors[0] < 1e-12
    assert errors[1] < 1e-3
    assert errors[2] == pytest.approx(10 * errors[1], rel=0.05)


@pytest.mark.parametrize(
    "objective",
    [
        TransitionModel(),
        MeanFlow(correction=DIFFERENCES),
        ImprovedMeanFlow(correction=DIFFERENCES),
        AlphaFlow(correction=DIFFERENCES),
        TerminalVelocity(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_differences_of_a_fast_network_are_refused(data, teachers, tmp_path, objective):
    with pytest.raises(ValueError, match=r"by differences.*10,000 rad per unit; use method.time_embedding=smooth"):
        task_of(data, teachers["v2"], tmp_path, method={"objective": objective, "time_embedding": "teacher"})
    task_of(data, teachers["v2"], tmp_path, method={"objective": objective})
    task_of(data, teachers["v1"], tmp_path, method={"objective": objective, "time_embedding": "teacher"})


def test_exact_derivatives_of_a_fast_network_are_not_refused(data, teachers, tmp_path):
    for objective in (MeanFlow(), TerminalVelocity(derivative="exact"), PlainFlowMatching()):
        task_of(data, teachers["v2"], tmp_path, method={"objective": objective, "time_embedding": "teacher"})


# Adapters.


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("head", [0, 1])
def test_adapted_students_train_adapters_and_what_is_new(data, teachers, tmp_path, version, head):
    method = {"objective": ImprovedMeanFlow(head=head > 0), "velocity_head": head}
    task = task_of(data, teachers[version], tmp_path, lora=LORA, method=method)
    plain = task_of(data, teachers[version], tmp_path, method=method)
    in_full = (*NEW_PARAMETERS, "t_embed.") if version == "v2" else NEW_PARAMETERS
    trained = {n for n, p in task.net.named_parameters() if p.requires_grad}
    adapters = {n for n in trained if n.endswith((".lora_a", ".lora_b"))}
    assert adapters
    assert not any(n.startswith(in_full) for n in adapters)
    assert trained - adapters == {n for n, _ in plain.net.named_parameters() if n.startswith(in_full)}
    assert same(predictions(task.net, data), predictions(plain.net, data))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_merged_weights_predict_what_the_adapted_student_does(data, teachers, tmp_path, version):
    """After training, here noise on everything trained: merged in float32 the sums differ by rounding alone."""
    task = task_of(data, teachers[version], tmp_path, lora=LORA)
    at_start = predictions(task.net, data)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in task.net.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    made = task.publish("model", dict(task.net.state_dict()))
    assert set(made) == {"model"}  # adapters are not all that was trained
    merged = MMAudio(task.net.config)
    merged.load_state_dict(made["model"])
    adapted = predictions(task.net, data)
    assert (adapted - at_start).abs().max() > 1e-2
    torch.testing.assert_close(predictions(merged, data), adapted, rtol=1e-4, atol=1e-5)


def test_adapters_alone_are_published_where_they_are_all():
    net = MMAudio(tiny.NETWORK)
    merging = adapt(net, LORA, seed=0)
    assert set(merging("model", dict(net.state_dict()))) == {"model", ADAPTER}
    assert set(merging("ema-0.1", dict(net.state_dict()))) == {"ema-0.1"}
    assert not any(p.is_meta for p in net.parameters())


def test_targets_that_are_trained_in_full_anyway_are_refused(data, teachers, tmp_path):
    with pytest.raises(ValueError, match="select only layers that are trained in full anyway"):
        task_of(data, teachers["v1"], tmp_path, lora=LoRAConfig(targets=("interval_embed",)))


@pytest.mark.parametrize("lora", [None, LORA])
def test_flow_matching_leaves_the_interval_alone(data, teachers, tmp_path, lora):
    task = task_of(data, teachers["v2"], tmp_path, lora=lora, method={"objective": PlainFlowMatching()})
    frozen = {n for n, p in task.net.named_parameters() if not p.requires_grad}
    assert {n for n in task.net.state_dict() if n.startswith("interval_embed.")} <= frozen
    assert not any(n.startswith("t_embed.") for n in frozen)


# Going on from an earlier student.


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_going_on_from_a_student_reproduces_it_to_the_bit(data, teachers, tmp_path, version, lora):
    earlier = shaken(task_of(data, teachers[version], tmp_path).net)
    start = FromWeights(run=folder(tmp_path / "earlier", earlier, data))
    task = task_of(data, teachers[version], tmp_path, student=start, lora=lora)
    for r_of in (lambda t: t, lambda t: 0.3 * t, lambda t: 0 * t):
        assert same(predictions(task.net, data, r_of), predictions(earlier, data, r_of))
    assert not torch.equal(predictions(earlier, data), predictions(earlier, data, lambda t: t))  # it uses the interval
    trained = {n for n, p in task.net.named_parameters() if p.requires_grad}
    assert "interval_embed.mlp.2.weight" in trained
    assert not trained & set(FROZEN_PARAMETERS)
    assert ("final_layer.conv.weight" in trained) == (lora is None)
    assert set(task.digests) == {"features", "teacher", "student"}
    assert len(set(task.digests.values())) == 3
    assert time_note(task.config, task) == []


def test_an_untreated_student_goes_on_untreated(data, teachers, tmp_path):
    """auto does not fit anew what was trained; to ask for another embedding than the student's is refused."""
    earlier = task_of(data, teachers["v2"], tmp_path, method={"time_embedding": "teacher"}).net
    start = FromWeights(run=folder(tmp_path / "earlier", earlier, data))
    assert task_of(data, teachers["v2"], tmp_path, student=start).net.t_embed.fastest == 1e4
    with pytest.raises(ValueError, match="another architecture than this run's: time_frequencies"):
        task_of(data, teachers["v2"], tmp_path, student=start, method={"time_embedding": "smooth"})
    with pytest.raises(ValueError, match="takes its derivative by differences"):
        task_of(data, teachers["v2"], tmp_path, student=start, method={"objective": TransitionModel()})


def test_licences_of_student_and_teacher_add_up(data, teachers, tmp_path):
    net = task_of(data, teachers["v1"], tmp_path).net
    lines = {"same": "licence of the teacher", "other": "another", "none": None}
    found = {
        name: task_of(
            data, teachers["v1"], tmp_path, student=FromWeights(run=folder(tmp_path / name, net, data, line))
        ).licence
        for name, line in lines.items()
    }
    alone = "licence of the teacher"
    assert found == {"same": alone, "other": f"{alone}; another", "none": alone}
    assert task_of(data, teachers["v1"], tmp_path).licence == alone
    assert task_of(data, teachers["v2"], tmp_path).licence is None


def test_starts_that_do_not_fit_are_refused(data, teachers, tmp_path):
    base = task_of(data, teachers["v1"], tmp_path).net

    def refused(start, message, features=data, **changes):
        with pytest.raises(ValueError, match=message) as error:
            task_of(features, teachers["v1"], tmp_path, student=FromWeights(run=start), **changes)
        assert "\n" not in str(error.value)

    refused(teachers["v1"], "is a teacher; student.run goes on from a distilled student")
    start = folder(tmp_path / "student", base, data)
    refused(start, "another architecture than this run's: guidance_embedding", method={"velocity": GuidedInput()})
    wide = folder(tmp_path / "wide", network(replace(base.config, num_heads=2)), data)
    refused(wide, "another architecture than this run's: num_heads")
    moved = MMAudio(base.config)
    moved.load_state_dict(base.state_dict() | {"latent_mean": base.latent_mean + 1})
    refused(folder(tmp_path / "moved", moved, data), r"different latent statistics \(latent_mean\)")
    other = tiny.features(tmp_path / "other", seed=5)
    refused(start, "come from another codec than", features=other)
    foreign = folder(tmp_path / "foreign", base, other)
    refused(foreign, "come from another codec than")


# Configurations.


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_guidance_begins_within_the_run(value):
    with pytest.raises(ValueError, match=r"guided_from must lie in \[0, 1\], got"):
        Method(guided_from=value)


def test_time_embeddings_have_three_names():
    with pytest.raises(ValueError, match="time_embedding must be one of auto, teacher, smooth, got 'fast'"):
        Method(time_embedding="fast")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json_and_has_one_line_of_help(name):
    says, command = PRESETS[name]
    assert from_plain(DistillRun, json.loads(json.dumps(to_plain(command.run)))) == command.run
    assert 20 < len(says) < 120
    assert says.endswith(".")


def test_numbers_of_the_published_recipe():
    """xiquan-li/MeanAudio, second stage, as listed in docs/methods/recipes.md."""
    run = presets.student_mf_mjt()
    optim, method = run.loop.optim, run.method
    assert (optim.lr, optim.betas, optim.weight_decay, optim.adam_eps) == (1e-4, (0.9, 0.95), 1e-6, 1e-6)
    assert (optim.warmup_steps, optim.clip_norm, run.loop.ema_std) == (1000, 1.0, (0.05, 0.1))
    rates = [learning_rate(step, 200_000, optim) for step in (100_000, 161_500, 181_500, 199_999)]
    assert rates == pytest.approx([1e-4, 1e-5, 1e-6, 1e-6])
    assert (run.loop.steps, run.loop.batch_size) == (200_000, 128)
    assert (method.times.fm_fraction, method.times.pairs.first.mean, method.times.pairs.first.scale) == (0.75, -0.4, 1)
    assert isinstance(method.velocity, FromData)
    assert method.velocity.scale == pytest.approx(3.0)
    assert (method.loss.p, method.loss.c, method.loss.reduction) == (1.0, 1e-3, "mean")
    assert run.loop.steps / run.loop.ema_snapshot_every == 20


def test_two_commands_are_the_one():
    """Together they have its steps and its samples; the first is never guided, the second always."""
    whole, first, second = presets.student_mf_mjt(), presets.student_mf_mjt_unguided(), presets.student_mf_mjt_guided()
    assert first.loop.steps + second.loop.steps == whole.loop.steps
    assert (first.method.guided_from, second.method.guided_from) == (1.0, 0.0)
    assert first.loop.steps == round(whole.method.guided_from * whole.loop.steps)
    assert first.student is None
    assert second.student == FromWeights(run=PRESETS["mf-mjt-unguided"][1].out)


def test_the_second_version_is_healed_before_it_learns_intervals():
    heal, run = presets.student_large_44k_v2_heal(), presets.student_large_44k_v2()
    assert heal.method.times.fm_fraction == 1.0
    assert isinstance(heal.method.objective, PlainFlowMatching)
    assert isinstance(heal.method.velocity, FromTeacher)
    assert not heal.method.velocity.guidance.active
    assert (heal.method.time_embedding, run.method.time_embedding) == ("smooth", "smooth")
    assert run.student == FromWeights(run=PRESETS["mf-mjt-large-44k-v2-heal"][1].out)
    assert not heal.method.dropout.joint_video


def test_command_line_reaches_starts_and_adapters():
    def parsed(arguments):
        return tyro.extras.overridable_config_cli(PRESETS, args=arguments.split()).run

    assert parsed("mf-mjt-guided --student.run runs/a --student.weights model").student == FromWeights(
        run=Path("runs/a"), weights="model"
    )
    assert parsed("mf-mjt-lora --lora.rank 4").lora == LoRAConfig(rank=4, alpha=64.0)
    assert parsed("mf-mjt --method.guided-from 0.5 --method.time-embedding smooth").method.guided_from == 0.5


def test_the_page_lists_every_recipe_and_its_commands_parse():
    text = RECIPES.read_text()
    own = [name for name in PRESETS if name.startswith("mf-mjt") or name in ("demo", "debug")]
    assert all(f"`{name}`" in text for name in own)
    commands = re.findall(r"-m scripts\.distill ((?:.|\\\n)*?)(?<!\\)(?=\n)", text)
    assert len(commands) >= 6
    for command in commands:
        tyro.extras.overridable_config_cli(PRESETS, args=command.replace("\\\n", " ").split())


def test_published_files_hold_what_the_network_of_the_run_folder_takes(data, teachers, tmp_path):
    """The smooth embedding is in config.json's network, so that a run folder's weights load strictly."""
    net = shaken(task_of(data, teachers["v2"], tmp_path).net)
    loaded = load_network(folder(tmp_path / "student", net, data))
    assert same(predictions(loaded, data), predictions(net, data))
    assert set(load_file(tmp_path / "student" / "model.safetensors")) == set(loaded.state_dict())


def test_both_commands_of_the_second_version_in_the_real_loop(data, teachers, tmp_path, capfd):
    """Heal, then go on with adapters: the line is printed once, what lies in the run folders is plain weights."""
    loop = replace(tiny.LOOP, steps=2)
    heal = replace(presets.student_large_44k_v2_heal(), data=(data,), teacher=teachers["v2"], loop=loop)
    first = distil(heal, tmp_path / "heal")
    assert capfd.readouterr().out.count("time embedding: 10,000 rad per unit in the teacher") == 1
    second = replace(
        presets.student_large_44k_v2(),
        data=(data,),
        teacher=teachers["v2"],
        student=FromWeights(run=first),
        lora=LORA,
        loop=loop,
    )
    run = distil(second, tmp_path / "run")
    assert "time embedding" not in capfd.readouterr().out
    for made in (first, run):
        assert load_network(made).config == replace(V2, interval_embedding=True, time_frequencies="smooth")
    before, after = load_file(first / "ema-0.1.safetensors"), load_file(run / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"interval_embed.mlp.2.weight", "t_embed.mlp.2.weight", "fused_blocks.0.ffn.w1.weight"} <= moved
    assert "final_layer.conv.weight" not in moved
