"""Cells computed again from what a comparison stored; every kind of change to a stored number or file is noticed."""

import json
import os
import re
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eval.compare.hygiene import TestFacts, write_facts
from eval.compare.rows import Row, changed_lines, check_lines, embeddings_path, ids_digest, read_rows
from eval.compare.scorer import Scorer
from eval.compare.sweep import Origin, record
from eval.compare.verify import ComparisonFiles, features_of_row
from eval.features.cache import write_row_features
from eval.features.clip_features import ClipFeatures
from eval.features.embedded import EmbeddedAudioFeatures, EmbeddedClassifier
from eval.features.sources import EmbeddedSource
from eval.metrics import pooled
from eval.metrics.embeddings import Embeddings
from eval.metrics.onsets import OnsetScorer
from eval.speed.budget import STAGES, TOTALS, with_totals
from scripts import report
from scripts.check import faults
from scripts.verify import cli
from teacher.features.store import Record
from teacher.files.lines import append_lines

RATE = 16_000
COUNT = 8
IDS = tuple(f"clip{k}" for k in range(COUNT))
ORIGIN = Origin(config_digest="abc", run_id="test", command="compare")
SETS = ("frechet", "kad", "inception_score", "inception_score_std", "inception_score_splits", "precision", "coverage")
CLIPS = ("kl", "onset_f1", "onset_clips")
ENDS = ("kl low", "kl high", "kl bias", "frechet low", "frechet high", "frechet bias", "kad bias", "onset_f1 high")


def waves(seed):
    """Decaying tones of half a second that start after 0.2 s, in noise."""
    g = torch.Generator().manual_seed(seed)
    age = (torch.arange(RATE // 2) / RATE - 0.2).clamp_min(0)
    tones = [torch.sin(2 * torch.pi * (300 + 250 * k) * age) * torch.exp(-20 * age) for k in range(COUNT)]
    return 0.4 * torch.stack(tones) + 0.02 * torch.randn(COUNT, RATE // 2, generator=g)


def clip(k):
    return Record(
        id=IDS[k], item_id=IDS[k], path="none", start_s=0.0, duration_s=0.5, caption="", label="",
        events_s=(0.2,) if k < COUNT - 1 else None, has_video=True, has_audio=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scorer():
    extractor = EmbeddedAudioFeatures(sample_rate=RATE)
    real = waves(0)
    classifier = EmbeddedClassifier.fit(extractor(real), ["low", "high"] * (COUNT // 2))
    return Scorer.build(
        reference=real,
        records=[clip(k) for k in range(COUNT)],
        sources=[EmbeddedSource(extractor=extractor, classifier=classifier, labels="labels")],
        clip_scorers=[OnsetScorer()],
        sample_rate=RATE,
    )


@pytest.fixture(scope="module")
def scored(scorer):
    """Features of the waves of teacher and student, and their scores."""
    made_features = {model: scorer.features(0, waves(seed), "vta") for model, seed in (("teacher", 1), ("student", 2))}
    return {model: (by_source, scorer.score(by_source)) for model, by_source in made_features.items()}


def written(path, scorer, scored, model, *, guidance=1.0, origin=ORIGIN):
    made, scores = scored[model]
    return record(
        made, scores, rows_path=path, task="vta", model=model, steps=1, nfe=2, guidance=guidance, origin=origin,
        reference=scorer.reference,
        rtf=with_totals({stage: 0.1 * (k + 1) for k, stage in enumerate(STAGES)}),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, scorer, scored):
    """Teacher and student of one seed each, scored and stored as a comparison does it."""
    for model in ("teacher", "student"):
        written(tmp_path / "rows.jsonl", scorer, scored, model)
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
    printed = capsys.readouterr().out
    assert "0 differ" in printed
    assert "not computed" not in printed
    for name in (*SETS, *CLIPS, *ENDS):
        assert f"student, 1 step, seed 0: {name} expected" in printed
    assert printed.count(": kl expected") == 4  # two rows, from the clips and from the features
    assert printed.count(": kl low expected") == 2  # an interval over clips is of the clips alone
    assert printed.count(": rtf ") == 2 * len(TOTALS)


def changed(row, name):
    """1e-4 more in the cell of that name."""
    metric, _, part = name.partition(" ")
    cells, key = (row["estimates"][metric], part) if part else (row["metrics"], metric)
    cells[key] += 1e-4


@pytest.mark.parametrize("name", [*SETS, *CLIPS, *ENDS])
def test_a_changed_cell_is_found(folder, monkeypatch, capsys, name):
    edit(folder, lambda row: changed(row, name))
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 1
    printed = capsys.readouterr().out
    assert f"vta student, 1 step, seed 0: {name} expected" in printed
    assert "difference -0.0001" in printed
    assert printed.count("DIFFERS") == (2 if name == "kl" else 1)
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--cell", "vta", "student", 1, 0, name) == 1
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--cell", "vta", "teacher", 1, 0, name) == 0


def test_rows_of_several_guidance_scales_are_told_apart(folder, scorer, scored, monkeypatch, capsys):
    path = folder / "rows.jsonl"
    written(path, scorer, scored, "student", guidance=1.4, origin=replace(ORIGIN, config_digest="other"))
    cell = ("--rows", path, "--cell", "vta", "student", 1, 0, "kl")
    assert command(monkeypatch, *cell) == 2
    error = capsys.readouterr().err
    assert "2 rows are vta student, 1 steps, seed 0; there are: vta student, 1 step, seed 0; vta student" in error
    edit(folder, lambda row: changed(row, "kl"))
    assert command(monkeypatch, *cell, "--guidance", 1.4) == 1
    assert command(monkeypatch, *cell, "--guidance", 1) == 0
    assert command(monkeypatch, *cell, "--guidance", 3) == 2


def test_a_changed_total_count_or_digest_is_found(folder, monkeypatch, capsys):
    path = folder / "rows.jsonl"
    edit(folder, lambda row: row["rtf"].update({"video-to-audio": 1.0}))
    assert command(monkeypatch, "--rows", path, "--all") == 1
    assert "rtf video-to-audio expected 1, found 2.1, difference 1.1" in capsys.readouterr().out  # 0.1 + ... + 0.6
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
    stored = embeddings_path(path, read_rows(path)[-1])
    tensors = load_file(stored)
    tensors["embedded.features"][3, 5] += 0.5
    with_facts(stored, tensors)
    assert command(monkeypatch, "--rows", path, "--all") == 1
    printed = capsys.readouterr().out
    assert "frechet expected" in printed
    assert "kad expected" in printed
    assert "kl expected" not in printed


def with_facts(path, tensors):
    """Write tensors under the metadata that are there, without the digest, as older versions did."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["json"])
    about.pop("sha256")
    save_file(tensors, path, metadata={"json": json.dumps(about)})


def test_a_flipped_bit_is_found_in_features_and_in_lines(folder, monkeypatch, capsys):
    path, clips = folder / "rows.jsonl", folder / "clips.jsonl"
    check_lines(folder)
    for line_file, digit in ((path, b'"run_id": "'), (clips, b'"kl": ')):
        whole = line_file.read_bytes()
        at = whole.rindex(digit) + len(digit)
        changed = bytearray(whole)
        changed[at] ^= 1  # another digit or letter: the line is as valid as before
        line_file.write_bytes(bytes(changed))
        number = whole[:at].count(b"\n") + 1
        with pytest.raises(ValueError, match=f"{line_file.name}, line {number} is not as it was written"):
            check_lines(folder)
        assert command(monkeypatch, "--rows", path, "--all") == 1
        assert f"{line_file.name}, line {number} is not as the comparison wrote it" in capsys.readouterr().out
        monkeypatch.setattr("sys.argv", ["mf-report", "--rows", str(path)])
        if line_file == path:
            report.cli()
            assert f"line {number} is not as the comparison wrote it" in capsys.readouterr().out
        line_file.write_bytes(whole)
    stored = embeddings_path(path, read_rows(path)[-1])
    whole = stored.read_bytes()
    for at in (-1, -1000, len(whole) // 2):
        changed = bytearray(whole)
        changed[at] ^= 4
        stored.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match=f"{stored.name} cannot be read"):
            ClipFeatures.read(stored)


def write_features(rows_path, row, generated, reference):
    write_row_features(embeddings_path(rows_path, row), generated, reference, config_digest=row.config_digest)


def test_a_reference_is_written_once_for_all_rows_and_again_where_it_is_damaged(folder, monkeypatch):
    written, write = [], ClipFeatures.write
    monkeypatch.setattr(
        ClipFeatures, "write", lambda self, path, *facts: (written.append(path.name), write(self, path, *facts))[1]
    )
    row = read_rows(folder / "rows.jsonl")[-1]
    stored = features_of_row(folder / "rows.jsonl", row)
    for _ in range(3):
        write_features(folder / "rows.jsonl", row, stored.generated, stored.reference)
    assert [name.startswith(".reference") for name in written] == [True, False, False, False]
    reference = next((folder / "embeddings").glob("reference-*"))
    whole = reference.read_bytes()
    reference.write_bytes(whole[:-1])
    write_features(folder / "rows.jsonl", row, stored.generated, stored.reference)
    assert reference.read_bytes() == whole


def test_a_changed_reference_is_refused(folder, monkeypatch, capsys):
    reference = next((folder / "embeddings").glob("reference-*"))  # one for both rows
    content = bytearray(reference.read_bytes())
    content[-1] ^= 1
    reference.write_bytes(bytes(content))
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 2
    assert re.search(r"is not the reference vta-teacher-1-0-\w+\.safetensors was scored", capsys.readouterr().err)
    reference.unlink()
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 2
    assert "is not there, against which vta-teacher-1-0-" in capsys.readouterr().err


def test_damaged_features_are_named(folder, monkeypatch, capsys):
    stored = embeddings_path(folder / "rows.jsonl", read_rows(folder / "rows.jsonl")[0])
    stored.write_bytes(stored.read_bytes()[:-1])
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 2
    error = capsys.readouterr().err
    assert f"{stored} cannot be read" in error
    assert error.count("\n") == 1


def test_cells_nothing_was_kept_for_are_counted_and_refused_by_name(folder, monkeypatch, capsys):
    for path in (folder / "embeddings").iterdir():
        path.unlink()
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--all") == 0
    printed = capsys.readouterr().out
    row = read_rows(folder / "rows.jsonl")[0]
    gone = {n for n in (*row.metrics, *row.estimates) if not n.startswith(("kl", "onset"))}
    cells = len(gone & set(row.metrics)) + 3 * len(gone & set(row.estimates))
    assert {"frechet", "kad", "inception_score"} <= gone & set(row.estimates)
    assert f"{2 * cells} cells were not computed" in printed
    assert "frechet, frechet bias, frechet high, frechet low, inception_score, " in printed
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", "--cell", "vta", "student", 1, 0, "kad") == 2
    assert "features were not stored" in capsys.readouterr().err


def test_features_of_another_configuration_are_not_used(folder):
    row = read_rows(folder / "rows.jsonl")[0]
    assert features_of_row(folder / "rows.jsonl", row) is not None
    other = replace(row, config_digest="other")
    assert features_of_row(folder / "rows.jsonl", other) is None
    # A copy under the other configuration's name still says whose it is.
    embeddings_path(folder / "rows.jsonl", row).rename(embeddings_path(folder / "rows.jsonl", other))
    assert features_of_row(folder / "rows.jsonl", other) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all", "--cell", "vta", "student", 1, 0, "kl"], "give exactly one of --cell"),
        ([], "give exactly one of --cell"),
        (["--cell", "vta", "student", 3, 0, "kl"], "no rows are vta student, 3 steps, seed 0; there are: "),
        (["--cell", "vta", "student", 1, 0, "fd_passt"], "the row has no fd_passt; it has num_clips, "),
        (["--cell", "vta", "student", 1, 0, "kl middle"], "the row has no kl middle"),
        (["--all", "--guidance", 2], "--guidance selects the row of a --cell"),
        (["--all", "--judges.greatest-hits"], "--judges.* need --data"),
    ],
)
def test_wrong_requests_are_one_line(folder, monkeypatch, capsys, arguments, message):
    assert command(monkeypatch, "--rows", folder / "rows.jsonl", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_rows_that_are_not_there_are_one_line(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "--rows", tmp_path / "rows.jsonl", "--all") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").touch()
    assert command(monkeypatch, "--rows", tmp_path / "rows.jsonl", "--all") == 2
    assert "holds no rows of results" in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("nfe", 9), ("params", 7)])
def test_evaluations_and_parameters_are_those_of_the_other_rows(tmp_path, field, value):
    rows = [
        Row(
            task="vta", model="student", steps=n, seed=seed, nfe=2 * n, guidance=1.4, metrics={}, num_clips=4,
            config_digest="a", run_id="r", command="c", params=100,
        )
        for n in (1, 4) for seed in (0, 1)
    ]  # fmt: skip
    append_lines(tmp_path / "rows.jsonl", [row.to_json() for row in [*rows[:-1], replace(rows[-1], **{field: value})]])
    stored = ComparisonFiles.read(tmp_path / "rows.jsonl")
    wrong = [(c.name, c.expected, c.found) for row in stored.rows for c in stored.check(row) if not c.agrees]
    assert wrong == [(field, float(value), 8.0 if field == "nfe" else 100.0)]


def made_features(ids, **by_source):
    """Features of each source, with logits where a pair is given; one row per clip."""
    pairs = {source: found if isinstance(found, tuple) else (found, None) for source, found in by_source.items()}
    return ClipFeatures.of(
        ids, {s: Embeddings(rows=rows, counts=(1,) * len(rows), logits=logits) for s, (rows, logits) in pairs.items()}
    )


def test_metrics_of_other_networks_have_recipes_of_their_own(folder):
    """The same tensors under another name give the same numbers under that metric's name."""
    path = folder / "rows.jsonl"
    row = read_rows(path)[0]
    g = torch.Generator().manual_seed(0)
    rows, logits = torch.randn(COUNT, 4, generator=g), torch.randn(COUNT, 3, generator=g)
    write_features(
        path,
        row,
        made_features(IDS, passt=(rows, logits), panns=(rows + 2.0, logits)),
        made_features(IDS, passt=(rows, logits), panns=(rows, logits), vggish=rows),
    )
    stored = features_of_row(path, row)
    found = stored.metrics(["fd_passt", "fd_panns", "fd_vggish", "kl_passt", "is_panns", "frechet", "onset_f1"])
    assert found["fd_passt"] == pytest.approx(0.0, abs=1e-6)
    assert found["fd_panns"] == pytest.approx(16.0, abs=1e-5)  # four dimensions, each moved by 2
    assert found["kl_passt"] == 0.0
    assert found["is_panns"] >= 1.0
    assert found.keys().isdisjoint({"fd_vggish", "kl_panns", "is_passt", "frechet", "onset_f1"})  # not asked, not there
    assert set(stored.estimates(["fd_panns"])) == {"fd_panns"}


def test_the_row_of_real_sound_has_its_own_inception_score(folder, scorer):
    path = folder / "rows.jsonl"
    row = replace(read_rows(path)[0], model="reference", kind="reference", steps=0)
    real = scorer.reference.embeddings("embedded")
    write_features(path, row, made_features(IDS, embedded=(real.rows + 1, 0 * real.logits)), scorer.reference)
    stored = features_of_row(path, row)
    found = stored.metrics(["inception_score", "frechet", "kl"])
    assert found["inception_score"] > 1.01  # that of constant logits would be 1
    assert found["frechet"] == pytest.approx(real.rows.shape[1], rel=1e-5)
    assert "kl" not in found  # a clip against itself


def test_means_and_pools_of_clips():
    clips = [
        {"kl": 1.0, "hits": 3.0, "misses": 1.0, "false_alarms": 0.0},
        {"kl": 2.0, "hits": 1.0, "misses": 1.0, "false_alarms": 2.0},
        {"kl": 6.0, "desync": 0.4},
    ]
    found = pooled(clips)
    assert found["kl"] == 3.0
    assert found["onset_f1"] == pytest.approx(2 * 4 / (2 * 4 + 2 + 2))  # of the pooled counts
    assert found["onset_clips"] == 2.0
    assert (found["desync"], found["desync_clips"]) == (0.4, 1.0)
    assert "kl_clips" not in found
    assert pooled([]) == {}
    assert pooled([*clips, {}])["kl"] == 3.0


def test_kept_rows_name_those_there_are(folder):
    stored = ComparisonFiles.read(folder / "rows.jsonl")
    assert stored.row("vta", "teacher", 1, 0).model == "teacher"
    with pytest.raises(ValueError, match="there are: vta teacher, 1 step, seed 0; vta student, 1 step, seed 0"):
        stored.row("tta", "teacher", 1, 0)


# ------------------------------------------------------------------ mf-check


def test_the_check_compares_all_that_a_comparison_keeps(folder):
    write_facts(folder, [TestFacts(task="vta", ids=IDS)])
    stored = embeddings_path(folder / "rows.jsonl", read_rows(folder / "rows.jsonl")[1])
    part = folder / "parts" / "vta-student-1-0-abc" / "000000-000008.safetensors"
    cached = folder / "cache" / "ab" / f"{'0' * 32}.safetensors"
    for path in (part, cached):
        ClipFeatures.read(stored)[0].write(path)
    assert faults(folder) == []
    reference = next((folder / "embeddings").glob("reference-*"))
    for path in (stored, part, cached, reference):
        whole = path.read_bytes()
        for damaged in (whole[:-2] + bytes([whole[-2] ^ 4]) + whole[-1:], whole[: len(whole) // 2]):
            path.write_bytes(damaged)
            (line,) = faults(folder)
            assert str(path) in line
        path.write_bytes(whole)
    for name in ("rows.jsonl", "clips.jsonl", "scored-vta.txt", "testset.json"):
        path = folder / name
        whole = path.read_text()
        path.write_text(whole.replace("clip3", "clip9", 1) if "clip3" in whole else whole.replace("0.", "1.", 1))
        assert any(name in line for line in faults(folder)), name
        path.write_text(whole)
    (folder / "scored-vta.txt").unlink()
    stored.unlink()
    lines = faults(folder)
    assert len(lines) == 2
    assert any(f"{stored} is missing" in line for line in lines)
    assert any("scored-vta.txt is missing" in line for line in lines)


def test_pipes_in_a_comparison_are_named(folder):
    for name in ("clips.jsonl", "embeddings/x.safetensors"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    lines = faults(folder)
    assert len(lines) == 2
    assert all("is no regular file" in line for line in lines)


@pytest.mark.parametrize("line", ["[1]", "3", '"text"', "null", '{"check": 1}', "{"])
def test_lines_that_hold_no_row_are_named_by_their_number(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f"{{}}\n{line}\n")
    assert changed_lines(tmp_path / "rows.jsonl") == [2]
