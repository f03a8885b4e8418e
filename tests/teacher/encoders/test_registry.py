"""Encoders by name: what is loaded, what is missing, and that reading and encoding can happen apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teacher.encoders.clip import FILE as CLIP_FILE
from teacher.encoders.registry import (
    ENCODERS,
    encoder_set,
    load_encoders,
    read_window_frames,
)
from teacher.encoders.synchformer import FILE as SYNCHFORMER_FILE
from teacher.encoders.synchformer import SynchformerVisual, VisualConfig
from teacher.files import tensors_digest
from teacher.files.errors import WeightsError
from teacher.media import MediaError, probe, write_video
from teacher.network.sequence import MMAUDIO_WIDTHS, image_frames, sync_frames
from tests.teacher.tiny_weights import encode_clip, write_tiny_encoders


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory) -> Path:
    return write_tiny_encoders(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """0.9 s of noise at 25 fps, 96 x 64."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    write_video(
        path,
        np.random.default_rng(0).integers(0, 256, (23, 64, 96, 3), dtype=np.uint8),
        fps=25,
        wave=np.zeros(14_400, np.float32),
        sample_rate=16_000,
    )
    return path


def test_requests_are_known_without_weights():
    image, sync = encoder_set("mmaudio").requests
    assert (image.fps, image.height, image.width, image.fit) == (8, 384, 384, "stretch")
    assert (sync.fps, sync.height, sync.width, sync.fit) == (25, 224, 224, "crop")
    assert encoder_set("embedded").requests == load_encoders("embedded").requests
    with pytest.raises(ValueError, match=f"encoders must be one of {', '.join(ENCODERS)}, got 'clip'"):
        encoder_set("clip")


@pytest.mark.parametrize("name", ENCODERS)
def test_lengths_widths_and_names(name, weights_dir, video):
    encoders = load_encoders(name, weights_dir=weights_dir)
    assert encoders.requests == encoder_set(name).requests
    widths = encoders.widths
    if name in ("embedded", "mmaudio"):
        assert widths == MMAUDIO_WIDTHS
    image, sync = encode_clip(encoders, video, start_s=0.0, duration_s=0.8)
    assert image.shape == (image_frames(0.8), widths.image)
    assert sync.shape == (sync_frames(0.8), widths.sync)
    text = encoders.text(["rain", "a dog"])
    assert text.shape == (2, widths.text_tokens, widths.text)
    for made in (image, sync, text):
        assert made.dtype == torch.float32
        assert made.device.type == "cpu"
        assert torch.isfinite(made).all()
    shared = encoders.text.shared_positions
    assert torch.equal(text[0, :shared], text[1, :shared])
    assert (text[0, shared] - text[1, shared]).abs().max() > 1e-3
    assert len(set(encoders.names.values())) == 3
    assert load_encoders(name, weights_dir=weights_dir) is encoders  # loaded once


def test_reading_and_encoding_apart_gives_the_same(weights_dir, video):
    encoders = load_encoders("mmaudio", weights_dir=weights_dir)
    image, sync = read_window_frames(encoder_set("mmaudio").requests, probe(video), 0.1, 0.8)
    assert image.shape == (6, 3, 384, 384)
    assert sync.shape == (20, 3, 224, 224)
    assert image.dtype == sync.dtype == np.uint8
    together = encode_clip(encoders, video, start_s=0.1, duration_s=0.8)
    torch.testing.assert_close((encoders.image(image), encoders.sync(sync)), together)


def test_last_frame_is_held_and_short_windows_are_refused(video):
    requests = encoder_set("embedded").requests
    info = probe(video)
    shown = read_window_frames(requests, info, 0.0, 1.0)[1]
    assert len(shown) == 25
    assert np.array_equal(shown[23], shown[22])
    assert np.array_equal(shown[24], shown[22])
    assert not np.array_equal(shown[22], shown[21])
    with pytest.raises(MediaError, match=r"too short: 0.82 s of video, need 1 s"):
        read_window_frames(requests, info, 0.1, 1.0)


def test_light_encoders_run_where_files_are_read(weights_dir):
    assert load_encoders("embedded").in_worker
    assert not load_encoders("mmaudio", weights_dir=weights_dir).in_worker


def test_names_follow_the_weights(weights_dir, tmp_path):
    first = load_encoders("mmaudio", weights_dir=weights_dir).names
    other = load_encoders("mmaudio", weights_dir=write_tiny_encoders(tmp_path, seed=1)).names
    assert all(first[kind] != other[kind] for kind in ("image", "sync", "text"))
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(())}
    assert tensors_digest(tensors) == tensors_digest(dict(reversed(tensors.items())))
    assert tensors_digest(tensors) != tensors_digest(tensors | {"a": tensors["a"].view(3, 2)})
    assert tensors_digest(tensors) != tensors_digest(tensors | {"b": torch.tensor(1e-30)})


def test_missing_files_are_named_with_the_commands_that_make_them(tmp_path):
    with pytest.raises(WeightsError, match="'mmaudio' need a weights folder; give one with --weights-dir"):
        load_encoders("mmaudio")
    with pytest.raises(WeightsError, match=f"lacks {CLIP_FILE} and {SYNCHFORMER_FILE}; .*mf-fetch.*mf-convert"):
        load_encoders("mmaudio", weights_dir=tmp_path)


def test_words_alone_need_no_synchformer(weights_dir, tmp_path):
    (tmp_path / CLIP_FILE).symlink_to(weights_dir / CLIP_FILE)
    encoders = load_encoders("mmaudio", weights_dir=tmp_path)
    assert encoders.text(["rain"]).shape == (1, 77, 1024)
    frames = np.zeros((16, 3, 224, 224), np.uint8)
    with pytest.raises(WeightsError, match=f"lacks {SYNCHFORMER_FILE}; .*mf-fetch.*mf-convert"):
        encoders.sync(frames)


def test_features_of_another_width_are_refused(weights_dir, tmp_path):
    (tmp_path / CLIP_FILE).symlink_to(weights_dir / CLIP_FILE)
    narrow = SynchformerVisual(VisualConfig(width=64, depth=1, heads=1, hidden=8))
    save_file(narrow.state_dict(), tmp_path / SYNCHFORMER_FILE)
    with pytest.raises(WeightsError, match="synchronisation features of width 64, the networks take 768"):
        assert load_encoders("mmaudio", weights_dir=tmp_path).names
