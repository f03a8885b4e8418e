"""Training from weights starts at the checkpoint's function and keeps its statistics; adapters; resuming; data."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from distill.checkpoints.posthoc import reconstruct
from distill.config import DistillRun, Fresh, FromWeights, TeacherRun
from distill.initial_network import fresh_or_loaded
from distill.loop import fit as train
from distill.loop.fit import generator
from distill.presets.students import student_debug
from distill.tasks import distil, open_sets, train_teacher
from scripts import ema
from teacher.audio.registry import open_codec
from teacher.features.codec import load_codec
from teacher.features.dataset import JointSet, batch_indices
from teacher.files.errors import FeatureError
from teacher.files.safetensors import write_tensors
from teacher.flow_matching import flow_matching_step
from teacher.network.lora import LoRAConfig, load_adapter, merge_lora
from teacher.network.variants import variant
from teacher.weights.loading import load_network
from teacher.weights.run_folder import read_licence
from tests.distill import tiny

LORA = LoRAConfig(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.features(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A trained teacher with a licence of its own, as official run folders have one."""
    run = train_teacher(tiny.teacher_run(data), tmp_path_factory.mktemp("base"))
    document = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(document | {"licence": "for tests only"}))
    return run


def tuned(data, base, **changes):
    return tiny.teacher_run(data, start=FromWeights(run=base), **changes)


def one_interruption(monkeypatch, after):
    """Ctrl-C during the step number `after`, counted from 1."""
    calls, real = [], train._Loop._update

    def update(*arguments):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(train._Loop, "_update", update)


def same(a, b, name):
    a, b = load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("weights", ["model", "ema-0.2"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_first_loss_is_that_of_the_checkpoint(data, base, tmp_path, weights, lora):
    config = tuned(data, base, lora=lora, loop=replace(tiny.LOOP, steps=1))
    config = replace(config, start=FromWeights(run=base, weights=weights))
    run = train_teacher(config, tmp_path / "run")
    clips = open_sets((data,), (), load_codec(data))
    batch = clips.batch(batch_indices(len(clips), 4, seed=0, step=0).tolist())
    numbers = generator(0, 0, "step")
    with torch.no_grad():
        terms = flow_matching_step(load_network(base, weights=weights), batch, config.method, generator=numbers)
    assert tiny.losses(run) == [round(terms.loss.mean().item(), 6)]


def test_finetuning_changes_what_is_trained_and_nothing_else(data, base, tmp_path):
    run = train_teacher(tuned(data, base), tmp_path / "run")
    before, after = load_file(base / "model.safetensors"), load_file(run / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    idle = {f"joint_blocks.0.{stream}_block.attn.q_norm.weight" for stream in ("clip", "text")}
    # The last joint block reads nothing but keys and values of image and text: their queries have no effect.
    assert {"latent_mean", "latent_std", "empty_string_feat"} | idle == set(before) - changed
    assert (run / "codec.safetensors").read_bytes() == (data / "codec.safetensors").read_bytes()


def test_licence_follows_the_weights_to_the_student(data, base, tmp_path):
    run = train_teacher(tuned(data, base), tmp_path / "run")
    assert read_licence(run) == "for tests only"
    student = replace(student_debug(), data=(data,), teacher=run, loop=replace(tiny.LOOP, steps=1))
    assert read_licence(distil(student, tmp_path / "student")) == "for tests only"


def test_a_fresh_network_inherits_no_licence(data, tmp_path):
    run = train_teacher(tiny.teacher_run(data, loop=replace(tiny.LOOP, steps=1)), tmp_path / "run")
    assert "licence" not in json.loads((run / "config.json").read_text())


def test_run_keeps_the_statistics_of_its_checkpoint(data, base, tmp_path, monkeypatch):
    """The latents reach the network as (z - mean) / std of the checkpoint, and the run's codec undoes just that."""
    start = tmp_path / "start"
    start.mkdir()
    mean, std = torch.linspace(-1, 1, 20), torch.linspace(0.5, 2, 20)
    tensors = load_file(base / "model.safetensors")
    tensors |= {"latent_mean": mean.view(1, 1, 20), "latent_std": std.view(1, 1, 20)}
    write_tensors(start / "model.safetensors", tensors)
    for name in ("config.json", "features.json"):
        (start / name).write_bytes((base / name).read_bytes())
    load_codec(data).with_statistics(mean, std).save(start / "codec.safetensors")

    seen = []
    real = train._Loop._update

    def update(loop, step):
        seen.append(loop.task.data.batch([0]).latents)
        return real(loop, step)

    monkeypatch.setattr(train._Loop, "_update", update)
    run = train_teacher(tuned(data, start), tmp_path / "run")
    plain = open_sets((data,), (), load_codec(data)).batch([0]).latents
    torch.testing.assert_close(seen[0], (plain - mean) / std)
    stored = open_codec(run / "codec.safetensors")
    torch.testing.assert_close(stored.latent_mean, mean)
    torch.testing.assert_close(stored.latent_std, std)
    torch.testing.assert_close(stored.decode_mel(seen[0]), load_codec(data).decode_mel(plain), rtol=1e-4, atol=1e-4)
    assert torch.equal(load_network(run).latent_std.flatten(), std)


def test_a_fresh_network_takes_statistics_and_the_empty_caption(data, monkeypatch):
    mean, std = torch.full((20,), 0.3), torch.full((20,), 2.0)
    codec = load_codec(data).with_statistics(mean, std)
    empty = torch.randn(77, 1024)

    class Spoken:
        def text(self, captions):
            assert captions == [""]
            return empty[None]

    info = json.loads((data / "features.json").read_text())
    info["config"]["encoders"] = "mmaudio"
    folder = data.parent / "spoken"
    shutil.copytree(data, folder, dirs_exist_ok=True)
    (folder / "features.json").write_text(json.dumps(info))
    monkeypatch.setattr("distill.initial_network.load_codec", lambda features, weights_dir: codec)
    monkeypatch.setattr("distill.initial_network.load_encoders", lambda name, weights_dir: Spoken())
    net = fresh_or_loaded(Fresh(network=tiny.NETWORK), folder, seed=0).net
    assert torch.equal(net.latent_mean.flatten(), mean)
    assert torch.equal(net.latent_std.flatten(), std)
    assert torch.equal(net.empty_string_feat, empty)
    assert not net.empty_string_feat.requires_grad


def test_adapters_end_to_end(data, base, tmp_path):
    run = train_teacher(tuned(data, base, lora=LORA), tmp_path / "run")
    before, after = load_file(base / "ema-0.1.safetensors"), load_file(run / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("attn.qkv" in name or "linear1" in name or "ffn" in name for name in changed)
    assert all(name.endswith("weight") for name in changed)
    alone = load_network(base)
    load_adapter(alone, load_file(run / "adapter.safetensors"))
    merge_lora(alone)
    assert all(torch.equal(after[n], t) for n, t in alone.state_dict().items())
    averaged = load_network(run, weights="ema-0.1").state_dict()
    assert any(not torch.equal(averaged[n], after[n]) for n in changed)
    assert all(torch.equal(averaged[n], before[n]) for n in set(before) - changed)


@pytest.mark.parametrize("lora", [None, LORA])
def test_interrupted_run_goes_on_bit_identically(data, base, tmp_path, monkeypatch, lora):
    config = tuned(data, base, lora=lora, loop=replace(tiny.LOOP, steps=5, ema_snapshot_every=2))
    straight = train_teacher(config, tmp_path / "straight")
    one_interruption(monkeypatch, after=3)
    with pytest.raises(SystemExit) as left:
        train_teacher(config, tmp_path / "stopped")
    assert left.value.code == 130
    stopped = train_teacher(config, tmp_path / "stopped")
    names = ["model", "ema-0.1", "ema-0.2"] + (["adapter"] if lora else [])
    assert all(same(straight, stopped, name) for name in names)
    snapshots = [p.name for p in sorted((stopped / "ema_ckpts").iterdir())]
    assert snapshots == [f"ema-{std}.{step:07d}.safetensors" for std in (0.1, 0.2) for step in (2, 4, 5)]
    assert all(same(straight / "ema_ckpts", stopped / "ema_ckpts", name[:-12]) for name in snapshots)


@pytest.mark.parametrize("lora", [None, LORA])
def test_averages_afterwards(data, base, tmp_path, lora):
    """The stored width comes back; another one is a complete network with the frozen tensors untouched."""
    config = tuned(data, base, lora=lora, loop=replace(tiny.LOOP, steps=6, ema_snapshot_every=1, ema_correction=True))
    run = train_teacher(config, tmp_path / "run")
    made, _ = reconstruct(run, 0.1)
    stored = load_file(run / "ema-0.1.safetensors")
    assert set(made) == set(stored)
    for name in stored:
        torch.testing.assert_close(made[name], stored[name], rtol=1e-5, atol=1e-5)
    other, combination = reconstruct(run, 0.15)
    assert combination.error < 0.05
    write_tensors(run / "ema-0.15.safetensors", other)
    assert load_network(run, weights="ema-0.15").config == tiny.NETWORK
    assert all(torch.equal(other[n], stored[n]) for n in ("latent_mean", "latent_std", "empty_string_feat"))


def test_another_start_in_the_same_folder_is_refused(data, base, tmp_path):
    run = train_teacher(tuned(data, base, loop=replace(tiny.LOOP, steps=1)), tmp_path / "run")
    other = tuned(data, base, loop=replace(tiny.LOOP, steps=1), lora=LORA)
    with pytest.raises(ValueError, match=r"another configuration \(run\."):
        train_teacher(other, run)


def test_starts_that_do_not_fit_are_refused(data, base, tmp_path):
    student = replace(student_debug(), data=(data,), teacher=base, loop=replace(tiny.LOOP, steps=1))
    student = distil(student, tmp_path / "student")
    with pytest.raises(ValueError, match="is a distilled student; start from a teacher"):
        train_teacher(tuned(data, student), tmp_path / "a")
    other = tiny.features(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="come from another codec than"):
        train_teacher(tuned(other, base), tmp_path / "b")
    with pytest.raises(ValueError, match="the network has 40 at 44100 Hz"):
        train_teacher(tiny.teacher_run(data, start=Fresh(network=replace(variant("small_44k"), num_heads=1))), tmp_path)
    info = json.loads((base / "features.json").read_text())
    info["config"]["encoders"] = "mmaudio"
    (student / "features.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="was trained with 'mmaudio'; extract again with --encoders mmaudio"):
        distil(DistillRun(data=(data,), teacher=_posing(student, base, tmp_path)), tmp_path / "c")


def test_what_is_no_feature_folder_is_named_as_such_to_trained_weights_too(data, base, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    with pytest.raises(FeatureError, match=r"no features\.json; extract first"):
        distil(DistillRun(data=(unfinished,), teacher=base), tmp_path / "a")
    (unfinished / "plan.json").write_bytes((data / "plan.json").read_bytes())
    with pytest.raises(FeatureError, match="its extraction is unfinished: run it again"):
        train_teacher(tuned(unfinished, base), tmp_path / "b")


def _posing(features, weights, tmp_path):
    """A run folder with the weights of one run and the features.json of another."""
    folder = tmp_path / "posing"
    folder.mkdir()
    for source, name in ((features, "features.json"), (weights, "config.json"), (weights, "model.safetensors")):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def test_folders_are_learnt_from_together(data, tmp_path):
    """Two folders with repeats make one epoch of all rows; the run is reproducible."""
    config = TeacherRun(
        data=(data, data), repeat=(2, 1), start=Fresh(network=tiny.NETWORK, init="unit"), loop=tiny.LOOP
    )
    clips = open_sets(config.data, config.repeat, load_codec(data))
    assert len(clips) == 3 * len(open_sets((data,), (), load_codec(data)))
    a, b = (tiny.losses(train_teacher(config, tmp_path / name)) for name in "ab")
    assert a == b


def test_command_for_averages(data, tmp_path, monkeypatch, capsys):
    loop = replace(tiny.LOOP, steps=6, ema_snapshot_every=2)
    run = train_teacher(tiny.teacher_run(data, loop=loop), tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["mf-ema", "--run", str(run), "--std", "0.15"])
    ema.cli()
    assert "snapshots give the profile" in capsys.readouterr().out
    assert (run / "ema-0.15.safetensors").is_file()
    with pytest.raises(SystemExit):  # never over what is there
        ema.cli()
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["mf-ema", "--run", str(run), "--std", "0.1", "--step", "4"])
    ema.cli()
    made, stored = (run / "at-0000004-ema-0.1.safetensors", run / "ema_ckpts" / "ema-0.1.0000004.safetensors")
    made, stored = load_file(made), load_file(stored)
    for name in stored:
        torch.testing.assert_close(made[name], stored[name], rtol=1e-5, atol=1e-5)


def test_modalities_reach_the_training_rows(data, tmp_path):
    """Every clip of the world has a picture and a caption, so AV hides all text and AV+AT does the same."""
    runs = {
        shown: tiny.losses(train_teacher(tiny.teacher_run(data, modalities=shown), tmp_path / shown))
        for shown in ("AVT+AT", "AVT", "AV", "AV+AT")
    }
    assert runs["AVT"] == runs["AVT+AT"]
    assert runs["AV"] == runs["AV+AT"] != runs["AVT"]


def test_each_visit_draws_from_the_posterior_anew_and_reproducibly(data, tmp_path, monkeypatch):
    """Latents with a std are drawn with a generator of their own: the step's noise does not depend on them."""
    seen, real = [], JointSet.batch

    def batch(self, indices, *, generator=None, batch_slice=None):
        seen.append(generator.initial_seed())
        return real(self, indices, generator=generator, batch_slice=batch_slice)

    monkeypatch.setattr(JointSet, "batch", batch)
    for name in "ab":
        train_teacher(tiny.teacher_run(data), tmp_path / name)
    assert seen[:3] == seen[3:]
    assert len(set(seen)) == 3


def test_every_purpose_and_step_draws_its_own_numbers():
    draws = [(0, 0, "step"), (0, 1, "step"), (1, 0, "step"), (0, 0, "posterior")]
    assert len({generator(*draw).initial_seed() for draw in draws}) == len(draws)
