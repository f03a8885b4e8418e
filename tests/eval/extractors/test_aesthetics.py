"""Audiobox-Aesthetics: windows and their weights, the scale of the scores, files and settings, an absent package.

The package is no dependency of the project. Its network is stood in for by one whose scores are known; the test with
the package's own network is left out, with the reason, where it is not installed.
"""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eval.extractors.aesthetics import AUDIOBOX, AXES, INSTALL, Aesthetics, AestheticsSettings, windows
from teacher.files import file_digest
from teacher.files.errors import WeightsError

SETTINGS = {
    "proj_num_layer": 2,
    "proj_ln": True,
    "proj_act_fn": "gelu",
    "proj_dropout": 0,
    "nth_layer": 13,
    "use_weighted_layer_sum": True,
    "normalize_embed": True,
    "output_dim": 1,
    "precision": "bf16",
}
SCALES = {axis: {"mean": 5.0 + k, "std": 1.0 + 0.5 * k} for k, axis in enumerate(("CE", "CU", "PC", "PQ"))}
GAINS = {"CE": 1.0, "CU": 2.0, "PC": -3.0, "PQ": 0.5}


class StandIn(nn.Module):
    """The score of an axis is its gain times the mean of what is not masked; the real one's input and output."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.settings = settings
        self.gains = nn.ParameterDict({axis: nn.Parameter(torch.randn(1)) for axis in GAINS})

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        wave, mask = batch["wav"], batch["mask"]
        assert wave.shape[1:] == mask.shape[1:] == (1, 160_000)
        assert wave.dtype == torch.float32
        assert mask.dtype == torch.bool
        mean = (wave * mask).sum((1, 2)) / mask.sum((1, 2))
        return {axis: gain * mean for axis, gain in self.gains.items()}


@pytest.fixture
def package(monkeypatch):
    """The package with nothing in it but the stand-in, and no torchaudio."""
    module = types.ModuleType("audiobox_aesthetics.model.aes")
    module.AesMultiOutput = StandIn
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", types.ModuleType("audiobox_aesthetics"))
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.model", types.ModuleType("audiobox_aesthetics.model"))
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.model.aes", module)
    monkeypatch.setitem(sys.modules, "torchaudio", None)


def tensors(prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}gains.{axis}": torch.tensor([gain]) for axis, gain in GAINS.items()}


def checkpoint(folder: Path, **changes: object) -> Path:
    """`checkpoint.pt` in the layout of the published one."""
    content = {"state_dict": tensors("model."), "model_cfg": SETTINGS, "target_transform": SCALES} | changes
    path = folder / AUDIOBOX.file
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


def shared(folder: Path, **changes: object) -> Path:
    """`model.safetensors` and `config.json`."""
    save_file(tensors(), folder / "model.safetensors")
    content = SETTINGS | {"target_transform": SCALES, "freeze_encoder": True} | changes
    (folder / "config.json").write_text(json.dumps(content))
    return folder / "model.safetensors"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.2


def scaled(mean: torch.Tensor) -> torch.Tensor:
    """Scores (clips, 4) of clips whose score before gain and scale is known."""
    return torch.stack([GAINS[a] * mean * SCALES[a]["std"] + SCALES[a]["mean"] for a in AXES], dim=-1)


# Windows


@pytest.mark.parametrize(
    ("samples", "counts"),
    [
        (128_000, [128_000]),
        (160_000, [160_000]),
        (160_001, [160_000, 1]),
        (320_000, [160_000] * 2),
        (376_000, [160_000, 160_000, 56_000]),
        (1, [1]),
    ],
)
def test_ten_seconds_each_and_zeros_after_the_last(samples, counts):
    waves = draw(2, samples)
    sound, mask = windows(waves)
    assert sound.shape == mask.shape == (2, len(counts), 160_000)
    assert mask.sum(-1).tolist() == [counts] * 2
    assert torch.equal(sound.flatten(1)[:, :samples], waves)
    assert not sound[~mask].any()
    assert all(bool(mask[0, k, :count].all()) for k, count in enumerate(counts))


def test_windows_count_by_their_length(package, tmp_path):
    """Means of windows weighted with their lengths are the clip's mean: 3.5 of 13.5 where the last 3.5 s are one."""
    model = Aesthetics.load(checkpoint(tmp_path))
    waves = draw(2, 376_000)
    torch.testing.assert_close(model(waves), scaled(waves.mean(dim=1)), atol=1e-5, rtol=1e-5)
    steps = torch.cat((torch.zeros(1, 160_000), torch.ones(1, 56_000)), dim=1)
    torch.testing.assert_close(model(steps), scaled(torch.tensor([3.5 / 13.5])), atol=1e-5, rtol=1e-5)


def test_scores_are_on_the_scale_of_the_ratings_in_the_order_of_the_axes(package, tmp_path):
    model = Aesthetics.load(checkpoint(tmp_path))
    made = model(torch.ones(1, 16_000))
    assert AXES == ("PQ", "PC", "CE", "CU")
    # 0.5 * 2.5 + 8, -3 * 2 + 7, 1 * 1 + 5, 2 * 1.5 + 6
    assert made[0].tolist() == pytest.approx([9.25, 1.0, 6.0, 9.0])
    assert made.dtype == torch.float32


def test_a_clip_does_not_depend_on_its_batch(package, tmp_path, monkeypatch):
    model = Aesthetics.load(checkpoint(tmp_path))
    waves = draw(3, 170_000)
    together = model(waves)
    assert together.shape == (3, 4)
    monkeypatch.setattr("eval.extractors.aesthetics.WINDOWS_AT_ONCE", 1)
    torch.testing.assert_close(model(waves[1:2]), together[1:2], atol=1e-6, rtol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-5


def test_waves_that_do_not_fit_are_refused(package, tmp_path):
    model = Aesthetics.load(checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r"Audiobox-Aesthetics needs waves \(clips, samples\)"):
        model(torch.zeros(16_000))
    with pytest.raises(ValueError, match="finite"):
        model(torch.full((1, 10), float("nan")))
    with pytest.raises(ValueError, match="at least"):
        model(torch.zeros(1, 0))


# Files


def test_both_files_are_the_same_model_under_their_own_names(package, tmp_path):
    first, second = Aesthetics.load(checkpoint(tmp_path)), Aesthetics.load(shared(tmp_path))
    assert first.sample_rate == 16_000
    assert first.name == f"audiobox-aesthetics-v1@16000:{file_digest(tmp_path / 'checkpoint.pt')}"
    assert torch.equal(first(draw(1, 20_000)), second(draw(1, 20_000)))
    # The scale is not in the safetensors file, but it is part of the name.
    digest = file_digest(tmp_path / "model.safetensors")
    assert second.name == f"audiobox-aesthetics-v1@16000:{digest}-{second.settings.digest()}"
    moved = {axis: scale | {"mean": scale["mean"] + 1} for axis, scale in SCALES.items()}
    third = Aesthetics.load(shared(tmp_path, target_transform=moved))
    assert third.loaded.digest == second.loaded.digest
    assert third.name != second.name
    torch.testing.assert_close(third(draw(1, 99)), second(draw(1, 99)) + 1)


def test_the_network_is_built_from_the_files_settings_in_float32(package, tmp_path):
    state = torch.random.get_rng_state()
    model = Aesthetics.load(checkpoint(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.network.settings == SETTINGS | {"precision": "32", "target_transform": SCALES}
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    assert model.loaded.published is None
    assert "CC BY 4.0" in AUDIOBOX.licence


class Code:
    """Asks, when unpickled, for a folder to be made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_code_in_the_file_is_not_run(package, tmp_path):
    path = checkpoint(tmp_path, model_cfg=Code(tmp_path / "made"))
    for read in (Aesthetics.load, AestheticsSettings.read):
        with pytest.raises(WeightsError, match=r"asks for code \(\w+\.mkdir\)"):
            read(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_cfg": None}, "holds no settings of the network"),
        ({"target_transform": None}, "lacks settings of the network: target_transform"),
        ({"model_cfg": {k: v for k, v in SETTINGS.items() if k != "proj_ln"}}, "lacks settings .*: proj_ln"),
        ({"model_cfg": SETTINGS | {"nth_layer": 0}}, "nth_layer must be a whole number of at least 1, got 0"),
        ({"model_cfg": SETTINGS | {"proj_act_fn": "relu"}}, "proj_act_fn must be 'gelu', got 'relu'"),
        ({"model_cfg": SETTINGS | {"output_dim": 2}}, "output_dim must be 1, got 2"),
        ({"model_cfg": SETTINGS | {"proj_ln": 1}}, "proj_ln must be true or false, got 1"),
        ({"model_cfg": SETTINGS | {"proj_dropout": "0"}}, "proj_dropout must be a finite number"),
        ({"model_cfg": SETTINGS | {"use_weighted_layer_sum": False}}, "use_weighted_layer_sum must be true"),
        ({"target_transform": SCALES | {"XX": {}}}, "must have exactly PQ, PC, CE, CU"),
        ({"target_transform": SCALES | {"PQ": {"mean": 5.0, "std": 0.0}}}, "a positive std for PQ"),
        ({"target_transform": SCALES | {"CU": {"mean": 5.0}}}, "a mean and a positive std for CU"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"state_dict": tensors()}, None),
        ({"state_dict": tensors("model.") | {"model.gains.XX": torch.ones(1)}}, r"1 unexpected \(gains.XX\)"),
        ({"state_dict": {k: v for k, v in tensors("model.").items() if "PC" not in k}}, r"1 missing \(gains.PC\)"),
        ({"state_dict": tensors("model.") | {"model.gains.PQ": torch.ones(2)}}, r"\(2,\) instead of \(1,\)"),
        ({"state_dict": tensors("model.") | {"model.gains.PQ": torch.tensor([torch.nan])}}, "NaN"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(package, tmp_path, changes, message):
    path = checkpoint(tmp_path, **changes)
    if message is None:
        assert Aesthetics.load(path).name
        return
    with pytest.raises(WeightsError, match=message) as caught:
        Aesthetics.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_beside_the_tensors_are_needed(package, tmp_path):
    path = shared(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json is not a JSON object"):
        Aesthetics.load(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json, which belongs to the weights beside it, cannot be read"):
        Aesthetics.load(path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json, .* cannot be read: .*No such file"):
        Aesthetics.load(path)
    with pytest.raises(WeightsError, match=r"absent\.pt is not there"):
        Aesthetics.load(tmp_path / "absent.pt")


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    with pytest.raises(ValueError, match="needs the package audiobox_aesthetics") as caught:
        Aesthetics.load(checkpoint(tmp_path))
    assert INSTALL in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_packages_own_network_takes_what_it_is_given(tmp_path):
    """Random weights at full size: a window's zeros have no effect, and the file written from it is read strictly."""
    pytest.importorskip("audiobox_aesthetics.model.aes", reason="the package audiobox_aesthetics is not installed")
    settings = AestheticsSettings(
        **{k: v for k, v in SETTINGS.items() if k != "precision"}, target_transform=SCALES
    )  # fmt: skip
    state = {f"model.{name}": tensor for name, tensor in settings.build().state_dict().items()}
    model = Aesthetics.load(checkpoint(tmp_path, state_dict=state))
    made = model(draw(1, 16_000))
    assert made.shape == (1, 4)
    assert bool(torch.isfinite(made).all())
    assert model.network.enable_autocast is False
