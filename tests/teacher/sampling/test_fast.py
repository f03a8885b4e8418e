"""Noise to wave in one call: the numbers of the ordinary path, its refusals, and the fallback where no graph is had."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from meanflow import Guidance
from meanflow.guidance import JointGuidance
from teacher.audio.mmaudio_codec import MMAudioCodec, mmaudio_codec
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.sampling.cuda_graph import CudaGraphCall, record
from teacher.sampling.fast import FastConfig, FastGenerator
from teacher.sampling.generator import generate, noise
from tests.teacher.network.test_network import conditions, opened, small
from tests.teacher.tiny_codec import write_tiny_codec

FRAMES = 6
CONFIG = FastConfig(batch=2, frames=FRAMES)


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> MMAudioCodec:
    made = mmaudio_codec("mmaudio_16k", write_tiny_codec(tmp_path_factory.mktemp("weights")))
    torch.manual_seed(1)
    return made.with_statistics(0.5 * torch.randn(20), torch.rand(20) + 0.5)


def student(**changes) -> MMAudio:
    net = opened(small(latent_channels=20, interval_embedding=True, **changes))
    return net.float().eval().requires_grad_(False)


def given(net: MMAudio) -> Conditions:
    return conditions(net.config).to("cpu", torch.float32)


def ordinary(net: MMAudio, codec: MMAudioCodec, e: Tensor, guidance, negative: Tensor | None = None, **autocast):
    with torch.autocast("cpu", torch.bfloat16, **autocast):
        latent = generate(net, given(net), e, num_steps=1, guidance=guidance, negative_text=negative)
    return latent.float(), codec.decode(latent.float())


RULES = [Guidance(), Guidance(omega=1.7), JointGuidance(video=2.0, text=1.5)]


@pytest.mark.parametrize("guidance", RULES, ids=["off", "guided", "separate scales"])
def test_the_numbers_are_those_of_generate_and_decode(codec, guidance):
    net, e = student(), noise([3, 4], FRAMES, 20)
    fast = FastGenerator.of_codec(net, codec, CONFIG, guidance=guidance)
    made = fast(e, fast.encode(given(net)))
    latent, wave = ordinary(net, codec, e, guidance, enabled=False)
    torch.testing.assert_close(made.latent, latent, rtol=0, atol=1e-6)
    torch.testing.assert_close(made.wave, wave, rtol=0, atol=1e-6)
    assert made.wave.shape == (2, FRAMES * 512)
    assert float((made.latent - e).abs().max()) > 0.1  # the network does something


def test_a_negative_prompt_and_a_scale_as_input(codec):
    e, words = noise([3, 4], FRAMES, 20), torch.randn(1, 3, 7)
    rule = Guidance(omega=2.5)
    plain, scaled = student(), student(guidance_embedding=True)
    fast = FastGenerator.of_codec(plain, codec, CONFIG, guidance=rule)
    made = fast(e, fast.encode(given(plain), words))
    torch.testing.assert_close(made.latent, ordinary(plain, codec, e, rule, words, enabled=False)[0], atol=1e-6, rtol=0)
    fast = FastGenerator.of_codec(scaled, codec, CONFIG, guidance=rule)
    made = fast(e, fast.encode(given(scaled)))
    torch.testing.assert_close(made.latent, ordinary(scaled, codec, e, rule, enabled=False)[0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="takes no negative prompt"):
        fast.encode(given(scaled), words)
    with pytest.raises(ValueError, match="takes one scale"):
        FastGenerator.of_codec(scaled, codec, CONFIG, guidance=JointGuidance(video=2.0))


def test_half_precision(codec):
    """autocast is the pipeline's, number by number. Rounding is 2^-9 relative, adding up to a hundredth here."""
    net, e, rule = student(), noise([3, 4], FRAMES, 20), Guidance(omega=1.7)
    exact, loud = ordinary(net, codec, e, rule, enabled=False)
    casting = FastGenerator.of_codec(net, codec, replace(CONFIG, network="autocast"), guidance=rule)
    same = casting(e, casting.encode(given(net)))
    torch.testing.assert_close(same.latent, ordinary(net, codec, e, rule)[0], rtol=0, atol=1e-6)
    half = FastGenerator.of_codec(net, codec, replace(CONFIG, network="bfloat16", sound="bfloat16"), guidance=rule)
    made = half(e, half.encode(given(net)))
    assert made.latent.dtype == made.wave.dtype == torch.float32
    for got in (same.latent, made.latent):
        assert 1e-4 < float((got - exact).norm() / exact.norm()) < 0.03
    assert float((made.wave - loud).norm() / loud.norm()) < 0.02
    assert net.final_layer.conv.weight.dtype == codec.models.vocoder.conv_pre.weight.dtype == torch.float32


def test_new_noise_costs_no_new_conditions_and_results_stay(codec):
    net = student()
    fast = FastGenerator.of_codec(net, codec, CONFIG)
    guide, e = fast.encode(given(net)), noise([3, 4], FRAMES, 20)
    kept = e.clone()
    first = fast(e, guide)
    wave = first.wave.clone()
    other = fast(noise([5, 4], FRAMES, 20), guide)
    assert torch.equal(e, kept)
    assert torch.equal(first.wave, wave)
    assert not torch.allclose(other.wave[0], wave[0], atol=1e-4)
    torch.testing.assert_close(other.wave[1], wave[1], rtol=0, atol=1e-6)


def test_what_does_not_fit_is_refused(codec):
    net, teacher = student(), opened(small(latent_channels=20)).float()
    fast = FastGenerator.of_codec(net, codec, CONFIG)
    guide = fast.encode(given(net))
    with pytest.raises(ValueError, match=r"noise must have shape \(2, 6, 20\), got \(2, 7, 20\)"):
        fast(torch.zeros(2, 7, 20), guide)
    with pytest.raises(ValueError, match="must be for 2 sounds, got 1"):
        fast.encode(given(net).rows(slice(1)))
    guided = FastGenerator.of_codec(net, codec, CONFIG, guidance=Guidance(omega=2.0))
    with pytest.raises(ValueError, match="encoded for Guidance"):
        guided(noise([1, 2], FRAMES, 20), guide)
    with pytest.raises(ValueError, match="latent must be finite"):
        fast(torch.full((2, FRAMES, 20), float("nan")), guide)
    with pytest.raises(ValueError, match="interval_embedding=True"):
        FastGenerator.of_codec(teacher, codec, CONFIG)
    with pytest.raises(ValueError, match="tf32 needs a CUDA device, got cpu"):
        FastGenerator.of_codec(net, codec, replace(CONFIG, tf32=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"network": "half"}, "network must be one of float32, autocast, bfloat16, got 'half'"),
        ({"sound": "autocast"}, "sound must be one of float32, bfloat16, got 'autocast'"),
        ({"sound": "bfloat16", "toom_cook": True}, "toom_cook needs sound=float32, got bfloat16"),
    ],
)
def test_wrong_choices(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_recorded_call_copies_in_and_out():
    place, result = torch.zeros(3), torch.zeros(3)
    twice = CudaGraphCall(lambda: result.copy_(2 * place), (place,), (result,))
    (one,) = twice(torch.ones(3))
    (two,) = twice(torch.full((3,), 2.0))
    assert one.tolist() == [2, 2, 2]
    assert two.tolist() == [4, 4, 4]
    for wrong in ((torch.ones(4),), (torch.ones(3).double(),), (torch.ones(3), torch.ones(3))):
        with pytest.raises(ValueError, match="a recorded call takes"):
            twice(*wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so recording does not fail")
def test_without_a_device_there_is_no_graph_but_a_reason():
    said: list[str] = []
    assert record(lambda x: (x + 1,), [torch.ones(3)], told=said.append) is None
    assert len(said) == 1
    assert said[0].startswith("no CUDA graph (")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("network", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("guidance", RULES, ids=["off", "guided", "separate scales"])
def test_the_graph_replays_what_was_recorded(tmp_path, network, guidance):
    """Against eager execution on the same device: the same kernels, so equal but for the order of atomic sums."""
    folder, net, said = write_tiny_codec(tmp_path), student().cuda(), []
    on_device = mmaudio_codec("mmaudio_16k", folder, device="cuda")
    config = replace(CONFIG, network=network)
    fast = FastGenerator.of_codec(net, on_device, config, guidance=guidance, told=said.append)
    eager = FastGenerator.of_codec(net, on_device, replace(config, cuda_graph=False), guidance=guidance)
    guide = fast.encode(given(net))
    first = fast(noise([3, 4], FRAMES, 20), guide)
    kept = first.wave.clone()
    for seeds in ([5, 6], [3, 4]):
        e = noise(seeds, FRAMES, 20)
        torch.testing.assert_close(fast(e, guide).wave, eager(e, guide).wave, rtol=0, atol=1e-5)
    assert said == []
    assert torch.equal(first.wave, kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_is_what_was_asked_for_and_put_back(tmp_path):
    net, before = student().cuda(), torch.backends.cudnn.allow_tf32
    on_device = mmaudio_codec("mmaudio_16k", write_tiny_codec(tmp_path), device="cuda")
    waves = []
    for tf32 in (False, True):
        fast = FastGenerator.of_codec(net, on_device, replace(CONFIG, tf32=tf32))
        waves.append(fast(noise([3, 4], FRAMES, 20), fast.encode(given(net))).wave.cpu())
    assert torch.backends.cudnn.allow_tf32 == before
    torch.testing.assert_close(*waves, rtol=0, atol=1e-2)


COMPILED = """
import pathlib, tempfile
from tests.test_fast import *
codec = mmaudio_codec("mmaudio_16k", write_tiny_codec(pathlib.Path(tempfile.mkdtemp())))
net, e, rule = student(), noise([3, 4], FRAMES, 20), Guidance(omega=1.7)
fast = FastGenerator.of_codec(net, codec, replace(CONFIG, compile=True), guidance=rule)
made = fast(e, fast.encode(given(net)))
print(float((made.wave - ordinary(net, codec, e, rule, enabled=False)[1]).abs().max()))
"""


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_sound():
    """In a process of its own: the checks of shapes that tests put on the package do not go through a compiler."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 1e-6
