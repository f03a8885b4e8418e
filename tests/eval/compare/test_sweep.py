"""The sweep: paired noise, resuming, rows and their summary, floors; and the timing of stages."""

import json
from dataclasses import replace

import pytest
import soundfile
import torch

from eval.compare.reference_rows import reference_rows
from eval.compare.rows import Row, read_rows, safe_name
from eval.compare.scorer import Scorer
from eval.compare.sweep import Clips, Origin, SavedAudio, clip_seed, sweep
from eval.features.embedded import EmbeddedAudioFeatures, EmbeddedClassifier
from eval.features.sources import EmbeddedSource, features_of
from eval.metrics.onsets import OnsetScorer
from eval.report.settings import settings
from teacher.features.store import Record
from teacher.files.lines import append_lines
from teacher.network.conditions import Conditions

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


EVENTS = [(float(s),) for s in START_S[:-1]] + [None]
RECORDS = [
    Record(
        id=clip_id, item_id=clip_id, path="none", start_s=0.0, duration_s=1.0, caption="", label="", events_s=events,
        has_video=True, has_audio=True,
    )
    for clip_id, events in zip(IDS, EVENTS, strict=True)
]  # fmt: skip


@pytest.fixture(scope="module")
def scorer():
    extractor = EmbeddedAudioFeatures(sample_rate=RATE)
    labels = ["low" if f < 1000 else "high" for f in FREQUENCY]
    classifier = EmbeddedClassifier.fit(extractor(REAL), labels)
    source = EmbeddedSource(extractor=extractor, classifier=classifier, labels="labels")
    return Scorer.build(
        reference=REAL, records=RECORDS, sources=[source], clip_scorers=[OnsetScorer()], sample_rate=RATE
    )


@pytest.fixture
def clips():
    # The text feature of a clip carries its number, so that the generator below knows which clip it is asked for.
    conditions = Conditions.empty(COUNT, 1.0)
    text = conditions.text.clone()
    text[:, 0, 0] = torch.arange(COUNT)
    present = torch.ones(COUNT, dtype=torch.bool)
    whole = replace(conditions, text=text, has_clip=present, has_sync=present)
    return Clips(ids=IDS, conditions=lambda first, last: whole.rows(slice(first, last)))


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
        "part_size": 5,
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
    rows = run(first, clips, scorer, tmp_path / "a.jsonl", part_size=5)
    again = run(second, clips, scorer, tmp_path / "b.jsonl", part_size=COUNT)
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
    audio = SavedAudio(folder=tmp_path / "media", count=2, seed=1)
    run(Generator(), clips, scorer, tmp_path / "rows.jsonl", audio=audio, steps=(8,))
    assert sorted((tmp_path / "media").iterdir()) == sorted(audio.path("vta", "teacher", 8, 1.0, i) for i in IDS[:2])
    wave, rate = soundfile.read(audio.path("vta", "teacher", 8, 1.0, IDS[0]))
    assert (rate, len(wave)) == (RATE, RATE)


def test_names_of_files_stay_in_their_folder_and_apart():
    assert safe_name("abc_01.x-2") == "abc_01.x-2"
    assert "/" not in safe_name("../../etc/passwd")
    assert not safe_name("../a").startswith(".")
    assert safe_name("a/b") != safe_name("a_b")
    assert safe_name("a/b") != safe_name("a?b")


def test_real_sound_and_codec_rows_are_floor_and_ceiling(tmp_path, scorer):
    """Where the codec changes nothing, its distance and divergence are 0 and its onsets those of real sound."""
    other = features_of(scorer.sources, IDS, hits(START_S.flip(0) + 0.01, FREQUENCY), RATE)
    options = {
        "real": lambda first, last: REAL[first:last],
        "other": lambda: other,
        "roundtrip": lambda waves: waves,
        "task": "vta",
        "rows_path": tmp_path / "rows.jsonl",
        "origin": ORIGIN,
        "part_size": 5,
    }
    real, codec = reference_rows(scorer, **options)
    assert (real.model, codec.model) == ("reference", "codec")
    assert real.metrics["onset_f1"] == codec.metrics["onset_f1"] == 1.0
    assert "kl" not in real.metrics
    assert real.metrics["frechet"] == scorer.set_scores(other).metrics["frechet"] > 0.01
    assert real.metrics["inception_score"] == scorer.set_scores(scorer.reference).metrics["inception_score"]
    assert codec.metrics["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert codec.metrics["kl"] == pytest.approx(0.0, abs=1e-9)
    again = reference_rows(scorer, **(options | {"real": None}))  # finished rows read nothing
    assert [row.metrics for row in again] == [real.metrics, codec.metrics]


def test_parts_of_an_unfinished_row_are_not_generated_again(tmp_path, clips, scorer):
    path = tmp_path / "rows.jsonl"
    whole = run(Generator(), clips, scorer, tmp_path / "other" / "rows.jsonl", steps=(1,), seeds=(0,))

    class Stopped(Generator):
        def __call__(self, conditions, steps, seeds):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(conditions, steps, seeds)

    with pytest.raises(KeyboardInterrupt):
        run(Stopped(), clips, scorer, path, steps=(1,), seeds=(0,))
    assert not path.exists()
    rest = Generator()
    again = run(rest, clips, scorer, path, steps=(1,), seeds=(0,))
    assert [len(seeds) for _, seeds, _ in rest.calls] == [2]  # 12 clips in parts of 5: two parts were done
    assert again[0].metrics == whole[0].metrics
    assert again[0].estimates == whole[0].estimates
    assert not list((tmp_path / "parts").iterdir())


def test_models_and_guidance_scales_have_rows_of_their_own(tmp_path, clips, scorer):
    path = tmp_path / "rows.jsonl"
    for model, guidance in (("mine", 1.0), ("mine", 2.0), ("yours", 1.0)):
        origin = replace(ORIGIN, config_digest=f"{model}{guidance}", kind="student")
        run(Generator(), clips, scorer, path, model=model, guidance=guidance, steps=(1,), seeds=(0,), origin=origin)
    found = settings(read_rows(path))
    assert [(s.model, s.guidance, s.several_scales) for s in found] == [
        ("mine", 1.0, True),
        ("mine", 2.0, True),
        ("yours", 1.0, False),
    ]
    with pytest.raises(ValueError, match="kind must be one of"):
        run(Generator(), clips, scorer, path, model="nameless", steps=(1,), seeds=(0,))


def test_every_score_of_the_set_has_its_number_of_clips_interval_and_bias(tmp_path, clips, scorer):
    row = run(Generator(), clips, scorer, tmp_path / "rows.jsonl", steps=(1,), seeds=(0,))[0]
    for name in ("frechet", "kad", "kl", "inception_score", "onset_precision", "onset_recall", "onset_f1"):
        estimate, value = row.estimates[name], row.metrics[name]
        assert estimate.low <= value <= estimate.high
        assert estimate.level == 0.95
        assert estimate.count == (COUNT - 1 if name.startswith("onset") else COUNT)
        assert estimate.method
        assert estimate.bias_method
    assert row.estimates["frechet"].bias > 0
    assert row.estimates["kad"].bias == row.estimates["kl"].bias == 0.0
    assert len(row.estimates["frechet"].replicates) == COUNT  # fewer clips than groups: one clip each
    assert row == Row.from_json(row.to_json())


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
        run(nan, replace(clips, ids=IDS[::-1]), scorer, tmp_path / "rows.jsonl")
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


def test_the_kind_of_a_model_is_its_name_where_it_is_not_given():
    assert (ROW.kind, replace(ROW, model="mine", kind="teacher").kind) == ("student", "teacher")
    for model, written in (("codec", None), ("reference", None), ("student", "student")):
        row = replace(ROW, model=model, kind=model)
        assert json.loads(row.to_json())["kind"] == written
        assert Row.from_json(row.to_json()) == row
        older = json.loads(row.to_json()) | {"kind": None}
        assert Row.from_json(json.dumps(older)).kind == model
    with pytest.raises(ValueError, match="for a model called 'mine', got None"):
        replace(ROW, model="mine", kind=None)


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
    summary = settings([ROW, second])[0]
    assert (summary.mean["frechet"], summary.std["frechet"]) == (3.0, pytest.approx(2**0.5))
    assert (summary.seeds, summary.rtf["flow network"]) == ((0, 1), pytest.approx(0.6))
    assert settings([ROW])[0].std["frechet"] is None
    with pytest.raises(ValueError, match="fresh folder"):
        settings([ROW, replace(second, num_clips=5)])
