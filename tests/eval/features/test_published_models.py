"""Scores of single clips: their values by hand, clips without a score, and stored features of pictures and captions."""

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from eval.extractors import aesthetics, clap, imagebind, panns, passt, synchformer
from eval.extractors import vggish as vggish_file
from eval.extractors.clap_text import GPT2, ROBERTA
from eval.extractors.clip_audio import ClipAudio
from eval.extractors.imagebind import imagebind_frames
from eval.features.published_models import PublishedModels
from eval.features.sources import ModelSource, prepare_all
from eval.metrics import clip_scores
from eval.metrics.aesthetics import AESTHETICS, AestheticsScorer
from eval.metrics.alignment import CosineScorer, paired_cosines
from eval.metrics.desync import DeSync
from eval.metrics.embeddings import Embeddings
from eval.metrics.greatest_hits import ScriptScorer, script_scores
from eval.metrics.onsets import OnsetScorer, detect_onsets, match_onsets
from eval.metrics.pam import PROMPTS, Pam, PamScorer, pam_windows
from teacher.features.store import Record
from teacher.files import file_digest
from teacher.media import read_frames, write_audio, write_video
from tests.eval.extractors import test_clap, test_imagebind, test_synchformer
from tests.eval.extractors.test_clap_text import vocabulary_folder

DURATION_S = 4.8
RATE = 16_000
CAPTIONS = ("a dog", "dog and car", "!!")


def sounds(count: int, rate: int = RATE, seed: int = 0) -> torch.Tensor:
    """Decaying tones every 0.8 s with an offset, faint noise over them; each clip another tone."""
    t = torch.arange(round(DURATION_S * rate)) / rate
    tones = [torch.sin(2 * torch.pi * (300 + 170 * k) * t) * torch.exp(-20 * (t % 0.8)) for k in range(count)]
    noise = torch.randn(count, len(t), generator=torch.Generator().manual_seed(seed))
    return 0.3 * torch.stack(tones) + 0.02 * noise + 0.05


def record(path: Path | str, number: int = 0, **changes: object) -> Record:
    made = Record(
        id=f"clip{number}", item_id=f"clip{number}", path=str(path), start_s=0.0, duration_s=DURATION_S, label="",
        caption=CAPTIONS[number % 3], events_s=None, has_video=True, has_audio=True,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[Path]:
    """Two videos of 6 s at 5 frames a second whose pictures differ, and a sound."""
    folder = tmp_path_factory.mktemp("media")
    for k in range(2):
        frames = np.random.default_rng(k).integers(0, 256, (30, 1, 1, 3), np.uint8)
        picture = np.broadcast_to(frames, (30, 32, 48, 3)).copy()
        picture[:, 16 * k : 16 * k + 16] //= 3
        write_video(folder / f"{k}.mp4", picture, 5.0, np.zeros(6 * RATE, np.float32), RATE)
    write_audio(folder / "sound.wav", np.zeros(RATE, np.float32), RATE)
    return [folder / "0.mp4", folder / "1.mp4", folder / "sound.wav"]


@pytest.fixture
def media(originals, tmp_path) -> list[Path]:
    """Copies that may be changed."""
    return [Path(shutil.copy(path, tmp_path)) for path in originals]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Small checkpoints in the published layouts."""
    root = tmp_path_factory.mktemp("files")
    return {
        "imagebind": test_imagebind.written(root, test_imagebind.small_tensors() | test_imagebind.others()),
        "synchformer": test_synchformer.written(root, test_synchformer.small_tensors()),
        "clap_laion": test_clap.laion_file(root, test_clap.tensors_of("laion")),
        "clap_ms": test_clap.ms_file(root, test_clap.tensors_of("ms")),
        "roberta_tokens": vocabulary_folder(root / "roberta", ROBERTA.first, ROBERTA.last),
        "gpt2_tokens": vocabulary_folder(root / "gpt2", GPT2.first, GPT2.last),
    }


@pytest.fixture
def small(monkeypatch):
    """The networks at the sizes of those checkpoints."""
    monkeypatch.setattr(imagebind.ImageBind, "load", partial(imagebind.ImageBind.load, config=test_imagebind.SMALL))
    monkeypatch.setattr(clap, "CLAP_LAION", test_clap.SMALL_LAION)
    monkeypatch.setattr(clap, "CLAP_MS_2023", test_clap.SMALL_MS)
    whole = synchformer.DesyncExtractor.load

    def desync(path: Path, *, device: str) -> synchformer.DesyncExtractor:
        loaded = whole(path, device=device, config=test_synchformer.SMALL)
        return replace(loaded, request=test_synchformer.PIXELS)

    monkeypatch.setattr(synchformer.DesyncExtractor, "load", desync)


def load(cache: Path, models: PublishedModels):
    """The scorers after that of the onsets."""
    sources, made = models.load(duration_s=DURATION_S, device="cpu", cache=cache)
    assert sources == ()
    assert isinstance(made[0], OnsetScorer)
    return made[1:]


def independent(scorer, records, waves, rate=RATE, *, exact=False):
    """Scores of the records together, which are those of each alone and of all in another order."""
    together = scorer.scores(records, waves, rate)
    order = [2, 0, 1]
    turned = scorer.scores([records[k] for k in order], waves[order], rate)
    for place, k in enumerate(order):
        alone = scorer.scores([records[k]], waves[k : k + 1], rate)[0]
        for other in (turned[place], alone):
            assert other == (together[k] if exact else pytest.approx(together[k], abs=2e-5))
    return together


# Pictures


def test_imagebind_is_the_cosine_of_sound_and_picture(files, small, media, tmp_path):
    (scorer,) = load(tmp_path / "cache", PublishedModels(imagebind=files["imagebind"]))
    model = imagebind.ImageBind.load(files["imagebind"])
    assert scorer.tasks == ("vta",)
    assert model.name in scorer.name
    assert ClipAudio(sample_rate=RATE, duration_s=DURATION_S).name in scorer.name
    records = [record(media[0]), record(media[1], 1), record(media[2], 2, has_video=False)]
    waves = sounds(3)
    found = independent(scorer, records, waves)
    assert found[2] == {}  # no picture
    seen = torch.stack([model.embed_frames(imagebind_frames(path, duration_s=DURATION_S)) for path in media[:2]])
    cut = waves - waves.mean(dim=1, keepdim=True)
    expected = paired_cosines(model.embed(cut[:2]).rows, seen)
    assert [list(entry) for entry in found[:2]] == [["ib_score"]] * 2
    assert [entry["ib_score"] for entry in found[:2]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert abs(found[0]["ib_score"] - found[1]["ib_score"]) > 1e-3
    later = scorer.scores([replace(records[0], start_s=1.0)], waves[:1], RATE)[0]["ib_score"]
    assert abs(later - found[0]["ib_score"]) > 1e-4
    assert scorer.scores(records[2:], waves[2:], RATE) == [{}]


@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_desync_is_of_the_first_and_the_last_window(files, small, media, tmp_path, rate):
    (scorer,) = load(tmp_path / "cache", PublishedModels(synchformer=files["synchformer"]))
    model = synchformer.DesyncExtractor.load(files["synchformer"], device="cpu")
    assert (scorer.name, scorer.tasks) == (model.name, ("vta",))
    records = [record(media[0]), record(media[1], 1), record(media[2], 2, has_video=False)]
    waves = sounds(3, rate)
    found = independent(scorer, records, waves, rate, exact=True)
    assert found[2] == {}
    for entry, path, wave in zip(found, media[:2], waves, strict=False):
        frames = read_frames(path, [model.request], duration_s=DURATION_S)[0]
        sound = wave.double().numpy()  # the offset stays in
        if rate != RATE:
            sound = soxr.resample(sound, rate, RATE, quality="HQ")
        features = model.audio_features(torch.from_numpy(sound).float()[None])
        logits = model.logits(model.visual_features(torch.from_numpy(frames))[None], features)
        assert entry == {"desync": DeSync.from_logits(logits[:, 0], logits[:, 1]).per_clip_s[0]}
    assert {entry["desync"] for entry in found[:2]} != {0.0}


def test_sides_are_kept_by_the_content_of_the_file(files, small, media, tmp_path, monkeypatch):
    read: list[str] = []

    def counted(path: Path, **options: float) -> np.ndarray:
        read.append(path.name)
        return imagebind_frames(path, **options)

    monkeypatch.setattr(imagebind, "imagebind_frames", counted)
    cache, waves = tmp_path / "cache", sounds(1)

    def score(path: Path, **changes: object) -> float:
        """As a process that begins anew."""
        (scorer,) = load(cache, PublishedModels(imagebind=files["imagebind"]))
        return scorer.scores([record(path, **changes)], waves, RATE)[0]["ib_score"]

    first = score(media[0])
    assert score(media[0]) == first
    assert read == ["0.mp4"]
    renamed = media[0].rename(tmp_path / "renamed.mp4")
    assert score(renamed, id="other", caption="other") == first
    assert read == ["0.mp4"]
    shutil.copy(media[1], renamed)
    assert score(renamed) != first
    assert read == ["0.mp4", "renamed.mp4"]
    score(renamed, start_s=0.5)
    assert len(read) == 3
    stored = sorted(cache.rglob("*.safetensors"))
    assert len(stored) == 3
    for path in stored:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cache/\w\w/\w+\.safetensors cannot be read .* delete it and run again"):
        score(renamed)
    assert len(read) == 3
    renamed.unlink()
    with pytest.raises(
        ValueError, match=r"renamed\.mp4"
    ):  # its reader reports it; nothing is stored for a file that is gone
        score(renamed)
    assert len(list(cache.rglob("*.safetensors"))) == 3


# Captions


def test_a_line_says_of_each_file_whether_it_is_the_published_one(files, small, tmp_path):
    lines: list[str] = []
    PublishedModels(**files).load(duration_s=DURATION_S, device="cpu", cache=tmp_path, report=lines.append)
    names = ("imagebind", "synchformer", "clap_laion", "clap_ms")
    digests = {name: f"{files[name].name} (sha256 {file_digest(files[name])}..., " for name in names}
    assert [line.split(": ")[0] for line in lines] == list(names)
    assert lines[0] == f"imagebind: {digests['imagebind']}NOT the published file)"
    assert lines[1] == f"synchformer: {digests['synchformer']}published digest not known)"
    for name, line in zip(names[2:], lines[2:], strict=True):
        known = f"{name}: {digests[name]}published digest not known)"
        assert line.startswith(f"{known}; vocab.json and merges.txt (sha256 ")
        assert line.endswith("..., NOT the published files)")


def test_clap_is_the_cosine_of_sound_and_caption(files, small, tmp_path):
    models = PublishedModels(
        **{name: files[name] for name in ("clap_laion", "roberta_tokens", "clap_ms", "gpt2_tokens")}
    )
    laion, ms, pam = load(tmp_path / "cache", models)
    records, waves = [record("none", k, has_video=False) for k in range(3)], sounds(3)
    policy = ClipAudio(sample_rate=RATE, duration_s=DURATION_S)
    prepared = torch.stack([policy.prepare(wave.double().numpy(), RATE) for wave in waves])
    for scorer, key, model in (
        (laion, "clap_laion", clap.Clap.load(files["clap_laion"], clap.CLAP_LAION, tokenizer=files["roberta_tokens"])),
        (ms, "clap_ms", clap.Clap.load(files["clap_ms"], clap.CLAP_MS_2023, tokenizer=files["gpt2_tokens"])),
    ):
        assert scorer.tasks == ("vta", "tta")
        assert model.name in scorer.name
        found = independent(scorer, records, waves)
        expected = paired_cosines(model.embed(prepared).rows, model.embed_text(CAPTIONS))
        assert [entry[key] for entry in found] == pytest.approx(expected.tolist(), abs=1e-5)
        assert len({round(entry[key], 4) for entry in found}) == 3
        # Nothing to compare with: no score, and none of the others moves.
        without = scorer.scores([records[0], replace(records[1], caption=" "), records[2]], waves, RATE)
        assert without[1] == {}
        assert without[2] == pytest.approx(found[2], abs=2e-5)
        assert scorer.scores([replace(records[0], caption="")], waves[:1], RATE) == [{}]
    assert isinstance(pam, PamScorer)


def test_a_caption_is_embedded_once(files, small, tmp_path, monkeypatch):
    texts: list[str] = []
    whole = clap.Clap.embed_text

    def counted(self, captions):
        texts.extend(captions)
        return whole(self, captions)

    monkeypatch.setattr(clap.Clap, "embed_text", counted)
    monkeypatch.setattr("eval.features.published_models.PROMPTS_CACHED", 2)
    scorer, _ = load(tmp_path / "cache", PublishedModels(clap_ms=files["clap_ms"], gpt2_tokens=files["gpt2_tokens"]))
    assert texts == list(PROMPTS)
    texts.clear()
    for numbers in ((0, 0, 1), (1, 0), (3, 4)):  # captions repeat after three
        scorer.scores([record("none", k) for k in numbers], sounds(len(numbers)), RATE)
    assert texts == [CAPTIONS[0], CAPTIONS[1]]
    scorer.scores([record("none", 2)], sounds(1), RATE)
    scorer.scores([record("none", 0)], sounds(1), RATE)
    assert texts == [*CAPTIONS, CAPTIONS[0]]  # two are remembered


def test_pam_is_the_mean_over_windows_as_long_as_the_model_hears(files, small, tmp_path):
    models = PublishedModels(clap_ms=files["clap_ms"], gpt2_tokens=files["gpt2_tokens"])
    _, scorer = load(tmp_path / "cache", models)
    model = clap.Clap.load(files["clap_ms"], clap.CLAP_MS_2023, tokenizer=files["gpt2_tokens"])
    records, waves = [record("none", k, caption="") for k in range(3)], sounds(3)
    found = independent(scorer, records, waves)
    assert (scorer.tasks, len(scorer.name.split(model.name))) == (("vta", "tta"), 2)
    prompts = model.embed_text(PROMPTS)
    for entry, wave in zip(found, waves, strict=True):
        windows = pam_windows(wave - wave.mean(), window=test_clap.SAMPLES)
        assert len(windows) == 4  # 76 800 = 3 * 20 000 + 16 800
        rows = Embeddings(rows=model.embed(windows).rows, counts=(4,))
        expected = Pam.from_embeddings(rows, prompts, logit_scale=model.logit_scale).per_clip[0]
        assert entry == {"pam": pytest.approx(expected, abs=1e-5)}
    assert len({round(entry["pam"], 4) for entry in found}) > 1


# Events and quality


def test_onsets_are_counted_where_events_are_known():
    waves, events = sounds(3), (0.8, 1.6, 2.5)
    records = [record("none", 0, events_s=events), record("none", 1), record("none", 2, events_s=())]
    found = independent(OnsetScorer(), records, waves, exact=True)
    assert found[1] == {}  # not known
    for k, known in ((0, events), (2, ())):
        counts = match_onsets(known, detect_onsets(waves[k].numpy(), RATE))
        expected = {"hits": counts.hits, "misses": counts.misses, "false_alarms": counts.false_alarms}
        assert found[k] == expected
    assert found[0]["hits"] == 2  # 2.5 is 0.1 s late
    assert found[0]["misses"] == 1
    assert found[2]["hits"] == found[2]["misses"] == 0
    wide = OnsetScorer(tolerance_s=0.15)
    assert wide.scores(records[:1], waves[:1], RATE)[0]["hits"] == 3
    assert wide.name != OnsetScorer().name


def test_the_greatest_hits_script_scores_clips_with_events():
    waves, events = sounds(3), (0.8, 1.6, 2.5)
    records = [record("none", 0, events_s=events), record("none", 1), record("none", 2, events_s=())]
    scorer = ScriptScorer()
    found = independent(scorer, records, waves, exact=True)
    assert found[1:] == [{}, {}]
    scores = script_scores(events, soxr.resample(waves[0].double().numpy(), RATE, 22_050, quality="HQ"))
    assert found[0] == {"gh_accuracy": scores.accuracy, "gh_ap": scores.average_precision, "gh_f1": scores.f1}
    # A manifest may list events in any order; behind 8 s the script looks at nothing.
    assert scorer.scores([replace(records[0], events_s=(2.5, 0.8, 1.6, 8.5))], waves[:1], RATE) == found[:1]
    assert scorer.scores([replace(records[0], events_s=(8.5,))], torch.zeros(1, 10 * RATE), RATE) == [{}]


class Means:
    """Four known scores of a clip: its mean, twice that, its length in seconds, one."""

    name, sample_rate = "means-v1", 8000

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        mean = waves.mean(dim=1)
        return torch.stack((mean, 2 * mean, torch.full_like(mean, waves.shape[1] / 8000), torch.ones_like(mean)), dim=1)


KEYS = tuple(metric.key for metric in AESTHETICS)


def means_scorer() -> AestheticsScorer:
    policy = ClipAudio(sample_rate=8000, duration_s=4.0, remove_dc=False)
    return AestheticsScorer(name="means-v1", prepare=partial(prepare_all, policy), model=Means())


def test_aesthetics_keeps_the_offset_of_the_wave():
    scorer = means_scorer()
    waves = sounds(3)
    found = independent(scorer, [record("none", k) for k in range(3)], waves)
    assert scorer.tasks == ("vta", "tta")
    assert KEYS == ("aes_pq", "aes_pc", "aes_ce", "aes_cu")
    assert tuple(axis.lower() for axis in aesthetics.AXES) == tuple(name.removeprefix("aes_") for name in KEYS)
    for entry in found:
        assert tuple(entry) == KEYS
        assert entry["aes_pq"] == pytest.approx(0.05, abs=5e-3)
        assert entry["aes_pc"] == pytest.approx(2 * entry["aes_pq"])
        assert (entry["aes_ce"], entry["aes_cu"]) == (4.0, 1.0)


def test_a_scorer_is_run_in_its_tasks_alone():
    records, waves = [record("none", k, events_s=(0.8,)) for k in range(2)], sounds(2)
    scorers = (OnsetScorer(), means_scorer(), ScriptScorer())
    events = {"hits", "misses", "false_alarms", "gh_accuracy", "gh_ap", "gh_f1"}
    assert [set(entry) for entry in clip_scores(scorers, records, waves, RATE, "vta")] == [events | set(KEYS)] * 2
    assert [set(entry) for entry in clip_scores(scorers, records, waves, RATE, "tta")] == [set(KEYS)] * 2
    assert clip_scores((), records, waves, RATE, "tta") == [{}, {}]
    with pytest.raises(ValueError, match="against must be one of picture, caption, got 'sound'"):
        CosineScorer(key="x", model=None, side=None, tasks=("vta",), against="sound")


# What is loaded


def test_what_is_missing_is_refused_in_one_line(tmp_path, files, small):
    there = tmp_path / "weights.pt"
    there.write_bytes(b"")
    for model, tokens in (("clap_laion", "roberta_tokens"), ("clap_ms", "gpt2_tokens")):
        with pytest.raises(ValueError, match=f"^{tokens} must be given with {model}: the folder of its vocab.json"):
            PublishedModels(**{model: there})
    for name in ("passt", "panns", "vggish", "synchformer", "imagebind", "roberta_tokens", "aesthetics"):
        with pytest.raises(ValueError, match=f"^{name}: .*absent.pt is not there$"):
            PublishedModels(**{name: tmp_path / "absent.pt"})
    lacking = PublishedModels(clap_ms=files["clap_ms"], gpt2_tokens=tmp_path)
    with pytest.raises(ValueError, match=r"lacks vocab\.json and merges\.txt"):
        load(tmp_path / "cache", lacking)
    for name, least in (("imagebind", "4"), ("synchformer", "4.8")):
        short = PublishedModels(**{name: files[name]})
        with pytest.raises(ValueError, match=f"{name} takes clips of at least {least} s, these are of 3.9 s"):
            short.load(duration_s=3.9, device="cpu", cache=tmp_path)


def test_nothing_is_imported_that_was_not_asked_for():
    """Networks and tokenisers are somebody's choice; a comparison without them starts without them."""
    code = """
import sys
from pathlib import Path
import eval.compare.comparison, scripts.compare, scripts.verify
from eval.features.published_models import PublishedModels
sources, scorers = PublishedModels().load(duration_s=1.0, device="cpu", cache=Path("none"))
assert sources == () and [type(one).__name__ for one in scorers] == ["OnsetScorer"]
base = {"base", "clip_audio"}
networks = {name.split(".")[2] for name in sys.modules if name.startswith("eval.extractors.")} - base
print(sorted(networks), {"transformers", "tokenizers"} & set(sys.modules), Path("none").exists())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] set() False"


class Named:
    """A model that does nothing."""

    def __init__(self, name: str) -> None:
        self.name, self.sample_rate, self.loaded = name, RATE, f"{name}.pt"

    def embed(self, waves: torch.Tensor) -> Embeddings:
        return Embeddings(rows=waves[:, :2], counts=(1,) * len(waves))


def test_every_file_goes_to_its_own_model(tmp_path, monkeypatch):
    given = {name: tmp_path / f"{name}.pt" for name in ("passt", "panns", "vggish", "aesthetics")}
    asked = []
    for kind, name in (
        (passt.Passt, "passt"),
        (panns.Panns, "panns"),
        (vggish_file.Vggish, "vggish"),
        (aesthetics.Aesthetics, "aesthetics"),
    ):
        given[name].write_bytes(b"")

        def opened(path: Path, *, device: str, name: str = name) -> Named:
            asked.append((name, path, device))
            return Named(name)

        monkeypatch.setattr(kind, "load", opened)
    sources, scorers = PublishedModels(**given, greatest_hits=True).load(
        duration_s=8.0, device="somewhere", cache=tmp_path
    )
    assert asked == [(name, path, "somewhere") for name, path in given.items()]
    assert [one.source for one in sources] == ["passt", "panns", "vggish"]
    assert [one.name for one in sources] == [f"{n}, mean-dc-soxrhq-8s@16000" for n in ("passt", "panns", "vggish")]
    assert [type(one) for one in scorers] == [OnsetScorer, AestheticsScorer, ScriptScorer]
    assert scorers[1].name == "aesthetics, mean-soxrhq-8s@16000"
    assert [
        one.source for one in PublishedModels(panns=given["panns"]).load(duration_s=1, device="", cache=tmp_path)[0]
    ] == ["panns"]


def test_a_source_prepares_each_clip_alone():
    source = ModelSource(source="x", model=Named("n"), duration_s=1.0)
    waves = sounds(3, 22_050)
    prepared = source.prepared(waves, 22_050)
    assert prepared.shape == (3, RATE)
    policy = ClipAudio(sample_rate=RATE, duration_s=1.0)
    for wave, made in zip(waves, prepared, strict=True):
        assert made.equal(policy.prepare(wave.double().numpy(), 22_050))
    assert source.embed(waves, 22_050).rows.equal(prepared[:, :2])
