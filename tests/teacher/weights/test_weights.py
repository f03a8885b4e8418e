"""Run folders and component files: what is read, what is said when something does not fit, what an import brings in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import teacher.weights
from meanflow.config import to_plain
from teacher.audio.registry import open_codec
from teacher.encoders.registry import load_encoders
from teacher.files import LOCK, FolderLock, LockedError, file_digest
from teacher.files.components import ComponentInfo, load_strictly, read_component_info, read_tensors
from teacher.files.errors import WeightsError
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import VARIANTS
from teacher.sampling.pipeline import Pipeline
from teacher.weights import layouts
from teacher.weights.cards import bundle, bundle_licence, card
from teacher.weights.convert import convert_file, ensure_component, make_run
from teacher.weights.loading import load_network, weight_file
from teacher.weights.run_folder import FeaturesInfo, read_features_info, read_licence, read_run_config
from tests.teacher import official

INFO = ComponentInfo(component="vae_16k", licence="none", source="v1-16.pth", sha256="ab", md5="cd")


@pytest.fixture
def run(tmp_path):
    """A run folder with a debug network."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    net = MMAudio(VARIANTS["debug_16k"])
    nn.init.normal_(net.final_layer.conv.weight)
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"kind": "teacher", "network": to_plain(net.config)}))
    return folder


@pytest.fixture
def tiny(monkeypatch):
    official.use_tiny_network(monkeypatch)
    yield
    layouts.layouts.cache_clear()


# --- imports ---------------------------------------------------------------------------------------------------------


def test_importing_this_package_brings_in_no_model():
    """Importing a command that fetches or converts must not cost the import of networks: only of files and rates."""
    parts = ", ".join(sorted(p.stem for p in Path(teacher.weights.__file__).parent.glob("[!_]*.py")))
    code = (
        f"import sys; from teacher.weights import {parts}; "
        "known = ('teacher.weights', 'teacher.files', 'teacher.network.sequence'); "
        "mine = {m for m in sys.modules if m.startswith('teacher.') and not m.startswith(known)}; "
        "print(sorted(mine - {'teacher.network'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- strict loading --------------------------------------------------------------------------------------------------


def test_loading_from_tensors_and_from_a_file_is_the_same(tmp_path):
    source, a, b = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    load_strictly(a, source.state_dict())
    load_strictly(b, tmp_path / "x.safetensors")
    assert torch.equal(a.weight, source.weight)
    assert torch.equal(b.weight, source.weight)


def test_a_module_without_memory_takes_copies_in_its_own_precision(tmp_path):
    source = {"weight": torch.ones(2, 3), "bias": torch.zeros(2, dtype=torch.bfloat16)}
    with torch.device("meta"):
        module = nn.Linear(3, 2).requires_grad_(False)
    load_strictly(module, source)
    assert module.bias.dtype == torch.float32
    assert not module.weight.requires_grad
    source["weight"].zero_()
    assert torch.equal(module.weight, torch.ones(2, 3))


def test_what_does_not_fit_is_counted_and_named_in_one_line():
    module = nn.Sequential(*[nn.Linear(1, 1) for _ in range(6)])
    tensors = {f"other.{i}": torch.zeros(1) for i in range(3)} | {"0.weight": torch.zeros(2, 2)}
    with pytest.raises(WeightsError) as caught:
        load_strictly(module, tensors)
    assert str(caught.value) == (
        "the set of tensors does not fit: 11 missing (0.bias, 1.weight, 1.bias, 2.weight, 2.bias, 3.weight, 3.bias, "
        "4.weight and 3 more); 3 unexpected (other.0, other.1, other.2); 1 of another shape (0.weight (2, 2) instead "
        "of (1, 1))"
    )


def test_damaged_and_absent_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read weights .*nowhere.safetensors"):
        read_tensors(tmp_path / "nowhere.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"not this")
    with pytest.raises(WeightsError, match=r"cannot read weights .*x.safetensors"):
        load_strictly(nn.Linear(1, 1), tmp_path / "x.safetensors")


def test_components_carry_where_they_came_from(tmp_path):
    path = tmp_path / "vae_16k.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata=INFO.metadata())
    tensors, info = read_tensors(path), read_component_info(path)
    assert info == INFO
    assert torch.equal(tensors["a"], torch.ones(2))
    for metadata in (None, {"json": "{}"}, {"json": "["}, {"json": "[]"}):
        save_file({"a": torch.ones(2)}, path, metadata=metadata)
        with pytest.raises(WeightsError, match="is not a component made by mf-convert"):
            read_component_info(path)


# --- run folders -----------------------------------------------------------------------------------------------------


def test_a_network_comes_back_as_it_was_saved(run):
    net, saved = load_network(run), load_file(run / "model.safetensors")
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in net.state_dict().items())
    save_file({n: t + 1 for n, t in saved.items()}, run / "ema-0.05.safetensors")
    assert weight_file(run, "auto").name == "ema-0.05.safetensors"
    assert torch.equal(load_network(run).latent_mean, net.latent_mean + 1)
    assert torch.equal(load_network(run, weights="model").latent_mean, net.latent_mean)
    with pytest.raises(WeightsError, match=r"no weights 'ema-0.7' in .*; found: ema-0.05, model"):
        load_network(run, weights="ema-0.7")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "is not a run folder: it has no config.json"),
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "describes no network"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_what_is_no_run_folder_is_named(run, content, match):
    (run / "config.json").unlink()
    if content is not None:
        (run / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsError, match=match):
        load_network(run)


def test_a_file_is_no_run_folder(run):
    with pytest.raises(WeightsError, match="is not a run folder"):
        read_run_config(run / "model.safetensors")


def test_licence_is_one_line_and_unspecified_where_none_is_stated(run):
    assert read_licence(run) == "unspecified"
    (run / "config.json").write_text(json.dumps({"licence": "CC BY-NC 4.0\n(non-commercial)"}))
    assert read_licence(run) == "CC BY-NC 4.0 (non-commercial)"


def test_features_of_old_and_new_folders(run):
    with pytest.raises(WeightsError, match=r"features.json cannot be used"):
        read_features_info(run)
    (run / "features.json").write_text(json.dumps({"config": {"duration_s": 2, "encoders": "embedded"}}))
    assert read_features_info(run) == FeaturesInfo(2.0, "embedded", "embedded", None)
    new = {"duration_s": 8.0, "encoders": "mmaudio", "codec": "mmaudio_16k"}
    (run / "features.json").write_text(json.dumps({"config": new, "weights_dir": "w"}))
    assert read_features_info(run) == FeaturesInfo(8.0, "mmaudio", "mmaudio_16k", run / "w")
    for broken in ("[]", '{"config": []}', '{"config": {"duration_s": "x", "encoders": "embedded"}}', "{"):
        (run / "features.json").write_text(broken)
        with pytest.raises(WeightsError, match=r"features.json cannot be used"):
            read_features_info(run)


def test_file_digest_is_the_start_of_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == "ba7816bf8f01"


# --- runs of published networks --------------------------------------------------------------------------------------


def put_network(weights, seed=0):
    weights.mkdir(exist_ok=True)
    tensors = official.network_tensors(seed=seed)
    torch.save(tensors, weights / "mmaudio_small_16k.pth")
    return tensors


def test_a_published_network_becomes_a_run_folder(tiny, tmp_path):
    weights, run = tmp_path / "weights", tmp_path / "run"
    tensors, notes = put_network(weights), []
    made = make_run("small_16k", weights, run, report=notes.append)
    net = load_network(run)
    assert net.config == official.TINY
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in net.state_dict().items())
    assert sorted(p.name for p in run.iterdir()) == [
        "codec.safetensors", "config.json", "digests.json", "features.json", "model.safetensors",
    ]  # fmt: skip
    assert read_features_info(run) == FeaturesInfo(8.0, "mmaudio", "mmaudio_16k", weights.resolve())
    config = read_run_config(run)
    assert config["kind"] == "official"
    assert read_licence(run) == bundle_licence("small_16k")
    assert read_licence(run).startswith("MMAudio weights: CC BY-NC 4.0 (non-commercial); ")
    digest = read_component_info(weights / "mmaudio_small_16k.safetensors").sha256
    assert config["digests"] == {"mmaudio_small_16k": digest}
    codec = load_file(run / "codec.safetensors")
    assert torch.equal(codec["latent_mean"], tensors["latent_mean"].flatten())
    assert torch.equal(codec["latent_std"], tensors["latent_std"].flatten())
    assert made.missing == bundle("small_16k")[1:]
    for component in made.missing:
        assert f"missing {component} ({card(component).file}, {card(component).size_text}): needed for" in str(made)
    assert len(notes) == 1  # the md5 of a made-up file


def test_the_model_shares_its_bytes_with_the_component_or_is_copied(tiny, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    put_network(weights)
    assert make_run("small_16k", weights, tmp_path / "linked").linked
    component = weights / "mmaudio_small_16k.safetensors"
    assert (tmp_path / "linked" / "model.safetensors").samefile(component)

    def refuse(*_):
        raise OSError("links are not possible here")

    monkeypatch.setattr("os.link", refuse)
    made = make_run("small_16k", weights, tmp_path / "copied")
    assert not made.linked
    assert (tmp_path / "copied" / "model.safetensors").read_bytes() == component.read_bytes()
    assert "copy of" in str(made)


def test_a_run_folder_that_another_conversion_writes_is_refused(tiny, tmp_path):
    weights, run = tmp_path / "weights", tmp_path / "run"
    put_network(weights)
    with FolderLock(run), pytest.raises(LockedError, match="the run folder is being written by process"):
        make_run("small_16k", weights, run)
    assert list(run.iterdir()) == []
    make_run("small_16k", weights, run)
    assert not (run / LOCK).exists()
    beside = tmp_path / "together"  # official files and the run in one folder
    put_network(beside)
    make_run("small_16k", beside, beside)


def test_making_a_run_again_follows_the_official_file(tiny, tmp_path):
    weights, run = tmp_path / "weights", tmp_path / "run"
    put_network(weights)
    make_run("small_16k", weights, run)
    before = read_run_config(run)
    make_run("small_16k", weights, run)
    assert read_run_config(run) == before
    tensors = put_network(weights, seed=1)
    make_run("small_16k", weights, run)
    assert torch.equal(load_network(run).latent_mean, tensors["latent_mean"])
    assert read_run_config(run) != before


def test_without_its_network_there_is_no_run(tmp_path):
    with pytest.raises(WeightsError, match=r"mmaudio_small_44k.pth is not there; fetch it with `mf-fetch small_44k"):
        make_run("small_44k", tmp_path / "weights", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_another_run_is_not_overwritten(tiny, run, tmp_path):
    put_network(tmp_path / "weights")
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(WeightsError, match=r"holds another run \(teacher\); choose another --out"):
        make_run("small_16k", tmp_path / "weights", run)
    (run / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"holds weights without a config.json"):
        make_run("small_16k", tmp_path / "weights", run)
    assert (run / "model.safetensors").read_bytes() == before


def test_a_component_under_a_wrong_name_is_refused(tiny, tmp_path):
    weights = tmp_path / "weights"
    put_network(weights)
    ensure_component("mmaudio_small_16k", weights).rename(weights / "synchformer.safetensors")
    with pytest.raises(WeightsError, match="contains mmaudio_small_16k; remove it"):
        make_run("small_16k", weights, tmp_path / "run")


def test_a_published_network_makes_sound(tmp_path, monkeypatch):
    """Network, VAE and vocoder from official files through the pipeline; the encoders are ones without weights."""
    official.use_tiny_network(monkeypatch, VARIANTS["debug_16k"])
    sizes = official.use_narrow_codec(monkeypatch)
    weights, run = tmp_path / "weights", tmp_path / "run"
    weights.mkdir()
    tensors = official.network_tensors(VARIANTS["debug_16k"])
    torch.save(tensors, weights / "mmaudio_small_16k.pth")
    official.put_codec(weights, sizes)
    made = make_run("small_16k", weights, run)
    layouts.layouts.cache_clear()
    assert made.missing == ("synchformer", "clip_dfn5b_h14_378")
    codec = open_codec(run / "codec.safetensors")
    assert torch.equal(codec.latent_mean, tensors["latent_mean"].flatten())
    monkeypatch.setattr("teacher.sampling.pipeline.load_encoders", lambda name, **_: load_encoders("embedded"))
    pipeline = Pipeline.load(run)
    assert pipeline.window_s == 8.0
    assert pipeline.licence == bundle_licence("small_16k")
    wave = pipeline(prompt="rain", duration_s=0.64)[0].wave
    assert wave.shape == (10_240,)
    assert bool(torch.isfinite(wave).all())
    assert float(wave.std()) > 0


# --- folders of strangers --------------------------------------------------------------------------------------------


HUGE = {
    "joint_depth": 10**7,
    "fused_depth": 10**5,
    "num_heads": 10**9,
    "head_dim": 10**18,
    "latent_channels": 10**12,
    "mlp_multiple_of": 10**15,
    "text_tokens": -5,
    "clip_dim": 0,
    "sync_dim": 10**9,
    "rms_norm_eps": float("nan"),
    "condition_scale": float("inf"),
    "version": ["v1"],
    "sequence": {"type": "SequenceConfig", "sample_rate": 44_100, "hop_length": 1, "latent_downsample": 1},
}


@pytest.mark.parametrize("name", [*HUGE, "num_heads true"])
def test_an_absurd_configuration_is_refused_before_anything_is_built(run, name, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    config["network"][name.split()[0]] = HUGE.get(name, True)
    (run / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(MMAudio, "__init__", lambda *_: pytest.fail("it was built"))
    with pytest.raises(WeightsError, match=r"config\.json: ") as caught:
        load_network(run)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"joint_depth": 200}, "holds 1 joint blocks, .*config.json describes 200"),
        ({"fused_depth": 0}, "holds 1 fused blocks, .*describes 0"),
        ({"num_heads": 256, "head_dim": 128}, "needs more than"),
    ],
)
def test_a_file_of_another_size_is_refused_before_anything_is_built(run, changed, said, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    config["network"] |= changed
    (run / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(MMAudio, "__init__", lambda *_: pytest.fail("it was built"))
    with pytest.raises(WeightsError, match=said):
        load_network(run)


def test_values_are_not_read_where_the_header_does_not_fit(run, monkeypatch):
    monkeypatch.setattr("teacher.files.components.read_tensors", lambda path: pytest.fail("its values were read"))
    with pytest.raises(WeightsError, match="does not fit: 2 missing"):
        load_strictly(nn.Linear(2, 2), run / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "features.json"])
def test_files_that_never_end_or_nest_are_not_followed(run, name):
    (run / "features.json").write_text(json.dumps({"config": {"duration_s": 2.0, "encoders": "embedded"}}))
    read = {"config.json": read_run_config, "features.json": read_features_info}[name]
    for make in (
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_bytes(b'{"config":' * 100_000),
        lambda path: path.write_bytes(b"[1]"),
        lambda path: path.write_bytes(b'{"config": ' + b"9" * 10_000 + b"}"),
    ):
        (run / name).unlink()
        make(run / name)
        with pytest.raises(WeightsError, match=name) as caught:
            read(run)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seconds", [float("nan"), 0, -3, 1e9, 3600.0, 10**400, "x"])
def test_a_window_no_network_has_is_refused_when_it_is_loaded(run, seconds):
    (run / "features.json").write_text(json.dumps({"config": {"duration_s": seconds, "encoders": "embedded"}}))
    with pytest.raises(WeightsError, match=r"features\.json cannot be used"):
        read_features_info(run)


def test_a_licence_stays_one_line_of_text(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"licence": "\x1b]0;x\x07\x1b[2J MIT\n" + "y" * 5_000_000}))
    assert read_licence(run).startswith("]0;x[2J MIT yyy")
    assert len(read_licence(run)) <= 2000


@pytest.mark.slow
def test_the_smallest_published_network_at_full_size(tmp_path, monkeypatch):
    """157 million parameters through a checkpoint, a component and a run folder."""
    monkeypatch.setattr("teacher.weights.convert.check_volume", lambda *_: None)  # one number stands for all of them
    weights = tmp_path / "weights"
    weights.mkdir()
    torch.save(official.full_size("mmaudio_small_16k"), weights / "mmaudio_small_16k.pth")
    path = convert_file(weights / "mmaudio_small_16k.pth", weights)
    assert path.stat().st_size == pytest.approx(4 * 157_283_644, rel=1e-3)
    make_run("small_16k", weights, tmp_path / "run")
    net = load_network(tmp_path / "run")
    assert sum(p.numel() for p in net.parameters()) == 157_283_644
    assert all(bool((p == 0.5).all()) for p in net.parameters())
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
