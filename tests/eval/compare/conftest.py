"""Features of a few sounds, which the tests of test sets and of their overlap with training data share."""

import pytest

from teacher.features.config import ExtractConfig
from teacher.features.extract import extract
from teacher.lists.manifest import Item
from teacher.media import write_audio
from tests.eval.compare.sounds import RATE, TEST, sound


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Features of eight training and five test sounds of one second; media beside them."""
    folder = tmp_path_factory.mktemp("made")
    items = []
    for k, name in enumerate([*(f"train{k}" for k in range(8)), *TEST]):
        path = folder / f"{name}.wav"
        write_audio(path, sound(k), RATE)
        items.append(Item(id=name, path=path, caption=name, split="test" if name in TEST else "train"))
    extract(items, folder / "features", ExtractConfig(duration_s=1.0, shard_size=4, workers=0))
    return folder
