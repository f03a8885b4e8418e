"""From a converted run folder to sound: the official parts in small sizes, negative prompts, solvers, precisions."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from eval.compare import entries
from meanflow import Adaptive, Guidance
from meanflow.config import to_plain
from scripts import sample, speed
from teacher.audio.mmaudio_codec import mmaudio_codec
from teacher.audio.vocoder import with_toom_cook
from teacher.media import read_audio, write_video
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import MMAudioConfig
from teacher.sampling import fast
from teacher.sampling.generator import clip_seed, generate, noise
from teacher.sampling.pipeline import Pipeline, SamplingConfig, as_in_the_demo
from teacher.sampling.provenance import read_provenance
from teacher.weights.convert import KIND
from tests.saved_student import tiny_pipeline
from tests.teacher.network.test_network import conditions, opened, small
from tests.teacher.tiny_codec import write_tiny_codec
from tests.teacher.tiny_weights import write_tiny_encoders

GUIDED = SamplingConfig(steps=2, guidance=Guidance(omega=3.0, rescale=False))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    """A run folder in the form that conversion leaves, and the pipeline it loads to."""
    folder = tmp_path_factory.mktemp("official")
    weights, run = folder / "weights", folder / "run"
    weights.mkdir()
    run.mkdir()
    write_tiny_codec(weights)
    write_tiny_encoders(weights)
    config = MMAudioConfig(num_heads=1, joint_depth=1, fused_depth=1, latent_channels=20, mlp_multiple_of=64)
    torch.manual_seed(0)
    net = MMAudio(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_file(net.state_dict(), run / "model.safetensors")
    mmaudio_codec("mmaudio_16k", weights).with_statistics(torch.full((20,), 0.1), torch.full((20,), 0.9)).save(
        run / "codec.safetensors"
    )
    features = {"duration_s": 1.0, "encoders": "mmaudio", "codec": "mmaudio_16k"}
    (run / "features.json").write_text(json.dumps({"config": features, "weights_dir": str(weights)}))
    document = {"kind": KIND, "network": to_plain(config), "licence": "CC BY-NC 4.0", "run": {}, "digests": {}}
    (run / "config.json").write_text(json.dumps(document))
    return Pipeline.load(run)


def test_words_become_sound_of_the_asked_length(pipeline):
    wave = pipeline(prompt="a bell", duration_s=1.3, steps=2)[0].wave
    assert wave.shape == (round(1.3 * 16_000),)
    assert pipeline.licence == "CC BY-NC 4.0"
    again = pipeline(prompt="a bell", duration_s=1.3, steps=2)[0].wave
    torch.testing.assert_close(wave, again, rtol=0, atol=0)


def test_a_pipeline_is_shown_in_one_line():
    shown = repr(tiny_pipeline())
    assert shown.startswith("Pipeline(student of ")
    assert "16000 Hz, windows of 1 s" in shown
    assert len(shown) < 200
    assert "\n" not in shown


def test_a_film_becomes_sound(pipeline, tmp_path):
    frames = torch.randint(0, 255, (26, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "film.mp4", frames.numpy(), 25.0, torch.zeros(16_640).numpy(), 16_000)
    sound = pipeline(video=str(tmp_path / "film.mp4"))[0]
    wave = sound.wave
    with pytest.raises(ValueError, match="would be overwritten"):
        sound.save_film(tmp_path / "film.mp4")
    sound.save_film(tmp_path / "again.mp4")
    assert read_provenance(sound.save(tmp_path / "film.flac")).source == "film.mp4"
    assert len(wave) == 16_640  # 26 frames of 1/25 s, though the film's own AAC track is longer


def test_an_empty_negative_prompt_is_the_empty_text(pipeline):
    """The published demo encodes "" anew where evaluation reads the stored features: equal if those are stored."""
    with torch.no_grad():
        pipeline.net.empty_string_feat.copy_(pipeline.encoders.text([""])[0])

    def make(negative):
        return pipeline(prompt="a bell", negative_prompt=negative, duration_s=1.0, sampling=GUIDED)[0].wave

    torch.testing.assert_close(make(""), make(None), rtol=0, atol=1e-6)
    assert float((make("music") - make(None)).abs().max()) > 1e-4


def test_a_negative_prompt_needs_guidance(pipeline):
    with pytest.raises(ValueError, match="guidance scale other than 1"):
        pipeline(prompt="a", negative_prompt="b")


def test_guided_velocity_with_negative_text_by_hand():
    """w v(cond) + (1 - w) v(empty picture, negative words), two separate evaluations."""
    config = small()
    net, c = opened(config), conditions(config)
    negative = torch.randn(1, 3, 7, dtype=torch.float64)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    made = generate(net, c, e, SamplingConfig(guidance=Guidance(omega=2.5, rescale=False)), negative=negative)
    other = replace(c.unconditional(), text=negative.expand(2, -1, -1), has_text=torch.ones(2, dtype=torch.bool))
    zero = torch.zeros(2, dtype=e.dtype)
    expected = e + 2.5 * net(e, zero, c) - 1.5 * net(e, zero, other)
    torch.testing.assert_close(made, expected.detach(), rtol=0, atol=1e-12)


def test_many_small_steps_and_the_adaptive_solver_meet():
    """Both approximate the same flow; the adaptive one returns the end state alone, not a trajectory."""
    config = small()
    net, c = opened(config), conditions(config)
    e = torch.randn(2, 9, 4, dtype=torch.float64)
    rule = Guidance(omega=1.5)
    tight = generate(net, c, e, SamplingConfig(guidance=rule, solver=Adaptive(rtol=1e-08, atol=1e-08)))
    assert tight.shape == e.shape
    errors = [
        float((generate(net, c, e, SamplingConfig(steps=n, guidance=rule, solver="heun")) - tight).abs().max())
        for n in (16, 64)
    ]
    assert errors[1] < 1e-3
    assert 8 < errors[0] / errors[1] < 32  # order 2: a quarter of the step, a sixteenth of the error


def test_a_student_takes_no_solver():
    config = small(interval_embedding=True)
    with pytest.raises(ValueError, match="jumps"):
        generate(
            opened(config),
            conditions(config),
            torch.randn(2, 9, 4, dtype=torch.float64),
            SamplingConfig(solver=Adaptive()),
        )


@pytest.mark.parametrize(("precision", "low", "high"), [("bfloat16", 1e-6, 0.05), ("demo", 1e-6, 0.1)])
def test_precisions_are_near_float32(pipeline, precision, low, high):
    other = replace(
        pipeline, precision=precision, net=as_in_the_demo(pipeline.net) if precision == "demo" else pipeline.net
    )
    c, e = Conditions.empty(1, 1.0), noise([clip_seed(0, "a")], 32, 20)
    full, rough = (p.generator.latents(c, e, SamplingConfig(steps=5)) for p in (pipeline, other))
    assert low < float((full - rough).norm() / full.norm()) < high


def test_the_demo_rounds_state_and_times(pipeline):
    rounded = as_in_the_demo(pipeline.net)
    assert rounded.config.time_precision == "bfloat16"
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    e = noise([1], 32, 20).bfloat16()
    assert generate(rounded, Conditions.empty(1, 1.0), e, SamplingConfig(steps=2)).dtype == torch.bfloat16


def test_wrong_choices_are_named(pipeline):
    with pytest.raises(ValueError, match="precision must be one of"):
        replace(pipeline, precision="half")
    with pytest.raises(ValueError, match="solver must be"):
        SamplingConfig(solver="rk4")


def test_a_sound_does_not_depend_on_the_other_seeds_and_a_scene_is_encoded_once(pipeline, monkeypatch):
    scene = pipeline.encode(prompt="a bell", duration_s=2.3)
    assert len(scene) == 3  # windows of 1 s, a quarter shared
    monkeypatch.setattr("teacher.sampling.scene._conditions", None)  # nothing is encoded any more
    both = pipeline(scene, seeds=(3, 4), guidance=2.0)
    alone = pipeline(scene, seeds=4, guidance=2.0)[0]
    assert [s.seed for s in both] == [3, 4]
    assert float((both[0].wave - both[1].wave).abs().max()) > 1e-3
    torch.testing.assert_close(both[1].wave, alone.wave, rtol=0, atol=0)  # the same operations on the same shapes
    assert alone.duration_s == pytest.approx(2.3)


@pytest.mark.parametrize("duration_s", [1.0, 2.3, 4.9])
def test_several_sounds_of_one_call_are_bit_by_bit_those_made_alone(duration_s):
    """With the fitted codec, whose phases turn the rounding of a batch into 1e-2 of the wave."""
    made = tiny_pipeline()
    scene = made.encode(prompt="a bell", duration_s=duration_s)
    together = made(scene, seeds=range(8), guidance=1.4)
    for sound in together:
        alone = made(prompt="a bell", duration_s=duration_s, seeds=sound.seed, guidance=1.4)[0]
        torch.testing.assert_close(sound.wave, alone.wave, rtol=0, atol=0)


def test_the_sound_of_a_compared_clip_does_not_depend_on_the_others():
    made = tiny_pipeline()
    make = entries._generator(made, Guidance(omega=1.4))
    scene = made.encode(prompt="a bell", duration_s=1.0)
    seeds = [clip_seed(0, f"clip {k}") for k in range(8)]
    together = make(Conditions.cat([scene.conditions(0, 1)] * 8), 1, seeds)
    for wave, seed in zip(together, seeds, strict=True):
        torch.testing.assert_close(wave, make(scene.conditions(0, 1), 1, [seed])[0], rtol=0, atol=0)


def test_pieces_of_a_stream_make_the_whole(pipeline):
    scene = pipeline.scene(prompt="rain", duration_s=3.7)
    pieces = list(pipeline.stream(scene, [5], SamplingConfig()))
    assert len(pieces) == len(scene) > 4
    assert all(piece.shape[1] > 0 for piece in pieces)
    whole = pipeline(prompt="rain", duration_s=3.7, seeds=5)[0].wave
    torch.testing.assert_close(torch.cat(pieces, 1)[0], whole, rtol=0, atol=1e-6)
    assert whole.shape == (round(3.7 * 16_000),)


def test_what_cannot_be_asked_together_is_named(pipeline):
    scene = pipeline.scene(prompt="rain", duration_s=1.0)
    for wrong in ({}, {"prompt": "rain"}):
        with pytest.raises(ValueError, match="either a scene or"):
            pipeline(None if not wrong else scene, **wrong)
    with pytest.raises(ValueError, match="guidance must be a scale"):
        pipeline(scene, guidance="strong")
    auto = pipeline(scene, guidance="auto", steps=25)[0]
    assert auto.sampling.guidance.omega == 4.5
    with pytest.raises(ValueError, match="seeds must hold"):
        pipeline(scene, seeds=())


def test_the_fast_command_makes_the_same_sound_to_rounding(pipeline, tmp_path, monkeypatch):
    made, vocoders = [], []
    for flags in ([], ["--fast"]):
        out = tmp_path / f"made{len(made)}"
        asked = ["--run", str(pipeline.source), "--prompt", "a bell", "--duration-s", "2.3", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["mf-sample", *asked, "--out", str(out), "--format", "wav", *flags])
        monkeypatch.setattr(fast, "with_toom_cook", lambda v: vocoders.append(v) or with_toom_cook(v, least_depth=1))
        sample.cli()
        made.append(torch.from_numpy(read_audio(out / "a_bell.wav", sample_rate=16_000)))
    assert float(made[0].abs().max()) > 0.01
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=2 / 32768)  # 16 bits a sample, and a step of rounding
    assert len(vocoders) == 1
    model, window_s = speed._model(speed.Speed(run=pipeline.source, fast=True, device="cpu"))
    assert (len(model.generator.decoder), window_s) == (2, 1.0)
    assert len(vocoders) == 2
    with pytest.raises(ValueError, match="--fast goes with --run"):
        speed._model(speed.Speed(variant="small_16k", fast=True))
