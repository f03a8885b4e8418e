"""Export of the one-step generator: the files do what the network does, for any batch, or they are not kept."""

import json
import re
import textwrap
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import scripts.export
import teacher.sampling.export
from meanflow.guidance import Guidance
from scripts.export import Export, export_config
from teacher.audio.alias_free import anti_aliased_snake
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.audio.mel import MEL_16K
from teacher.audio.mmaudio_codec import AudioStack, MMAudioCodec, Models
from teacher.audio.vae import VAE, VAEConfig
from teacher.audio.vocoder import BigVGAN, VocoderConfig
from teacher.encoders.registry import load_encoders
from teacher.files import LOCK
from teacher.files.components import ComponentInfo
from teacher.network.mmaudio import MMAudio
from teacher.network.sequence import SEQUENCE_16K
from teacher.network.variants import MMAudioConfig
from teacher.sampling.export import ExportConfig, eager, export_generator, open_onnx, parity, random_inputs
from teacher.sampling.exportable import Decoder, ExportableSnake, OneStep
from teacher.sampling.pipeline import Pipeline

needs_onnx = pytest.mark.skipif(
    not all(find_spec(name) for name in teacher.sampling.export.PACKAGES),
    reason="the extra `export` (onnx) is not installed",
)
CONFIG = MMAudioConfig(
    num_heads=1, head_dim=8, joint_depth=1, fused_depth=1, latent_channels=4, mlp_multiple_of=8, interval_embedding=True
)
SECONDS = 0.64
FRAMES = SEQUENCE_16K.latent_frames(SECONDS)


def student(**changes) -> MMAudio:
    torch.manual_seed(0)
    net = MMAudio(replace(CONFIG, **changes))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval().requires_grad_(False)


def fitted_codec() -> EmbeddedCodec:
    basis = torch.linalg.qr(torch.randn(160, 4, generator=torch.Generator().manual_seed(0)))[0]
    return EmbeddedCodec(
        mel=MEL_16K,
        patch_mean=torch.full((160,), -2.0),
        basis=basis,
        component_mean=torch.zeros(4),
        component_std=torch.ones(4),
        explained_variance=1.0,
        num_iterations=0,
    )


def neural_codec(folder) -> MMAudioCodec:
    """MMAudio's chain of models with one block of everything."""
    vocoder = VocoderConfig(
        num_mels=80,
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(32, 32),
        initial_channels=8,
        resblock_kernel_sizes=(3,),
        resblock_dilations=((1,),),
    )
    vae = VAEConfig(data_dim=80, latent_channels=4, width=4)
    stack = AudioStack(
        name="tiny",
        sequence=SEQUENCE_16K,
        mel=MEL_16K,
        vae=vae,
        vocoder=vocoder,
        vae_component="vae",
        vocoder_component="v",
    )
    torch.manual_seed(0)
    for component, module in (("vae", VAE(vae)), ("v", BigVGAN(vocoder))):
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if "act" in name or name == "data_mean":
                    tensor.normal_(0, 0.5)
        info = ComponentInfo(component=component, licence="none", source="x", sha256="0" * 64, md5="0" * 32)
        tensors = {n: t.detach().contiguous() for n, t in module.state_dict().items()}
        save_file(tensors, folder / f"{component}.safetensors", metadata=info.metadata())
    models = Models(stack=stack, weights_dir=folder)
    return MMAudioCodec(models=models, latent_mean=torch.full((4,), 0.3), latent_std=torch.full((4,), 0.8))


def pipeline(codec, **changes) -> Pipeline:
    encoders = load_encoders("embedded", weights_dir=None, device="cpu")
    return Pipeline(net=student(**changes), codec=codec, encoders=encoders, window_s=SECONDS, licence="CC BY-NC 4.0")


def draw(rows, with_omega=False, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return random_inputs(pipeline(fitted_codec()), SECONDS, rows, with_omega, generator)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Sound at guidance 1.4, both formats."""
    folder = tmp_path_factory.mktemp("export")
    made = pipeline(neural_codec(folder))
    config = ExportConfig(formats="both" if find_spec("onnx") else "torch", guidance=Guidance(omega=1.4))
    return made, export_generator(made, folder / "out", config)


@pytest.mark.slow
@needs_onnx
def test_the_onnx_file_makes_the_sound_of_the_pipeline_in_any_batch(exported):
    """`generate` and `decode` for rows of 1, 2 and 5; float32 rounding of waves of size 1 is far below 1e-5."""
    made, out = exported
    run = open_onnx(out / "generator.onnx")
    for rows in (1, 2, 5):
        inputs = draw(rows)
        wanted = made.codec.decode(eager(made, Guidance(omega=1.4), inputs))
        assert wanted.shape == (rows, FRAMES * 512)
        assert float(wanted.std()) > 1e-3
        torch.testing.assert_close(run(inputs), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_description_says_what_goes_in_and_what_comes_out(exported):
    made, out = exported
    about = json.loads((out / "export.json").read_text())
    assert [i["name"] for i in about["inputs"]] == ["noise", "clip", "sync", "text", "has_clip", "has_sync", "has_text"]
    assert about["inputs"][0] == {"name": "noise", "shape": ["batch", FRAMES, 4], "dtype": "float32"}
    assert about["inputs"][6] == {"name": "has_text", "shape": ["batch"], "dtype": "bool"}
    assert about["outputs"] == [{"name": "wave", "shape": ["batch", FRAMES * 512], "dtype": "float32"}]
    assert (about["sample_rate"], about["samples"], about["licence"]) == (16_000, 10_240, "CC BY-NC 4.0")
    assert about["guidance"]["omega"] == 1.4
    assert len(about["network_digest"]) == 12
    assert about["codec_digest"] == made.codec.digest
    assert about["parity"]["torch"]["deviation"] < 1e-5
    assert not list(out.parent.glob(".*"))


@pytest.mark.slow
@needs_onnx
def test_the_onnx_file_carries_its_licence_and_digest(exported):
    import onnx

    _, out = exported
    stored = {entry.key: entry.value for entry in onnx.load(out / "generator.onnx").metadata_props}
    assert stored["licence"] == "CC BY-NC 4.0"
    assert stored["network_digest"] == json.loads((out / "export.json").read_text())["network_digest"]


@pytest.mark.slow
@needs_onnx
def test_the_documented_example_runs(exported, monkeypatch):
    monkeypatch.chdir(exported[1])
    code = textwrap.dedent(re.search(r"( {4}import json\n.*?)\"?\Z", scripts.export.__doc__, re.S)[1])
    names: dict[str, object] = {}
    exec(code, names)
    assert names["made"].shape == (2, FRAMES * 512)
    assert np.abs(names["made"][0] - names["made"][1]).max() > 1e-4


@pytest.mark.slow
@needs_onnx
def test_the_scale_as_an_input_without_neural_codec(tmp_path, monkeypatch):
    """Latents then; every row has its own omega, and 1 is the conditional prediction. Weights beside the file."""
    monkeypatch.setattr(teacher.sampling.export, "EXTERNAL_BYTES", 0)
    made = pipeline(fitted_codec())
    out = export_generator(made, tmp_path / "out", ExportConfig(guidance="input"))
    assert {p.name for p in out.iterdir()} == {"generator.onnx", "generator.onnx.data", "export.json"}
    about = json.loads((out / "export.json").read_text())
    assert about["outputs"][0] == {"name": "latents", "shape": ["batch", FRAMES, 4], "dtype": "float32"}
    assert about["inputs"][7]["name"] == "omega"
    assert about["guidance"] == "input"
    inputs = draw(3, with_omega=True)
    inputs = (*inputs[:7], torch.tensor([1.0, 1.4, 3.0]))
    run = open_onnx(out / "generator.onnx")
    torch.testing.assert_close(run(inputs), eager(made, "input", inputs), rtol=0, atol=2e-5)
    plain = eager(made, Guidance(), inputs[:7])
    torch.testing.assert_close(run(inputs)[0], plain[0], rtol=0, atol=2e-5)
    assert float((run(inputs)[1:] - plain[1:]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "changes", [{}, {"guidance_embedding": True}, {"sync": "sum"}, {"sync": "none", "missing": "zeros"}]
)
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(omega=2.0, std_rescale=0.5), "input"])
def test_the_module_is_one_step_of_generate(changes, guidance):
    """Before any export. A network that embeds the scale takes it in one row, whether fixed or given."""
    if changes.get("guidance_embedding") and isinstance(guidance, Guidance):
        guidance = replace(guidance, std_rescale=0.0)
    made = pipeline(fitted_codec(), **changes)
    inputs = draw(3, with_omega=guidance == "input")
    step = OneStep(made.net, FRAMES, SECONDS, guidance)
    torch.testing.assert_close(step(*inputs), eager(made, guidance, inputs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 100])
def test_the_activation_is_that_of_the_vocoder(length):
    """The same products in float32, on edges and at lengths that fill no block."""
    g = torch.Generator().manual_seed(0)
    x, alpha, beta = torch.randn(2, 3, length, generator=g), *(0.3 * torch.randn(2, 3, generator=g))
    torch.testing.assert_close(ExportableSnake(alpha, beta)(x), anti_aliased_snake(x, alpha, beta), rtol=0, atol=2e-6)


def test_the_decoder_shares_its_weights(tmp_path):
    codec = neural_codec(tmp_path)
    own = {p.data_ptr() for p in codec.models.vocoder.parameters()}
    kept = {p.data_ptr() for p in Decoder(codec).vocoder.parameters()}
    assert kept < own  # the activations' own numbers are taken over into buffers


@pytest.mark.slow
def test_an_unguided_archive_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    made = pipeline(fitted_codec())
    config = ExportConfig(formats="torch")
    with monkeypatch.context() as patch:  # torch's own writer of files would abort the process on a full disk

        def full(path, data):
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/out'"):
            export_generator(made, tmp_path / "out", config)
        assert list(tmp_path.iterdir()) == []
    export_generator(made, tmp_path / "out", config)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "generator.pt2"]


def test_a_file_that_deviates_is_not_kept(tmp_path, monkeypatch):
    """Latents may be off by 1e-4: 2e-4 and NaN leave nothing behind, 5e-5 passes."""
    made = pipeline(fitted_codec())

    def written(module, inputs, config, folder, about):
        (folder / "generator.pt2").write_text("half a file")
        assert (folder / LOCK).is_file()  # nobody takes it for what a killed process left
        return {"torch": lambda given: eager(made, config.guidance, given) + fault}

    monkeypatch.setattr(teacher.sampling.export, "_write", written)
    for fault in (2e-4, float("nan")):  # noqa: B007 - `written` reads it
        with pytest.raises(
            ValueError, match=r"generator\.pt2: largest deviation .*tolerance 0\.0001.*nothing was written"
        ):
            export_generator(made, tmp_path / "out", ExportConfig(formats="torch"))
        assert list(tmp_path.iterdir()) == []
    fault = 5e-5
    assert export_generator(made, tmp_path / "out", ExportConfig(formats="torch", repeats=1)) == tmp_path / "out"
    assert set(json.loads((tmp_path / "out" / "export.json").read_text())["seconds"]) == {"eager", "torch"}


def test_an_answer_of_another_shape_is_a_fault():
    with pytest.raises(ValueError, match="expected"):
        parity(lambda inputs: torch.zeros(1, 3), [()], [torch.zeros(1, 4)])


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    made = pipeline(fitted_codec())
    with pytest.raises(ValueError, match="only a student"):
        export_generator(
            pipeline(fitted_codec(), interval_embedding=False), tmp_path / "a", ExportConfig(formats="torch")
        )
    with pytest.raises(ValueError, match="float32 on the cpu"):
        export_generator(replace(made, precision="bfloat16"), tmp_path / "a", ExportConfig(formats="torch"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        export_generator(made, tmp_path / "full", ExportConfig(formats="torch"))
    monkeypatch.setattr(teacher.sampling.export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        export_generator(made, tmp_path / "a", ExportConfig(formats="onnx"))
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    "wrong", [{"formats": "tflite"}, {"guidance": 1.4}, {"batch": 0}, {"tolerance": 0.0}, {"repeats": -1}]
)
def test_a_wrong_value_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ExportConfig(**wrong)


def test_the_flags_become_the_configuration(tmp_path):
    args = Export(run=tmp_path, out=tmp_path, format="both", guidance="input", batch=3, seconds=2.0, timing=4)
    wanted = ExportConfig(formats="both", guidance="input", batch=3, duration_s=2.0, repeats=4)
    assert export_config(args) == wanted
    assert export_config(Export(run=tmp_path, out=tmp_path, guidance=1.4)).guidance == Guidance(omega=1.4)
