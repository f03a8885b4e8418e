"""Weights taken out of a run predict as the run does, and are taken only from a checkpoint that verifies."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from distill.checkpoints import store as checkpoint
from distill.checkpoints.consolidate import consolidate
from distill.checkpoints.posthoc import reconstruct
from distill.checkpoints.store import save
from distill.config import FromWeights
from distill.tasks import train_teacher
from scripts import consolidate as command
from teacher.network.lora import LoRAConfig
from teacher.sampling.pipeline import Pipeline
from teacher.weights.loading import load_network
from tests.distill import tiny

FILES = ["codec.safetensors", "config.json", "digests.json", "features.json", "model.safetensors"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.features(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Three steps with a checkpoint of each."""
    loop = replace(tiny.LOOP, save_every=1, keep_last=3)
    run = train_teacher(tiny.teacher_run(data, loop=loop), tmp_path_factory.mktemp("trained"))
    document = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(document | {"licence": "for tests only"}))
    return run


@pytest.fixture(scope="module")
def adapted(data, trained, tmp_path_factory):
    config = tiny.teacher_run(
        data,
        start=FromWeights(run=trained),
        lora=LoRAConfig(rank=2, alpha=4.0),
        loop=replace(tiny.LOOP, ema_snapshot_every=1),
    )
    return train_teacher(config, tmp_path_factory.mktemp("adapted"))


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def tensors_of(path):
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(("weights", "taken"), [("auto", "ema-0.1"), ("model", "model"), ("ema-0.2", "ema-0.2")])
def test_predictions_are_those_of_the_run(trained, tmp_path, weights, taken):
    made = consolidate(trained, tmp_path / "out", weights=weights)
    assert (made.step, made.weights) == (3, taken)
    assert sorted(p.name for p in made.out.iterdir()) == FILES
    assert tensors_of(made.out / "model.safetensors") == tensors_of(trained / f"{taken}.safetensors")
    ours, theirs = (Pipeline.load(f, weights=w) for f, w in ((made.out, "auto"), (trained, weights)))
    waves = [p(prompt="a bell", steps=2)[0].wave for p in (ours, theirs)]
    assert torch.equal(*waves)
    assert ours.licence == "for tests only"
    document = json.loads((made.out / "config.json").read_text())["consolidated"]
    assert (document["step"], document["weights"]) == (3, taken)


def test_steps_and_the_best_one_are_taken_by_name(run, tmp_path):
    for step in (1, 2):
        made = consolidate(run, tmp_path / str(step), which=step, weights="model")
        stored = run / "trainer" / f"step-{step:07d}" / "model.safetensors"
        assert tensors_of(made.out / "model.safetensors") == tensors_of(stored)
        assert tensors_of(stored) != tensors_of(run / "model.safetensors")
    with pytest.raises(ValueError, match="has not been evaluated up to step 3"):
        consolidate(run, tmp_path / "best", which="best")
    found = checkpoint.newest(run)
    best = found.state | {"best": {"step": 2, "metric": "distance", "value": 0.5}}
    given = {name: found.tensors(name) for name in ("model", "ema-0.1")}
    save(run, 4, given, best, keep_last=1, best=2)
    assert consolidate(run, tmp_path / "best", which="best", weights="model").step == 2
    assert tensors_of(tmp_path / "best" / "model.safetensors") == tensors_of(tmp_path / "2" / "model.safetensors")


def test_adapters_are_merged(adapted, tmp_path):
    for weights in ("model", "ema-0.2"):
        made = consolidate(adapted, tmp_path / weights, weights=weights)
        assert sorted(p.name for p in made.out.iterdir()) == FILES
        assert tensors_of(made.out / "model.safetensors") == tensors_of(adapted / f"{weights}.safetensors")
        assert not any("lora" in name for name in load_file(made.out / "model.safetensors"))
    again, _ = reconstruct(adapted, 0.2)
    stored = load_file(adapted / "ema-0.2.safetensors")
    assert set(again) == set(stored)
    for name in stored:
        torch.testing.assert_close(again[name], stored[name], rtol=1e-5, atol=1e-5)


def test_damaged_checkpoints_are_never_taken(run, tmp_path, capsys):
    path = run / "trainer" / "step-0000003" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step-0000003 cannot be used: model.safetensors is damaged"):
        consolidate(run, tmp_path / "out", which=3)
    assert not (tmp_path / "out").exists()
    assert consolidate(run, tmp_path / "out").step == 2
    assert "step-0000003 is passed over" in capsys.readouterr().out


def test_what_does_not_fit_leaves_nothing_behind(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"no weights 'ema-0.3' in .*step-0000003"):
        consolidate(run, out, weights="ema-0.3")
    with pytest.raises(ValueError, match=r"optimizer.safetensors does not fit"):
        consolidate(run, out, weights="optimizer")
    (run / "codec.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no codec.safetensors"):
        consolidate(run, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    with pytest.raises(ValueError, match="is not a run folder"):
        consolidate(tmp_path / "nothing", out)
    shutil.rmtree(run / "trainer")
    shutil.copyfile(run / "features.json", run / "codec.safetensors")
    with pytest.raises(ValueError, match="has no checkpoint; has training saved yet"):
        consolidate(run, out)


def test_taken_weights_are_no_run_and_nothing_is_overwritten(data, trained, tmp_path):
    made = consolidate(trained, tmp_path / "out")
    with pytest.raises(ValueError, match="exists already"):
        consolidate(trained, made.out)
    config = tiny.teacher_run(data, loop=replace(tiny.LOOP, save_every=1, keep_last=3))
    with pytest.raises(ValueError, match="holds weights taken out of a run, not a run"):
        train_teacher(config, made.out)
    tuned = tiny.teacher_run(data, start=FromWeights(run=made.out), loop=replace(tiny.LOOP, steps=1))
    assert len(tiny.losses(train_teacher(tuned, tmp_path / "tuned"))) == 1


def test_command(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    (tmp_path / ".out.part").mkdir()  # left by a process that was killed
    monkeypatch.setattr(
        "sys.argv", ["mf-consolidate", str(run), "--out", str(out), "--step", "2", "--weights", "model"]
    )
    command.cli()
    assert f"model of step 2 of {run}, verified: {out}" in capsys.readouterr().out
    stored = run / "trainer" / "step-0000002" / "model.safetensors"
    assert tensors_of(out / "model.safetensors") == tensors_of(stored)
    assert load_network(out).config == tiny.NETWORK
    monkeypatch.setattr("sys.argv", ["mf-consolidate", str(run), "--out", str(out), "--step", "2", "--best"])
    with pytest.raises(SystemExit):
        command.cli()
    assert "exclude each other" in capsys.readouterr().err
