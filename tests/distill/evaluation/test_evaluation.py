"""The held-out evaluation: exact agreement, the same numbers for any number of processes, latents kept and checked."""

import json
import shutil
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import soundfile
import torch

from distill.config import EvaluationConfig, FromData, FromTeacher, GuidedInput
from distill.engines.base import Engine, TogetherError
from distill.evaluation import BEST_STUDENT, BEST_TEACHER, HeldOut
from distill.evaluation import clips as held_out_clips
from distill.evaluation.clips import TEACHERS_LATENTS, Reference, agreement
from distill.loop.tracking import Tracker
from distill.method.student import student_from_teacher
from meanflow import Guidance, MixedGuidance
from meanflow.sampling import time_grid
from teacher.audio.mmaudio_codec import mmaudio_codec
from teacher.features.codec import load_codec
from teacher.features.config import ExtractConfig
from teacher.features.dataset import FeatureSet
from teacher.features.extract import extract
from teacher.lists.manifest import read_manifest
from teacher.network.mmaudio import MMAudio
from teacher.sampling.generator import Generator, SamplingConfig, clip_seed, draw_latents, generate, noise
from tests.distill.tiny import NETWORK, features
from tests.teacher.tiny_codec import write_tiny_codec

CONFIG = EvaluationConfig(num_clips=3, num_sounds=2, teacher_steps=2)
UNHEARD = replace(CONFIG, num_sounds=0)
"""Decoding takes most of the time."""


class FakeEngine:
    """One of several processes, which are threads here: they meet in `gather`."""

    device = torch.device("cpu")
    together = Engine.together

    def __init__(self, process=0, processes=1, *, precision=torch.float32, meeting=None):
        self.process, self.processes, self.main, self.precision = process, processes, process == 0, precision
        self.meeting = meeting

    def autocast(self):
        return nullcontext() if self.precision == torch.float32 else torch.autocast("cpu", dtype=self.precision)

    def gather(self, item):
        if self.meeting is None:
            return [item]
        barrier, items = self.meeting
        items[self.process] = item
        barrier.wait()
        found = list(items)
        barrier.wait()
        return found


def in_processes(count, work):
    """work(engine) in `count` threads at once; what each returned or raised."""
    meeting = (threading.Barrier(count, timeout=60), [None] * count)
    results = [None] * count

    def run(process):
        try:
            results[process] = work(FakeEngine(process, count, meeting=meeting))
        except Exception as error:
            results[process] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features of a world of sixteen clips."""
    folder = tmp_path_factory.mktemp("held-out")
    data = features(folder, num_clips=16)
    assert len(FeatureSet.open(data, "test")) >= 2  # enough for two processes and for an order
    return data


@pytest.fixture(scope="module")
def codec(folder):
    return load_codec(folder)


@pytest.fixture(scope="module")
def count(folder):
    return min(CONFIG.num_clips, len(FeatureSet.open(folder, "test")))


def opened(seed=0):
    """A network with every branch open."""
    torch.manual_seed(seed)
    net = MMAudio(NETWORK)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def teacher():
    return opened().eval()


def held_out(folder, codec, teacher, run, config=CONFIG, guidance=None, digest="a", scores=None):
    reference = Reference(net=teacher, digest=digest, guidance=guidance or Guidance())
    return HeldOut(folder, codec, config, run=run, teacher=reference, scores=scores)


def sound_scores(made, reference, sample_rate, records):
    """Stands in for scores: sums that see every sample, row by row."""
    weights = torch.arange(1, len(made) + 1)[:, None].double()
    assert made.shape == reference.shape
    assert len(records) == len(made)
    return {"made": float((made * weights).abs().sum()), "reference": float((reference * weights).abs().sum())}


def draw_with(monkeypatch, draw):
    """Let `draw` draw the latents of the fixed clips in the place of `draw_latents`."""
    monkeypatch.setattr(held_out_clips, "Generator", partial(Generator, draw=draw))


class Calls:
    """Counts what is generated, by network and number of steps."""

    def __init__(self, monkeypatch):
        self.seen = []

        def counted(net, guide, e, omega, sampling, check):
            self.seen.append((net, sampling.steps, len(e)))
            return draw_latents(net, guide, e, omega, sampling, check)

        draw_with(monkeypatch, counted)

    def of(self, net):
        return [steps for found, steps, _ in self.seen if found is net]


@pytest.mark.parametrize(
    ("factor", "error", "cosine", "energy"),
    [(1, 0, 1, 1), (2, 1, 1, 4), (0.5, 0.25, 1, 0.25), (-1, 4, -1, 1), (0, 1, 0, 0)],
)
def test_agreement_of_scaled_latents_is_known(factor, error, cosine, energy):
    """||(a - 1) x||^2 / ||x||^2 = (a - 1)^2, cosine sign(a), energy a^2; clips of any loudness weigh alike."""
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    found = agreement(factor * x, x)
    assert found == pytest.approx({"latent_error": error, "latent_cosine": cosine, "energy_ratio": energy}, abs=1e-6)
    mixed = agreement(torch.cat([x[:1], 2 * x[1:]]), x)
    assert mixed["latent_error"] == pytest.approx(2 / 3, abs=1e-6)


def test_a_student_equal_to_its_teacher_has_no_error(folder, codec, teacher, tmp_path):
    """One Euler step of v is one jump of u = v: zero to the last bit."""
    config = replace(CONFIG, teacher_steps=1)
    found = held_out(folder, codec, teacher, tmp_path, config)(student_from_teacher(teacher), FakeEngine())
    assert found.scalars[BEST_STUDENT] == 0
    assert found.scalars["evaluation/latent_cosine"] == pytest.approx(1, abs=1e-12)
    assert found.scalars["evaluation/energy_ratio"] == 1
    assert found.scalars["evaluation/teacher_one_step_error"] == 0


def test_twice_the_students_latents_are_one_whole_teacher_away(folder, codec, teacher, tmp_path, monkeypatch):
    student = student_from_teacher(teacher)
    draw_with(monkeypatch, lambda net, *rest: (2 if net is student else 1) * draw_latents(net, *rest))
    config = replace(CONFIG, teacher_steps=1)
    scalars = held_out(folder, codec, teacher, tmp_path, config)(student, FakeEngine()).scalars
    assert scalars[BEST_STUDENT] == pytest.approx(1, abs=1e-12)
    assert scalars["evaluation/energy_ratio"] == pytest.approx(4, abs=1e-12)


def test_a_fresh_student_is_as_far_away_as_the_teachers_own_single_step(folder, codec, teacher, tmp_path):
    """And that distance is what Euler's formula, written out here, says."""
    scalars = held_out(folder, codec, teacher, tmp_path)(student_from_teacher(teacher), FakeEngine()).scalars
    assert scalars[BEST_STUDENT] == scalars["evaluation/teacher_one_step_error"] > 0
    clips, errors = FeatureSet.open(folder, "test"), []
    for k in range(min(CONFIG.num_clips, len(clips))):
        batch = clips.batch([k])
        e = noise([clip_seed(0, clips.records[k].id)], *batch.latents.shape[1:])
        v = lambda x, t, c=batch.conditions: -teacher(x, torch.tensor([1 - t]), c)  # noqa: E731
        half = e - 0.5 * v(e, 1.0)
        x, one = half - 0.5 * v(half, 0.5), e - v(e, 1.0)
        errors.append(float((one - x).square().sum() / x.square().sum()))
    assert time_grid(2).tolist() == [1.0, 0.5, 0.0]
    assert scalars[BEST_STUDENT] == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_number_of_processes_changes_nothing(folder, codec, teacher, count, tmp_path, monkeypatch):
    """Bit for bit, more processes than clips included; every clip is generated once, alone, and only one tells."""
    student, calls, found = student_from_teacher(opened(1)), Calls(monkeypatch), []
    for processes in (1, 2, 3, 5):
        run, calls.seen = tmp_path / str(processes), []
        if processes == 1:
            results = [held_out(folder, codec, teacher, run, scores=sound_scores)(student, FakeEngine())]
        else:
            results = in_processes(
                processes,
                lambda engine, run=run: held_out(folder, codec, teacher, run, scores=sound_scores)(student, engine),
            )
        assert results[1:] == [None] * (processes - 1)
        assert sorted(calls.of(teacher)) == [1] * count + [2] * count
        assert calls.of(student) == [1] * count
        assert {size for _, _, size in calls.seen} == {1}
        found.append(results[0])
        assert (run / TEACHERS_LATENTS).read_bytes() == (tmp_path / "1" / TEACHERS_LATENTS).read_bytes()
    for other in found[1:]:
        assert other.scalars == found[0].scalars
        assert torch.equal(other.preview.waves, found[0].preview.waves)
        assert torch.equal(other.preview.pictures, found[0].preview.pictures)


def test_the_same_numbers_again_and_only_the_student_is_generated_again(
    folder, codec, teacher, count, tmp_path, monkeypatch
):
    student, calls = student_from_teacher(opened(1)), Calls(monkeypatch)
    evaluate = held_out(folder, codec, teacher, tmp_path, scores=sound_scores)
    first = evaluate(student, FakeEngine())
    (tmp_path / TEACHERS_LATENTS).unlink()  # a run that goes on does not need it
    second = evaluate(student, FakeEngine())
    assert first.scalars == second.scalars
    assert len(calls.of(teacher)) == 2 * count
    assert len(calls.of(student)) == 2 * count
    assert first.preview.names == ("0", "1", "0-reference", "1-reference")
    assert second.preview.names == ("0", "1")
    assert torch.equal(first.preview.waves[:2], second.preview.waves)


def test_a_resumed_run_takes_the_kept_latents(folder, codec, teacher, tmp_path, monkeypatch):
    student = student_from_teacher(opened(1))
    first = held_out(folder, codec, teacher, tmp_path, scores=sound_scores)(student, FakeEngine())
    calls = Calls(monkeypatch)
    again = held_out(folder, codec, teacher, tmp_path, scores=sound_scores)(student, FakeEngine())
    assert calls.of(teacher) == []
    assert again.scalars == first.scalars
    results = in_processes(2, held_out_of(folder, codec, teacher, tmp_path, student))
    assert calls.of(teacher) == []
    assert results[0].scalars == first.scalars


def held_out_of(folder, codec, teacher, run, student):
    return lambda engine: held_out(folder, codec, teacher, run, scores=sound_scores)(student, engine)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "b"},
        {"guidance": Guidance(omega=1.5)},
        {"config": replace(UNHEARD, teacher_steps=3)},
        {"config": replace(UNHEARD, num_clips=2)},
        {"precision": torch.bfloat16},
    ],
)
def test_latents_of_another_teacher_steps_or_clips_are_made_anew(
    folder, codec, teacher, tmp_path, monkeypatch, changes
):
    student, changes = student_from_teacher(opened(1)), {"config": UNHEARD} | changes
    engine = FakeEngine(precision=changes.pop("precision", torch.float32))
    held_out(folder, codec, teacher, tmp_path, UNHEARD)(student, FakeEngine())
    before = (tmp_path / TEACHERS_LATENTS).read_bytes()
    calls = Calls(monkeypatch)
    found = held_out(folder, codec, teacher, tmp_path, **changes)(student, engine)
    assert calls.of(teacher)
    assert (tmp_path / TEACHERS_LATENTS).read_bytes() != before
    assert all(np.isfinite(value) for value in found.scalars.values())
    fresh = held_out(folder, codec, teacher, tmp_path / "fresh", **changes)(student, engine)
    assert found.scalars == fresh.scalars


def test_a_damaged_file_of_latents_is_made_anew(folder, codec, teacher, tmp_path, monkeypatch):
    """Cut anywhere, a bit flipped in the header, in the key or in the numbers, or something else entirely."""
    student = student_from_teacher(opened(1))
    path, whole = (
        tmp_path / TEACHERS_LATENTS,
        held_out(folder, codec, teacher, tmp_path, UNHEARD)(student, FakeEngine()),
    )
    good = path.read_bytes()
    damaged = [b"", b"something else", good[:100], good[:-1]]
    for place in (4, good.index(b"key") + 10, good.index(b"sha256") + 12, len(good) // 2, len(good) - 1):
        damaged.append(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    calls = Calls(monkeypatch)
    for content in damaged:
        path.write_bytes(content)
        calls.seen = []
        assert held_out(folder, codec, teacher, tmp_path, UNHEARD)(student, FakeEngine()).scalars == whole.scalars
        assert calls.of(teacher)
        assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == [TEACHERS_LATENTS]


def test_training_goes_on_as_if_nothing_had_been_evaluated(folder, codec, teacher, tmp_path):
    """Random states and the mode of every module are as before, and no gradient was kept."""
    student = student_from_teacher(opened(1)).train()
    student.final_layer.eval()
    modes, own = [module.training for module in student.modules()], opened(2).train()
    before = {name: p.clone() for name, p in student.state_dict().items()}
    # Python's own generator is left out: the check of shapes that runs in tests draws from it.
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for evaluate in (held_out(folder, codec, teacher, tmp_path), HeldOut(folder, codec, CONFIG, run=tmp_path)):
        evaluate(student if evaluate.teacher else own, FakeEngine())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert [module.training for module in student.modules()] == modes
    assert own.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], p) for name, p in student.state_dict().items())


def test_the_network_is_in_evaluation_mode_meanwhile(folder, codec, teacher, tmp_path, monkeypatch):
    student, seen = student_from_teacher(teacher).train(), []
    draw_with(monkeypatch, lambda net, *rest: (seen.append(net.training), draw_latents(net, *rest))[1])
    held_out(folder, codec, teacher, tmp_path)(student, FakeEngine())
    assert not any(seen)
    broken = held_out(folder, codec, teacher, tmp_path / "b", scores=lambda *_: (_ for _ in ()).throw(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        broken(student, FakeEngine())
    assert student.training


def test_a_teacher_is_measured_by_flow_matching_on_fixed_noise_and_times(folder, codec, count, tmp_path):
    """A network whose velocity is zero has the loss mean (e - x)^2; its samples are the noise it started from."""
    net = MMAudio(NETWORK)  # as initialised its output is exactly zero
    clips, losses = FeatureSet.open(folder, "test"), []
    for k in range(count):
        x, name = clips.batch([k]).latents, clips.records[k].id
        e = noise([clip_seed(0, f"{name}/loss/{i}") for i in range(8)], *x.shape[1:])
        losses.append(float((e - x).square().mean()))
    scored = []
    evaluate = HeldOut(
        folder, codec, CONFIG, run=tmp_path, scores=lambda *given: scored.append(given) or {"number": 3.0}
    )
    found = evaluate(net, FakeEngine())
    assert found.scalars == {BEST_TEACHER: pytest.approx(np.mean(losses), rel=1e-6), "evaluation/number": 3.0}
    made, reference, rate, records = scored[0]
    e = noise([clip_seed(0, clips.records[k].id) for k in range(count)], *clips.batch([0]).latents.shape[1:])
    assert torch.equal(made, torch.cat([codec.decode(row[None]) for row in e]))
    assert torch.equal(reference, torch.cat([codec.decode(clips.batch([k]).latents) for k in range(count)]))
    assert (rate, [r.id for r in records]) == (16000, [clips.records[k].id for k in range(count)])
    assert not (tmp_path / TEACHERS_LATENTS).exists()


def test_the_loss_of_a_teacher_is_its_error_at_each_of_eight_times(folder, codec, tmp_path):
    net, clips = opened(3), FeatureSet.open(folder, held_out_clips.held_out_split(folder, 1))
    evaluate = HeldOut(folder, codec, replace(CONFIG, num_clips=1), run=tmp_path)
    batch, name = clips.batch([0]), clips.records[0].id
    errors = []
    for i in range(8):
        t = torch.tensor([(i + 0.5) / 8])
        e = noise([clip_seed(0, f"{name}/loss/{i}")], *batch.latents.shape[1:])
        v = -net((1 - t) * batch.latents + t * e, 1 - t, batch.conditions)
        errors.append(float((v - (e - batch.latents)).square().mean()))
    expected = pytest.approx(np.mean(errors), rel=1e-5)
    assert evaluate(net, FakeEngine()).scalars == {BEST_TEACHER: expected}
    results = in_processes(
        3, lambda engine: HeldOut(folder, codec, CONFIG, run=tmp_path, scores=sound_scores)(net, engine)
    )
    single = HeldOut(folder, codec, CONFIG, run=tmp_path, scores=sound_scores)(net, FakeEngine())
    assert results[0].scalars == single.scalars


@pytest.mark.parametrize(
    ("val", "test", "num_clips", "split"),
    [(16, 90, 16, "val"), (15, 90, 16, "test"), (3, 0, 16, "val"), (0, 5, 16, "test"), (0, 0, 16, None)],
)
def test_clips_to_validate_with_come_first(tmp_path, val, test, num_clips, split):
    (tmp_path / "features.json").write_text(json.dumps({"counts": {"train": 9, "val": val, "test": test}}))
    assert held_out_clips.held_out_split(tmp_path, num_clips) == split


def test_without_held_out_clips_nothing_happens_but_one_line(folder, codec, teacher, tmp_path, capsys):
    copy = tmp_path / "features"
    shutil.copytree(folder, copy)
    info = json.loads((copy / "features.json").read_text())
    info["counts"] = {name: count for name, count in info["counts"].items() if name == "train"}
    (copy / "features.json").write_text(json.dumps(info))
    student = student_from_teacher(teacher)

    def twice(engine):
        evaluate = held_out(copy, codec, teacher, tmp_path)
        return [evaluate(student, engine) for _ in range(2)]

    assert in_processes(2, twice) == [[None, None], [None, None]]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "has no clips to validate with" in lines[0]


@pytest.mark.parametrize(("num_clips", "num_sounds", "scored"), list(product((1, 1000), (0, 1000), (False, True))))
def test_few_clips_many_sounds_and_none(folder, codec, teacher, tmp_path, num_clips, num_sounds, scored):
    config = EvaluationConfig(num_clips=num_clips, num_sounds=num_sounds, teacher_steps=1)
    scores = sound_scores if scored else None
    found = held_out(folder, codec, teacher, tmp_path, config, scores=scores)(
        student_from_teacher(teacher), FakeEngine()
    )
    there = min(num_clips, len(FeatureSet.open(folder, "test")))
    assert found.scalars[BEST_STUDENT] == 0
    assert ("evaluation/made" in found.scalars) == scored
    if num_sounds:
        assert len(found.preview.waves) == len(found.preview.pictures) == len(found.preview.captions) == 2 * there
    else:
        assert found.preview is None


def test_sounds_without_pictures_are_evaluated(tmp_path, teacher):
    """A folder of tones with captions: neither image nor motion anywhere."""
    rows, t = [], np.arange(16000) / 16000
    for k in range(10):
        soundfile.write(tmp_path / f"{k}.wav", 0.5 * np.sin(2 * np.pi * (300 + 170 * k) * t) * np.exp(-t), 16000)
        rows.append({"file": f"{k}.wav", "caption": f"tone {k}", "split": "test" if k < 2 else "train"})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    extract(read_manifest(tmp_path / "list.jsonl"), tmp_path / "features", ExtractConfig(duration_s=1.0, workers=0))
    data = tmp_path / "features"
    codec, student = load_codec(data), student_from_teacher(opened(1))
    found = held_out(data, codec, teacher, tmp_path, scores=sound_scores)(student, FakeEngine())
    assert all(np.isfinite(value) for value in found.scalars.values())
    assert found.preview.captions == ["tone 0", "tone 1"] * 2


def test_latents_that_are_not_finite_are_counted_and_nothing_else(folder, codec, teacher, count, tmp_path):
    student, net = student_from_teacher(teacher), opened()
    _spoil(student)
    found = held_out(folder, codec, teacher, tmp_path, scores=sound_scores)(student, FakeEngine())
    assert found.scalars.pop("evaluation/teacher_one_step_error") >= 0
    assert found.scalars == {"evaluation/not_finite": count}
    assert found.preview is None
    found = HeldOut(folder, codec, CONFIG, run=tmp_path, scores=sound_scores)(_spoil(net), FakeEngine())
    assert found.scalars == {"evaluation/not_finite": count}
    with pytest.raises(ValueError, match="the teacher's latents of held-out clips are not finite"):
        held_out(folder, codec, net, tmp_path, digest="b")(student, FakeEngine())


def _spoil(net):
    for parameter in net.requires_grad_(False).final_layer.parameters():
        parameter.fill_(torch.nan)
    return net


def test_a_process_that_cannot_read_stops_all_with_its_message(folder, codec, teacher, tmp_path, monkeypatch):
    student, read = student_from_teacher(teacher), FeatureSet.batch

    def gone(self, indices, **options):
        if list(indices) == [1]:
            raise OSError("shard is gone")
        return read(self, indices, **options)

    monkeypatch.setattr(FeatureSet, "batch", gone)
    results = in_processes(2, held_out_of(folder, codec, teacher, tmp_path, student))
    assert all(isinstance(error, TogetherError) for error in results)
    assert {str(error) for error in results} == {"process 1: shard is gone"}
    with pytest.raises(OSError, match="shard is gone"):
        held_out(folder, codec, teacher, tmp_path)(student, FakeEngine())


def test_the_teacher_is_guided_as_the_targets_were():
    guidance = Guidance(omega=2.5, interval=(0.1, 0.9))
    assert FromTeacher(guidance=guidance).reference_guidance == guidance
    assert not FromData().reference_guidance.active
    mixed = MixedGuidance(omega=0.3, kappa=0.9, interval=(0.0, 0.8))
    own, teachers = (FromData(mixed=mixed, predictions=of).reference_guidance for of in ("student", "teacher"))
    assert own == Guidance(omega=own.omega, rescale=False, interval=(0.0, 0.8))
    assert own.omega == pytest.approx(3.0)
    assert teachers.omega == pytest.approx(1.2)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_a_student_with_a_scale_as_input_is_shown_the_median_one(power):
    """Half of the scales drawn in training lie below: of 20,000 draws to within four standard errors, 0.014."""
    source = GuidedInput(max_omega=6.0, power=power, interval=(0.2, 1.0))
    guidance = source.reference_guidance
    drawn = source.draw(20_000, generator=torch.Generator().manual_seed(0))
    assert float((drawn < guidance.omega).float().mean()) == pytest.approx(0.5, abs=0.015)
    assert (guidance.rescale, guidance.interval) == (False, (0.2, 1.0))


def test_the_scale_reaches_the_student_and_its_teacher(folder, codec, teacher, tmp_path):
    """The student is shown omega in one evaluation, the teacher is guided with it; a plain student stays unguided."""
    guidance, config = Guidance(omega=2.0, rescale=False), replace(CONFIG, num_clips=1, teacher_steps=1)
    shown = student_from_teacher(opened(1), guidance_embedding=True).requires_grad_(False)
    for parameter in shown.guidance_embed.parameters():
        parameter.add_(0.1)
    plain, clips = student_from_teacher(opened(1)), FeatureSet.open(folder, held_out_clips.held_out_split(folder, 1))
    batch = clips.batch([0])
    e = noise([clip_seed(0, clips.records[0].id)], *batch.latents.shape[1:])
    x = generate(teacher, batch.conditions, e, SamplingConfig(guidance=guidance))
    for k, (net, scale) in enumerate(((shown, guidance), (plain, Guidance()))):
        made = generate(net, batch.conditions, e, SamplingConfig(guidance=scale))
        found = held_out(folder, codec, teacher, tmp_path / str(k), config, guidance)(net, FakeEngine())
        assert found.scalars[BEST_STUDENT] == agreement(made, x)["latent_error"]


def test_a_codec_with_networks_decodes_where_the_engine_computes(codec, tmp_path):
    """Its networks are loaded there when first used; statistics and files stay the same."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    own = mmaudio_codec("mmaudio_16k", write_tiny_codec(tmp_path))
    assert held_out_clips.decoding_on(codec, gpu) is codec
    assert held_out_clips.decoding_on(own, cpu) is own
    moved = held_out_clips.decoding_on(own, gpu)
    assert (moved.models.device, own.models.device, moved.digest) == ("cuda:1", "cpu", own.digest)


def test_the_first_preview_reaches_tensorboard_under_its_names(folder, codec, teacher, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluate, student = held_out(folder, codec, teacher, tmp_path), student_from_teacher(teacher)
    with Tracker(tmp_path) as tracker:
        for step in (5, 10):
            tracker.preview(step, evaluate(student, FakeEngine()).preview)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"audio": 0, "images": 0})
    events.Reload()
    tags = {f"sound/{name}": steps for name, steps in (("0", 2), ("1", 2), ("0-reference", 1), ("1-reference", 1))}
    assert {tag: len(events.Audio(tag)) for tag in events.Tags()["audio"]} == tags
    assert set(events.Tags()["images"]) == {tag.replace("sound", "spectrogram") for tag in tags}
