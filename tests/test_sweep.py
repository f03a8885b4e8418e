"""The sweep: paired noise, resuming, rows and their summary, floors; and the timing of stages."""

import json
import time
from dataclasses import replace

import pytest
import soundfile
import torch

from eval.extractors.embedded import EmbeddedAudioFeatures, EmbeddedClassifier
from eval.rows import Row, append_lines, read_rows, summarise
from eval.scorer import Scorer
from eval.speed import STAGES, StageTimer, machine_facts, measure, with_totals
from eval.sweep import Clips, KeptAudio, Origin, clip_seed, reference_rows, safe_name, sweep
from teacher.conditions import Conditions

RATE = 16_000
COUNT = 12
ORIGIN = Origin(config_digest="abc", run_id="test", command="python -m scripts.compare", machine={"device": "here"})


def hits(start_s, frequency):
    """Decaying tones of 1 s, one per start time, over a faint hiss."""
    t = torch.arange(RATE) / RATE
    after = t[None] - start_s[:, None]
    tone = torch.sin(2 * torch.pi * frequency[:, None] * t) * torch.exp(-after.clamp_min(0) / 0.05) * (after >= 0)
    return tone + 0.003 * torch.randn(tone.shape, generator=torch.Generator().manual_seed(0))


START_S = torch.linspace(0.2, 0.8, COUNT)
FREQUENCY = torch.tensor([400.0, 2000.0]).repeat(COUNT // 2)
REAL = hits(START_S, FREQUENCY)
IDS = tuple(f"clip/{k}" for k in range(COUNT))


@pytest.fixture(scope="module")
def scorer():
    extractor = EmbeddedAudioFeatures(sample_rate=RATE)
    labels = ["low" if f < 1000 else "high" for f in FREQUENCY]
    return Scorer.build(
        reference=REAL,
        ids=IDS,
        events=[(float(s),) for s in START_S[:-1]] + [None],
        extractor=extractor,
        classifier=EmbeddedClassifier.fit(extractor(REAL), labels),
    )


@pytest.fixture
def clips():
    # The text feature of a clip carries its number, so that the generator below knows which clip it is asked for.
    conditions = Conditions.empty(COUNT, 1.0)
    text = conditions.text.clone()
    text[:, 0, 0] = torch.arange(COUNT)
    present = torch.ones(COUNT, dtype=torch.bool)
    return Clips(ids=IDS, conditions=replace(conditions, text=text, has_clip=present, has_sync=present))


class Generator:
    """Real sound plus noise that falls with the steps; remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, conditions, steps, seeds):
        self.calls.append((steps, tuple(seeds), bool(conditions.has_clip.any())))
        noise = torch.stack([torch.randn(RATE, generator=torch.Generator().manual_seed(s)) for s in seeds])
        return REAL[conditions.text[:, 0, 0].long()] + 0.3 / steps**2 * noise


def run(generate, clips, scorer, path, **changes):
    options = {
        "task": "vta",
        "model": "teacher",
        "steps": (1, 8),
        "seeds": (0, 1),
        "scorer": scorer,
        "rows_path": path,
        "origin": ORIGIN,
        "batch_size": 5,
    } | changes
    return list(sweep(generate, clips, **options))


def test_rows_hold_what_was_run_and_quality_follows_the_noise(tmp_path, clips, scorer):
    rows = run(Generator(), clips, scorer, tmp_path / "rows.jsonl", guidance=4.5, evaluations_per_step=2)
    assert [(r.steps, r.seed, r.nfe) for r in rows] == [(1, 0, 2), (1, 1, 2), (8, 0, 16), (8, 1, 16)]
    assert rows == read_rows(tmp_path / "rows.jsonl")
    one, eight = rows[0].metrics, rows[2].metrics
    assert eight["frechet"] < one["frechet"]
    assert eight["kl"] < one["kl"]
    assert eight["onset_f1"] > 0.95 > one["onset_f1"]
    assert one["onset_clips"] == COUNT - 1  # the clip whose events are not known is left out, not counted as empty
    per_clip = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert len(per_clip) == 4 * COUNT
    mean = sum(c["kl"] for c in per_clip if c["steps"] == 1 and c["seed"] == 0) / COUNT
    assert mean == pytest.approx(one["kl"])


def test_the_noise_of_a_clip_depends_on_seed_and_id_only(tmp_path, clips, scorer):
    first, second = Generator(), Generator()
    rows = run(first, clips, scorer, tmp_path / "a.jsonl", batch_size=5)
    again = run(second, clips, scorer, tmp_path / "b.jsonl", batch_size=COUNT)
    for step in (1, 8):
        drawn = [s for steps, seeds, _ in first.calls for s in seeds if steps == step]
        assert drawn == [clip_seed(seed, clip_id) for seed in (0, 1) for clip_id in IDS]
    assert len({clip_seed(seed, clip_id) for seed in (0, 1) for clip_id in IDS}) == 2 * COUNT
    for a, b in zip(rows, again, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-4, abs=1e-6)


def test_finished_rows_are_not_made_again(tmp_path, clips, scorer):
    path = tmp_path / "rows.jsonl"
    whole = run(Generator(), clips, scorer, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:40])  # as if killed within the third line
    generate = Generator()
    assert [r.key for r in run(generate, clips, scorer, path)] == [r.key for r in whole]
    assert {steps for steps, _, _ in generate.calls} == {8}
    assert len(path.read_text().splitlines()) == 4
    other = Generator()
    run(other, clips, scorer, path, origin=replace(ORIGIN, config_digest="changed"))
    assert {steps for steps, _, _ in other.calls} == {1, 8}
    assert {r.config_digest for r in read_rows(path)} == {"changed"}


def test_text_to_audio_sees_no_video_and_scores_no_timing(tmp_path, clips, scorer):
    generate = Generator()
    rows = run(generate, clips, scorer, tmp_path / "rows.jsonl", task="tta", steps=(1,), seeds=(0,))
    assert not any(saw_video for *_, saw_video in generate.calls)
    assert not any(name.startswith("onset") for name in rows[0].metrics)


def test_kept_audio_is_the_first_clips_of_one_seed(tmp_path, clips, scorer):
    keep = KeptAudio(folder=tmp_path / "media", count=2, seed=1)
    run(Generator(), clips, scorer, tmp_path / "rows.jsonl", keep=keep, steps=(8,))
    assert sorted((tmp_path / "media").iterdir()) == sorted(keep.path("vta", "teacher", 8, i) for i in IDS[:2])
    wave, rate = soundfile.read(keep.path("vta", "teacher", 8, IDS[0]))
    assert (rate, len(wave)) == (RATE, RATE)


def test_names_of_files_stay_in_their_folder_and_apart():
    assert safe_name("abc_01.x-2") == "abc_01.x-2"
    assert "/" not in safe_name("../../etc/passwd")
    assert not safe_name("../a").startswith(".")
    assert safe_name("a/b") != safe_name("a_b")
    assert safe_name("a/b") != safe_name("a?b")


def test_real_sound_and_codec_rows_are_floor_and_ceiling(tmp_path, scorer):
    other = hits(START_S.flip(0) + 0.01, FREQUENCY)
    rows = list(
        reference_rows(
            scorer,
            reference=REAL,
            other=other,
            reconstruction=REAL,
            tasks=("vta",),
            rows_path=tmp_path / "rows.jsonl",
            origin=ORIGIN,
        )
    )
    real, codec = rows
    assert (real.model, codec.model) == ("reference", "codec")
    assert real.metrics["onset_f1"] == 1.0
    assert "kl" not in real.metrics
    assert real.metrics["frechet"] == scorer.score_unpaired(other).metrics["frechet"] > 0.01
    assert codec.metrics["frechet"] == pytest.approx(0.0, abs=1e-6)  # here the codec changes nothing
    assert codec.metrics["kl"] == pytest.approx(0.0, abs=1e-9)


def test_broken_generators_are_named(tmp_path, clips, scorer):
    def nan(conditions, steps, seeds):
        waves = REAL[: len(seeds)].clone()
        waves[0, 5] = float("nan")
        return waves

    with pytest.raises(ValueError, match=r"1 steps and seed 0 not so: \['clip/0'\]"):
        run(nan, clips, scorer, tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="at least 16000 samples"):
        run(lambda c, n, s: torch.zeros(len(s), 10), clips, scorer, tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="same ids"):
        run(nan, Clips(ids=IDS[::-1], conditions=clips.conditions), scorer, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


ROW = Row(
    task="vta",
    model="student",
    steps=1,
    seed=0,
    nfe=1,
    guidance=1.0,
    metrics={"frechet": 2.0},
    rtf={"flow network": 0.5},
    num_clips=4,
    config_digest="abc",
    run_id="r",
    command="c",
)


def test_rows_survive_the_file_and_bad_ones_are_named(tmp_path):
    assert Row.from_json(ROW.to_json()) == ROW
    path = tmp_path / "rows.jsonl"
    append_lines(path, [ROW.to_json(), '{"task": "vta"}'])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not a row of results"):
        read_rows(path)
    with pytest.raises(ValueError, match="frechet must be finite, got nan"):
        replace(ROW, metrics={"frechet": float("nan")})
    with pytest.raises(ValueError, match="task must be one of"):
        replace(ROW, task="video")


def test_summary_is_mean_and_sample_deviation_over_seeds():
    second = replace(ROW, seed=1, metrics={"frechet": 4.0}, rtf={"flow network": 0.7})
    summary = summarise([ROW, second])[0]
    assert (summary.mean["frechet"], summary.std["frechet"]) == (3.0, pytest.approx(2**0.5))
    assert (summary.seeds, summary.rtf["flow network"]) == ((0, 1), pytest.approx(0.6))
    assert summarise([ROW])[0].std["frechet"] is None
    with pytest.raises(ValueError, match="fresh folder"):
        summarise([ROW, replace(second, num_clips=5)])


def test_timing_measures_a_known_delay_without_the_warm_up():
    delays = iter([0.2, 0.02, 0.02, 0.02])
    timing = measure(lambda: time.sleep(next(delays)), warmup=1, repeats=3)
    assert 0.02 <= timing.p10_s <= timing.median_s <= timing.p90_s
    assert timing.median_s < 0.1  # the warm-up call alone takes 0.2 s
    assert timing.rtf(2.0) == timing.median_s / 2.0


def test_timing_waits_for_the_device_before_and_after_each_call():
    order = []
    measure(lambda: order.append("call"), warmup=1, repeats=2, synchronise=lambda: order.append("wait"))
    assert order == ["call", "wait", "call", "wait", "wait", "call", "wait"]


def test_totals_appear_only_when_every_stage_is_there():
    part = with_totals({"text encoder": 1.0, "flow network": 2.0, "codec decode": 4.0})
    assert (part["generator only"], part["text-to-audio"]) == (2.0, 7.0)
    assert "video-to-audio" not in part
    assert with_totals(dict.fromkeys(STAGES, 1.0))["video-to-audio"] == len(STAGES)


def test_stage_timer_refuses_unknown_stages_and_divides_by_the_audio():
    timer = StageTimer(audio_s=4.0)
    timer.measure("flow network", lambda: time.sleep(0.01), warmup=0, repeats=3)
    assert timer.rtf()["flow network"] == timer.timings["flow network"].median_s / 4.0
    with pytest.raises(ValueError, match="stage must be one of"):
        timer.measure("magic", lambda: None)
    assert set(machine_facts()) == {"device", "torch_version", "threads", "dtype"}
