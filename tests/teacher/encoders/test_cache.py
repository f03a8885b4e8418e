"""Encoded pictures are kept by the content of the film: found again, not mistaken, made again where damaged."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teacher.encoders.cache import EncodedCache
from teacher.files import file_sha256
from teacher.media import write_video
from tests.saved_student import tiny_pipeline


def film(path, seed):
    pictures = np.random.default_rng(seed).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    write_video(path, pictures, 25.0, np.zeros(40 * 640, np.float32), 16_000)
    return path


def test_a_film_is_encoded_once_whatever_it_is_called(tmp_path, monkeypatch):
    pipeline = replace(tiny_pipeline(), cache=EncodedCache(folder=tmp_path / "cache"))
    video = film(tmp_path / "a.mp4", 0)
    first = pipeline(video=video, seeds=1)[0].wave
    assert len(list((tmp_path / "cache").iterdir())) == 2  # windows
    plain = replace(pipeline, cache=None)(video=video, seeds=1)[0].wave
    torch.testing.assert_close(first, plain, rtol=0, atol=0)
    renamed = video.rename(tmp_path / "b.mp4")
    monkeypatch.setattr("teacher.sampling.scene.read_window_frames", None)  # nothing is encoded any more
    torch.testing.assert_close(pipeline(video=renamed, seeds=1)[0].wave, first, rtol=0, atol=0)
    assert not torch.equal(pipeline(video=renamed, prompt="rain", seeds=1)[0].wave, first)


def test_another_film_of_the_same_name_is_encoded(tmp_path):
    pipeline = replace(tiny_pipeline(), cache=EncodedCache(folder=tmp_path / "cache"))
    video = film(tmp_path / "a.mp4", 0)
    first = pipeline(video=video)[0].wave
    film(video, 1)
    assert not torch.equal(pipeline(video=video)[0].wave, first)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_other_times_and_encoders_are_other_files(tmp_path):
    cache, video = EncodedCache(folder=tmp_path), film(tmp_path / "a.mp4", 0)
    names = {"image": "i", "sync": "s"}
    for start_s, duration_s, encoders in ((0.0, 1.0, names), (0.5, 1.0, names), (0.0, 0.9, names),
                                          (0.0, 1.0, names | {"image": "j"})):  # fmt: skip
        value = torch.rand(2, 3)
        made = cache.get(file_sha256(video), start_s, duration_s, encoders, lambda value=value: (value, value.clone()))
        assert torch.equal(made[0], value)
    again = cache.get(file_sha256(video), 0.0, 0.9, names, lambda: pytest.fail("was kept"))
    assert again[0].shape == (2, 3)


@pytest.mark.parametrize("damage", [lambda whole: whole[:20], lambda whole: whole[:-1] + b"\x01", lambda whole: b""])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    cache, video = EncodedCache(folder=tmp_path / "c"), film(tmp_path / "a.mp4", 0)
    names = {"image": "i", "sync": "s"}
    cache.get(file_sha256(video), 0.0, 1.0, names, lambda: (torch.ones(2), torch.ones(2)))
    kept = next((tmp_path / "c").iterdir())
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    made = cache.get(file_sha256(video), 0.0, 1.0, names, lambda: (torch.ones(2), torch.ones(2)))
    assert torch.equal(made[1], torch.ones(2))
    assert kept.read_bytes() == whole
    cache.get(file_sha256(video), 0.0, 1.0, names, lambda: pytest.fail("was kept"))


def test_a_file_of_an_older_version_is_read_and_the_umask_obeyed(tmp_path):
    cache, video = EncodedCache(folder=tmp_path / "c"), film(tmp_path / "a.mp4", 0)
    names = {"image": "i", "sync": "s"}
    before = os.umask(0o027)
    try:
        cache.get(file_sha256(video), 0.0, 1.0, names, lambda: (torch.ones(2), torch.ones(2)))
    finally:
        os.umask(before)
    kept = next((tmp_path / "c").iterdir())
    assert kept.stat().st_mode & 0o777 == 0o640
    save_file({"clip": torch.zeros(2), "sync": torch.zeros(2)}, kept)
    assert torch.equal(
        cache.get(file_sha256(video), 0.0, 1.0, names, lambda: pytest.fail("was kept"))[0], torch.zeros(2)
    )
