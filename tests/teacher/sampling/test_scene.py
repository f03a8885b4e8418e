"""A scene: what is read of its film, and when; and what its sound states of itself."""

from dataclasses import replace

import numpy as np

from teacher.encoders.cache import EncodedCache
from teacher.media import write_video
from teacher.sampling import scene as scene_module
from teacher.sampling.pipeline import Pipeline
from tests.saved_student import save_student, tiny_pipeline


def test_a_film_of_several_windows_and_seeds_is_probed_and_hashed_once(tmp_path, monkeypatch):
    video, calls = tmp_path / "a.mp4", []
    pictures = np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
    write_video(video, pictures, 25.0, np.zeros(60 * 640, np.float32), 16_000)
    for name in ("probe", "file_sha256"):
        work = getattr(scene_module, name)
        monkeypatch.setattr(scene_module, name, lambda path, work=work, name=name: (calls.append(name), work(path))[1])
    pipeline = replace(tiny_pipeline(), cache=EncodedCache(folder=tmp_path / "cache"))
    sounds = pipeline(video=video, seeds=(0, 1))
    assert len(sounds[0].scene) == 3
    for sound in sounds:
        sound.save(tmp_path / f"{sound.seed}.wav")
    assert sorted(calls) == ["file_sha256", "probe"]


def test_provenance_is_built_once_for_a_sound(tmp_path):
    sound = Pipeline.load(save_student(tmp_path / "student"))(prompt="a bell")[0]
    assert sound.provenance is not None
    assert sound.provenance is sound.provenance
    assert replace(sound, seed=sound.seed + 1).provenance.steps == 1
