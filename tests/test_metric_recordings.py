"""Recorded cosine scores, DeSync and a whole paired evaluation, reproduced through the metrics of the package."""

import json
from pathlib import Path

import pytest

from tests.golden.__main__ import KINDS
from tests.golden.recipe import Recording

FOLDER = Path(__file__).parent / "golden" / "recordings"


@pytest.mark.parametrize(("name", "quantities"), [("H4_cosine_scores", 4), ("H5_desync", 3), ("H6_evaluate", 13)])
def test_recorded_metrics(name, quantities):
    recording = Recording.read(FOLDER, name)
    deviations = list(KINDS[recording.document["kind"]](recording))
    assert len(deviations) == quantities
    assert {d.name for d in deviations if not d.value <= d.tolerance} == set()


def test_the_wrong_way_round_is_told_apart():
    # Guards the tolerances: swapping the pictures of two clips changes what is recorded.
    recording = Recording.read(FOLDER, "H6_evaluate")
    video = recording.tensors["in.gt.imagebind_video"]
    moved = Recording(recording.document, {**recording.tensors, "in.gt.imagebind_video": video.roll(1, dims=0)})
    assert [d.name for d in KINDS["metric_evaluate"](moved) if not d.value <= d.tolerance] == ["IB-Score"]


def test_stored_copies_are_complete():
    for name in ("H4_cosine_scores", "H5_desync", "H6_evaluate"):
        document = json.loads((FOLDER / f"{name}.json").read_text())
        stored = Recording.read(FOLDER, name).tensors
        assert {f"in.{key}" for key in document["inputs"]} | {f"out.{key}" for key in document["outputs"]} == set(
            stored
        )
