"""A pipeline written to a folder and read again makes the same sound, says what it is and names no place on a disk."""

import json
import os
from dataclasses import replace

import pytest
import torch

from teacher.files import check_digests, read_digests
from teacher.files.errors import WeightsError
from teacher.sampling import model_card as pretrained
from teacher.sampling.model_card import ModelCard, folder_of
from teacher.sampling.pipeline import Pipeline
from tests.saved_student import tiny_pipeline

CARD = ModelCard(name="me/bells", description="Bells.", data="my bells, CC0", metrics={"FD": 1.5}, measured="ten clips")


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(licence="CC BY-NC 4.0")


def test_what_was_saved_sounds_the_same(pipeline, tmp_path):
    folder = pipeline.save_pretrained(tmp_path / "bells", CARD)
    again = Pipeline.from_pretrained(str(folder))
    assert (again.licence, again.window_s, again.source) == ("CC BY-NC 4.0", 1.0, folder)
    torch.testing.assert_close(
        again(prompt="a bell", seeds=3)[0].wave, pipeline(prompt="a bell", seeds=3)[0].wave, rtol=0, atol=0
    )
    twice = again.save_pretrained(tmp_path / "twice", CARD)
    assert (twice / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((twice / "config.json").read_text())["digest"] == again.identity.digest[:12]


def test_weights_loaded_from_a_file_keep_its_digest(pipeline, tmp_path):
    folder = pipeline.save_pretrained(tmp_path / "bells", CARD)
    (folder / "model.safetensors").rename(folder / "ema-0.05.safetensors")
    loaded = Pipeline.from_pretrained(folder)
    given = Pipeline.from_pretrained(loaded.save_pretrained(tmp_path / "given", CARD))
    assert given.identity.digest == loaded.identity.digest
    assert (loaded.identity.weights, given.identity.weights) == ("ema-0.05", "model")


def test_the_card_names_licence_teacher_data_recipe_and_metrics(pipeline, tmp_path):
    folder = pipeline.save_pretrained(tmp_path / "bells", CARD)
    run = replace(pipeline, source=folder)
    config = json.loads((folder / "config.json").read_text())
    config["run"] = {"teacher": "/home/me/runs/my-teacher", "method": {"type": "Distillation"}, "data": ["/home/me/x"]}
    (folder / "config.json").write_text(json.dumps(config))
    made = run.save_pretrained(tmp_path / "given", CARD)
    text = (made / "README.md").read_text()
    assert text.startswith("---\nlicense: cc-by-nc-4.0\n")
    for expected in ("# me/bells", "my bells, CC0", "my-teacher", '"Distillation"', "| FD | 1.5 |", "ten clips"):
        assert expected in text
    everything = "".join(path.read_text(errors="replace") for path in made.iterdir())
    assert "/home/me" not in everything
    assert str(tmp_path) not in everything


def test_nothing_is_overwritten_and_nothing_half_made_stays(pipeline, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists already"):
        pipeline.save_pretrained(tmp_path / "full", CARD)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    monkeypatch.setattr("teacher.sampling.model_card.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.save_pretrained(tmp_path / "new", CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_what_is_no_folder_and_no_name_is_refused_in_one_line(tmp_path, pipeline, monkeypatch):
    for wrong in (tmp_path / "absent" / "er" / "folder", "a b/c", "nothing"):
        with pytest.raises(WeightsError, match="neither a folder nor the name"):
            folder_of(wrong)
    with pytest.raises(WeightsError, match="no published parts"):
        pipeline.save_pretrained(tmp_path / "parts", CARD, parts=True)
    with pytest.raises(ValueError, match="measured must describe"):
        ModelCard(name="x", metrics={"FD": 1.0})


def test_a_hub_name_is_fetched_as_data_only(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def snapshot(name, *, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        if name == "me/gone":
            raise OSError("404\nnot found")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert folder_of("me/bells") == tmp_path
    assert asked["name"] == "me/bells"
    assert all(pattern.endswith((".json", ".safetensors", ".md")) for pattern in asked["patterns"])
    with pytest.raises(WeightsError, match="cannot be fetched: 404 not found"):
        folder_of("me/gone")


def test_every_file_can_be_read_by_whom_the_umask_lets_and_is_recorded(pipeline, tmp_path):
    before = os.umask(0o022)
    try:
        folder = pipeline.save_pretrained(tmp_path / "bells", CARD)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o644}
    assert set(read_digests(folder)) == {p.name for p in folder.iterdir()} - {"digests.json"}


def test_two_who_save_into_one_folder_do_not_spoil_each_other(pipeline, tmp_path, monkeypatch):
    real, folder = pretrained.model_card, tmp_path / "bells"

    def meanwhile(*arguments):
        monkeypatch.setattr(pretrained, "model_card", real)
        pipeline.save_pretrained(folder, CARD)
        return real(*arguments)

    monkeypatch.setattr(pretrained, "model_card", meanwhile)
    with pytest.raises(ValueError, match="exists already"):
        pipeline.save_pretrained(folder, CARD)
    assert check_digests(folder) == []
    assert [p.name for p in tmp_path.iterdir()] == ["bells"]
    Pipeline.from_pretrained(folder)


def test_the_codec_of_another_model_is_refused(pipeline, tmp_path):
    folder = pipeline.save_pretrained(tmp_path / "bells", CARD)
    codec, zeros = pipeline.codec, torch.zeros(pipeline.codec.latent_channels)
    features = json.loads((folder / "features.json").read_text())
    assert features["codec"] == {"digest": codec.digest}
    (folder / "digests.json").unlink()
    other = codec.with_statistics(zeros + 3, zeros + 2)
    other.save(folder / "codec.safetensors")
    with pytest.raises(WeightsError, match=r"is not the codec that features\.json states .* another model; restore"):
        Pipeline.from_pretrained(folder)
    plain = other.with_statistics(zeros, zeros + 1)  # a network with statistics of its own, trained on such latents
    features["codec"] = {"digest": "0" * 64, "latent_space": plain.digest}
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(WeightsError, match="is not the codec"):  # these are not the network's
        Pipeline.from_pretrained(folder)
    codec.with_statistics(pipeline.net.latent_mean.flatten(), pipeline.net.latent_std.flatten()).save(
        folder / "codec.safetensors"
    )
    Pipeline.from_pretrained(folder)
    other.save(folder / "codec.safetensors")
    for stated in (None, {}, "embedded", {"digest": 3}):
        (folder / "features.json").write_text(json.dumps(features | {"codec": stated}))
        Pipeline.from_pretrained(folder)
