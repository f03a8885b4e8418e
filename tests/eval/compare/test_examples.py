"""Examples of a comparison: the pictures beside their players."""

import numpy as np
import pytest
from PIL import Image

from eval.compare.examples import PICTURE_HEIGHT, PICTURE_WIDTH, spectrogram_png


def test_spectrogram_shows_a_tone_at_its_height(tmp_path):
    t = np.arange(16_000) / 16_000
    spectrogram_png(np.sin(2 * np.pi * 1000 * t).astype(np.float32), 16_000, tmp_path / "tone.png")
    pixels = np.asarray(Image.open(tmp_path / "tone.png"), dtype=float).sum(axis=2)
    assert pixels.shape == (PICTURE_HEIGHT, PICTURE_WIDTH)
    # Log frequency from 60 Hz at the bottom to 8 kHz at the top: 1 kHz lies at ln(1000/60) / ln(8000/60) = 57.5 %.
    height = 1 - np.argmax(pixels[:, PICTURE_WIDTH // 2]) / PICTURE_HEIGHT
    assert height == pytest.approx(0.575, abs=0.03)
