"""The fast form of a generator: the numbers of the ordinary one, its refusals, and what happens without a graph."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from meanflow import Adaptive, Guidance
from meanflow.guidance import JointGuidance
from teacher.audio.mmaudio_codec import MMAudioCodec, mmaudio_codec
from teacher.audio.toom_cook import ToomCookConv1d
from teacher.audio.vocoder import with_toom_cook
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.sampling import fast
from teacher.sampling.fast import CudaGraphCall, RecordedDraw, fast_form, record
from teacher.sampling.generator import Generator, SamplingConfig, noise
from tests.saved_student import tiny_pipeline
from tests.teacher.network.test_network import conditions, opened, small
from tests.teacher.tiny_codec import write_tiny_codec

FRAMES = 6


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


RULES = [Guidance(), Guidance(omega=1.7), JointGuidance(video=2.0, text=1.5)]


@pytest.mark.parametrize("guidance", RULES, ids=["off", "guided", "separate scales"])
def test_on_a_processor_latents_are_equal_and_waves_to_rounding(codec, guidance, monkeypatch):
    """Toom-Cook rounds seven times as coarsely as the direct form: 7 x 6e-8, growing over some ten layers to 1e-5."""
    made = []

    def everywhere(vocoder):  # the tiny vocoder has no convolution that is deep enough by itself
        made.append(with_toom_cook(vocoder, least_depth=1))
        return made[0]

    monkeypatch.setattr(fast, "with_toom_cook", everywhere)
    net, e, sampling = student(), noise([3, 4], FRAMES, 20), SamplingConfig(guidance=guidance)
    ordinary = Generator.of(net, codec.decode_stages())
    quick = fast_form(ordinary, codec, report=pytest.fail)
    assert any(isinstance(module, ToomCookConv1d) for module in made[0].modules())
    assert torch.equal(quick.latents(given(net), e, sampling), ordinary.latents(given(net), e, sampling))
    wave = ordinary(given(net), e, sampling)
    torch.testing.assert_close(quick(given(net), e, sampling), wave, rtol=0, atol=1e-5 * float(wave.abs().max()))
    assert [stage.name for stage in quick.decoder] == [stage.name for stage in ordinary.decoder]
    with pytest.raises(ValueError, match="latent must be finite"):
        quick.decoder[0].call(torch.full((2, FRAMES, 20), float("nan")))


def test_a_fitted_codec_has_no_fast_form():
    with pytest.raises(ValueError, match="MMAudio's codec; this model has a codec fitted"):
        replace(tiny_pipeline(), fast=True)


def flows(net, codec):
    """The ordinary generator, one whose flow is recorded, and what the second reports."""
    ordinary, reports = Generator.of(net, codec.decode_stages()), []
    return ordinary, replace(ordinary, draw=RecordedDraw(report=reports.append)), reports


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so recording does not fail")
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("guidance", RULES, ids=["off", "guided", "separate scales"])
def test_where_nothing_can_be_recorded_the_numbers_are_those_of_generate_and_a_line_says_why(codec, guidance, steps):
    net, sampling = student(), SamplingConfig(steps=steps, guidance=guidance)
    ordinary, recorded, reports = flows(net, codec)
    words = torch.randn(1, 3, 7) if guidance.active else None
    for seeds in ([3, 4], [5, 6]):
        e = noise(seeds, FRAMES, 20)
        wave = recorded(given(net), e, sampling, negative=words)
        assert torch.equal(wave, ordinary(given(net), e, sampling, negative=words))
    assert len(reports) == 1  # one size: tried once
    assert reports[0].startswith("no CUDA graph (")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so recording does not fail")
def test_a_scale_as_input_and_another_size(codec):
    net, sampling = student(guidance_embedding=True), SamplingConfig(guidance=Guidance(omega=2.5))
    ordinary, recorded, reports = flows(net, codec)
    for rows in (slice(0, 2), slice(0, 1)):
        e, c = noise([3, 4], FRAMES, 20)[rows], given(net).rows(rows)
        assert torch.equal(recorded.latents(c, e, sampling), ordinary.latents(c, e, sampling))
    assert len(reports) == 2
    with pytest.raises(ValueError, match="takes one"):
        recorded.latents(given(net), e, SamplingConfig(guidance=JointGuidance(video=2.0)))


def test_an_adaptive_solver_is_not_recorded(codec):
    net = opened(small(latent_channels=20)).float().eval().requires_grad_(False)
    ordinary, recorded, reports = flows(net, codec)
    e, sampling = noise([3, 4], FRAMES, 20), SamplingConfig(solver=Adaptive(rtol=1e-2, atol=1e-2))
    assert torch.equal(recorded.latents(given(net), e, sampling), ordinary.latents(given(net), e, sampling))
    assert reports == []


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
    assert record(lambda x: (x + 1,), [torch.ones(3)], report=said.append) is None
    assert len(said) == 1
    assert said[0].startswith("no CUDA graph (")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", RULES, ids=["off", "guided", "separate scales"])
def test_graphs_replay_what_was_recorded(tmp_path, precision, guidance):
    """Against eager execution on the same device: the same kernels, so equal but for the order of atomic sums."""
    folder, net, reports = write_tiny_codec(tmp_path), student().cuda(), []
    on_device = mmaudio_codec("mmaudio_16k", folder, device="cuda")
    ordinary = Generator.of(net, on_device.decode_stages(), device="cuda", precision=precision)
    quick = fast_form(ordinary, on_device, report=reports.append)
    make = partial(quick, given(net), sampling=SamplingConfig(guidance=guidance))
    first = make(e=noise([3, 4], FRAMES, 20))
    kept = first.clone()
    for seeds in ([5, 6], [3, 4]):
        e = noise(seeds, FRAMES, 20)
        wave = ordinary(given(net), e, SamplingConfig(guidance=guidance))
        torch.testing.assert_close(make(e=e), wave, rtol=0, atol=1e-5)
    assert reports == []
    assert torch.equal(first, kept)
