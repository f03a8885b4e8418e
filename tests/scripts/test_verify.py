"""Cells computed again from what a comparison kept; every kind of change to a kept number or file is noticed."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.extractors.embedded import EmbeddedAudioFeatures
from eval.extractors.embedded_classifier import EmbeddedClassifier
from eval.kept_embeddings import RECIPES, Embeddings, embeddings_path, keep_embeddings
from eval.rows import append_lines, ids_digest, read_rows
from eval.scorer import Scorer
from eval.speed import STAGES, with_totals
from eval.sweep import Origin, record
from eval.verify import Kept, from_clips
from scripts.verify import cli

RATE = 16_000
COUNT = 8
IDS = tuple(f"clip{k}" for k in range(COUNT))
ORIGIN = Origin(config_digest="abc", run_id="test", command="compare")


def waves(seed):
    """Decaying tones of half a second that start after 0.2 s, in noise."""
    g = torch.Generator().manual_seed(seed)
    age = (torch.arange(RATE // 2) / RATE - 0.2).clamp_min(0)
    tones = [torch.sin(2 * torch.pi * (300 + 250 * k) * age) * torch.exp(-20 * age) for k in range(COUNT)]
    return 0.4 * torch.stack(tones) + 0.02 * torch.randn(COUNT, RATE // 2, generator=g)


@pytest.fixture(scope="module")
def scorer():
    extractor = EmbeddedAudioFeatures(sample_rate=RATE)
    real = waves(0)
    return Scorer.build(
        reference=real,
        ids=IDS,
        events=[(0.2,)] * (COUNT - 1) + [None],
        extractor=extractor,
        classifier=EmbeddedClassifier.fit(extractor(real), ["low", "high"] * (COUNT // 2)),
        inception_splits=2,
    )


@pytest.fixture
def folder(tmp_path, scorer):
    """Teacher and student of one seed each, scored and kept as a comparison does it."""
    path = tmp_path / "rows.jsonl"
    reference = {"embedded.features": scorer.features, "embedded.logits": scorer.classifier.logits(scorer.features)}
    for model, seed in (("teacher", 1), ("student", 2)):
        made = waves(seed)
        row = record(
            scorer.score(made, timing=True), rows_path=path, ids=IDS, task="vta", model=model, steps=1, nfe=2,
            rtf=with_totals({stage: 0.1 * (k + 1) for k, stage in enumerate(STAGES)}), origin=ORIGIN,
        )  # fmt: skip
        features = scorer.extractor(made)
        generated = {"embedded.features": features, "embedded.logits": scorer.classifier.logits(features)}
        keep_embeddings(path, row, generated, reference, splits=2)
    return tmp_path


def command(monkeypatch, *arguments):
    """Exit status of mf-verify."""
    monkeypatch.setattr(sys, "argv", ["mf-verify", *map(str, arguments)])
    try:
        cli()
    except SystemExit as left:
        return left.code
    return 0


def edit(folder, change):
    """Rewrite the last row (the student's)."""
    lines = (folder / "rows.jsonl").read_text().splitlines()
    row = json.loads(lines[-1])
    change(row)
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in [*lines[:-1], json.dumps(row)]))


def test_every_cell_is_computed_again_and_agrees(folder, monkeypatch, capsys):
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all", "--verbose") == 0
    told = capsys.readouterr().out
    assert "0 differ" in told
    assert "not computed" not in told
    for name in ("frechet", "frechet_bias", "kad", "kl", "inception_score", "inception_score_std", "onset_f1"):
        assert f"student, 1 steps, seed 0: {name} expected" in told
    assert told.count(": kl expected") == 4  # two rows, from the clips and from the features
    assert told.count(": rtf ") == 6


@pytest.mark.parametrize(
    "name",
    ["frechet", "frechet_bias", "kad", "kl", "inception_score", "inception_score_std", "onset_f1", "onset_clips"],
)
def test_a_changed_cell_is_found(folder, monkeypatch, capsys, name):
    edit(folder, lambda row: row["metrics"].update({name: row["metrics"][name] + 1e-4}))
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 1
    told = capsys.readouterr().out
    assert f"vta student, 1 steps, seed 0: {name} expected" in told
    assert "difference -0.0001" in told
    assert "DIFFERS" in told
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--cell", "vta", "student", 1, 0, name) == 1
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--cell", "vta", "teacher", 1, 0, name) == 0


def test_a_changed_total_count_or_digest_is_found(folder, monkeypatch, capsys):
    path = folder / "rows.jsonl"
    edit(folder, lambda row: row["rtf"].update({"video-to-audio": 1.0}))
    assert command(monkeypatch, "--rows", path, "--all") == 1
    assert "rtf video-to-audio expected 1, found 2.1, difference 1.1" in capsys.readouterr().out
    edit(folder, lambda row: row["rtf"].update({"video-to-audio": 2.1}))
    edit(folder, lambda row: row.update(clips_digest=ids_digest(IDS)))
    assert command(monkeypatch, "--rows", path, "--all") == 0
    edit(folder, lambda row: row.update(clips_digest=ids_digest(IDS[1:])))
    assert command(monkeypatch, "--rows", path, "--all") == 1
    assert "clips_digest expected" in capsys.readouterr().out


def test_a_changed_score_of_a_clip_or_feature_is_found(folder, monkeypatch, capsys):
    path, clips = folder / "rows.jsonl", folder / "clips.jsonl"
    whole = clips.read_text()
    last = json.loads(whole.splitlines()[-1])
    append_lines(clips, [json.dumps(last | {"kl": last["kl"] + 0.01})])
    assert command(monkeypatch, "--rows", path, "--all") == 1
    assert "kl expected" in capsys.readouterr().out
    clips.write_text(whole)
    kept = embeddings_path(path, read_rows(path)[-1])
    tensors = load_file(kept)
    tensors["embedded.features"][3, 5] += 0.5
    with_facts(kept, tensors)
    assert command(monkeypatch, "--rows", path, "--all") == 1
    told = capsys.readouterr().out
    assert "frechet expected" in told
    assert "kad expected" in told
    assert "kl expected" not in told


def with_facts(path, tensors):
    """Write tensors under the metadata that are there."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    save_file(tensors, path, metadata=facts)


def test_a_changed_reference_is_refused(folder, monkeypatch, capsys):
    reference = next((folder / "embeddings").glob("reference-*"))  # one for both rows
    content = bytearray(reference.read_bytes())
    content[-1] ^= 1
    reference.write_bytes(bytes(content))
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 2
    assert "is not the reference vta-teacher-1-0.safetensors was scored against" in capsys.readouterr().err


def test_cells_nothing_was_kept_for_are_counted_and_refused_by_name(folder, monkeypatch, capsys):
    for path in (folder / "embeddings").iterdir():
        path.unlink()
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 0
    told = capsys.readouterr().out
    assert "10 cells were not computed" in told  # five metrics of sets, in two rows
    assert "frechet, frechet_bias, inception_score, inception_score_std, kad" in told
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--cell", "vta", "student", 1, 0, "kad") == 2
    assert "features were not kept" in capsys.readouterr().err


def test_features_of_another_configuration_are_not_used(folder):
    row = read_rows(folder / "rows.jsonl")[0]
    assert Embeddings.open(folder / "rows.jsonl", row) is not None
    assert Embeddings.open(folder / "rows.jsonl", replace(row, config_digest="other")) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all", "--cell", "vta", "student", 1, 0, "kl"], "give either --cell"),
        ([], "give either --cell"),
        (["--cell", "vta", "student", 3, 0, "kl"], "no row vta student 3 0"),
        (["--cell", "vta", "student", 1, 0, "fd_passt"], "the row has no fd_passt; it has num_clips, "),
    ],
)
def test_wrong_requests_are_one_line(folder, monkeypatch, capsys, arguments, message):
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_rows_that_are_not_there_are_one_line(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "--rows", tmp_path / "rows.jsonl", "--all") == 2
    assert "holds no rows of results" in capsys.readouterr().err


def test_metrics_of_other_networks_have_recipes_of_their_own(folder, scorer):
    """The same tensors under another name give the same numbers under that metric's name."""
    path = folder / "rows.jsonl"
    row = read_rows(path)[0]
    other = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
    logits = scorer.classifier.logits(scorer.features)
    sets = {f"{name}.{kind}": value for name in ("passt", "panns", "vggish")
            for kind, value in (("features", scorer.features), ("logits", logits))}  # fmt: skip
    keep_embeddings(path, row, sets | {"panns.features": other}, sets | {"panns.features": other + 2.0}, splits=1)
    kept = Embeddings.open(path, row)
    assert kept.metric("fd_passt") == pytest.approx(0.0, abs=1e-8)
    assert kept.metric("fd_panns") == pytest.approx(16.0, abs=1e-6)  # four dimensions, each moved by 2
    assert kept.metric("kl_passt") == 0.0
    assert kept.metric("is_panns") >= 1.0
    assert kept.metric("frechet") is None  # embedded features are not there
    assert kept.metric("onset_f1") is None
    assert set(RECIPES) >= {"frechet", "kad", "kl", "inception_score"}


def test_the_row_of_real_sound_has_its_own_inception_score(folder, scorer):
    path = folder / "rows.jsonl"
    row = replace(read_rows(path)[0], model="reference", steps=0)
    logits = scorer.classifier.logits(scorer.features)
    tensors = {"embedded.features": scorer.features, "embedded.logits": logits}
    keep_embeddings(
        path, row, {"embedded.features": scorer.features + 1, "embedded.logits": 0 * logits}, tensors, splits=1
    )
    kept = Embeddings.open(path, row)
    assert kept.metric("inception_score") > 1.01  # that of constant logits would be 1
    assert kept.metric("frechet") == pytest.approx(scorer.features.shape[1], rel=1e-6)


def test_means_and_pools_of_clips():
    clips = {"a": {"kl": 1.0, "hits": 3, "misses": 1, "false_alarms": 0}, "b": {"kl": 2.0, "hits": 1, "misses": 1,
             "false_alarms": 2}, "c": {"kl": 6.0}}  # fmt: skip
    assert from_clips("kl", clips) == 3.0
    assert from_clips("onset_f1", clips) == pytest.approx(2 * 4 / (2 * 4 + 2 + 2))  # of the pooled counts
    assert from_clips("onset_clips", clips) == 2.0
    assert from_clips("frechet", clips) is None
    assert from_clips("kl", {}) is None
    assert from_clips("kl", clips | {"d": {}}) is None


def test_kept_rows_name_those_there_are(folder):
    kept = Kept.read(folder / "rows.jsonl")
    assert kept.row("vta", "teacher", 1, 0).model == "teacher"
    with pytest.raises(ValueError, match="there are: vta teacher 1 0, vta student 1 0"):
        kept.row("tta", "teacher", 1, 0)
