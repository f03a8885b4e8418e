"""Joint sets: repeats, epochs, masks, and what may not be mixed."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from teacher.features.dataset import FeatureSet, JointSet, Masking, Modalities, batch_indices
from teacher.files.errors import FeatureError
from tests.teacher.features.test_store import MEAN, STD, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two folders of 7 rows: with picture are rows 0, 1 and 6, without caption row 5."""
    made = (tmp_path_factory.mktemp("av"), tmp_path_factory.mktemp("at"))
    for folder in made:
        write(folder)
    return made


def with_info(features: FeatureSet, **changes: object) -> FeatureSet:
    return replace(features, info=features.info | changes)


def test_an_epoch_holds_every_row_as_often_as_its_set_is_repeated(folders):
    first, second = (FeatureSet.open(folder, "train") for folder in folders)
    joint = JointSet([(first, 5), (second, 1)])
    assert len(joint) == len(joint.records) == 42
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(6):  # 6 batches of 7 rows are an epoch
        which, rows = joint.locate(batch_indices(len(joint), 7, seed=1, step=step))
        seen.update(zip(which.tolist(), rows.tolist(), strict=True))
    assert seen == {(k, row): (5, 1)[k] for k in range(2) for row in range(7)}


def test_a_batch_is_the_rows_of_its_sets_in_order(folders):
    first, second = (FeatureSet.open(folder, "train") for folder in folders)
    joint = JointSet([(first, 2), (second, 1)])
    order = [20, 0, 13, 14, 7]
    batch = joint.batch(order)
    expected = [second.batch([6]), first.batch([0]), first.batch([6]), second.batch([0]), first.batch([0])]
    assert torch.equal(batch.latents, torch.cat([part.latents for part in expected]))
    for name in ("clip", "sync", "text", "has_clip", "has_text"):
        parts = [getattr(part.conditions, name) for part in expected]
        assert torch.equal(getattr(batch.conditions, name), torch.cat(parts))
    assert batch.indices.tolist() == order
    assert [joint.records[i] for i in order] == [second.records[6], *(first.records[i] for i in (0, 6, 0, 0))]
    assert joint.records[-1] == second.records[6]
    assert joint.records[20:] == [second.records[6]]
    with pytest.raises(IndexError, match=r"within 0\.\.20"):
        joint.batch([21])


def test_one_set_once_is_the_set_itself(folders):
    features = FeatureSet.open(folders[0], "train")
    joint = JointSet([(features, 1)])
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    ours, own = joint.batch([3, 0], generator=generators[0]), features.batch([3, 0], generator=generators[1])
    assert torch.equal(ours.latents, own.latents)
    assert joint.duration_s == features.duration_s
    assert joint.sequence == features.sequence


def test_all_latents_are_normalised_by_the_first_set(folders):
    first = FeatureSet.open(folders[0], "train", statistics=(MEAN + 1, 3 * STD))
    second = FeatureSet.open(folders[1], "train")
    joint = JointSet([(first, 1), (second, 1)])
    assert torch.equal(joint.latent_mean, MEAN + 1)
    assert torch.equal(joint.batch([7]).latents, first.batch([0]).latents)  # the folders hold the same rows
    given = JointSet.open(folders, "train", repeat=(2, 1), statistics=(MEAN - 1, STD))
    torch.testing.assert_close(given.batch([14]).latents, second.batch([0]).latents + 1 / STD)
    assert [part["repeat"] for part in given.info["joint"]] == [2, 1]
    assert len(JointSet.open(folders, "train")) == 14
    with pytest.raises(FeatureError, match=r"one number per folder of features, got \(2,\) for 2"):
        JointSet.open(folders, "train", repeat=(2,))


@pytest.mark.parametrize(
    ("modalities", "text"),
    [
        # rows 0 and 6 have a picture, 2 and 3 do not; row 5 has neither picture nor caption
        ("AVT+AT", [True, True, True, True, False]),
        ("AV+AT", [False, False, True, True, False]),
        ("AVT+A", [True, True, False, False, False]),
    ],
)
def test_masks_hide_the_text_of_one_kind_of_rows(folders, modalities, text):
    features = FeatureSet.open(folders[0], "train")
    rows = [0, 6, 2, 3, 5]
    conditions = JointSet([(features, 1)], modalities=modalities).batch(rows).conditions
    assert conditions.has_text.tolist() == text
    assert conditions.has_clip.tolist() == [True, True, False, False, False]
    assert torch.equal(conditions.clip, features.batch(rows).conditions.clip)


@pytest.mark.parametrize(("modalities", "text"), [("AVT", True), ("AV", False)])
def test_rows_without_picture_can_be_left_out(folders, modalities, text):
    joint = JointSet.open(folders, "train", repeat=(3, 1), modalities=modalities)
    assert len(joint) == 3 * 3 + 3
    conditions = joint.batch(range(12)).conditions
    assert conditions.has_clip.all()
    assert conditions.has_text.tolist() == [text] * 12
    which, rows = joint.locate(torch.arange(12))
    assert rows.tolist() == [0, 1, 6] * 4
    assert which.tolist() == [0] * 9 + [1] * 3


def test_modalities_are_checked(folders):
    assert [Masking.parse(name).leave_out_sounds for name in get_args(Modalities)] == [False, False, False, True, True]
    for wrong in ("AT", "AVT+", "avt+at", "AV+A", ""):
        with pytest.raises(ValueError, match=r"modalities must be one of AVT\+AT, AV\+AT, AVT\+A, AVT, AV, got"):
            Masking.parse(wrong)
    features = FeatureSet.open(folders[0], "train")
    features.rows.has_video = torch.zeros(7, dtype=torch.bool)
    with pytest.raises(FeatureError, match="modalities AVT leave no row"):
        JointSet([(features, 1)], modalities="AVT")


def test_sets_that_do_not_fit_are_refused_by_name(folders):
    first, second = (FeatureSet.open(folder, "train") for folder in folders)
    for change, message in (
        ({"duration_s": 2.0}, "differ in duration_s"),
        ({"encoders": {"text": "y"}}, "differ in encoders"),
        ({"sequence": first.info["sequence"] | {"hop_length": 512}}, "differ in sequence"),
        ({"codec": first.info["codec"] | {"latent_space": "other"}}, "differ in codec"),
    ):
        with pytest.raises(FeatureError, match=message) as caught:
            JointSet([(first, 1), (with_info(second, **change), 1)])
        assert str(folders[0]) in str(caught.value)
        assert str(folders[1]) in str(caught.value)
    # Equal spaces with other statistics are one codec.
    JointSet([(first, 1), (with_info(second, codec=first.info["codec"] | {"digest": "other"}), 1)])
    with pytest.raises(FeatureError, match="repeat must be at least 1, got 0"):
        JointSet([(first, 0)])
    with pytest.raises(FeatureError, match="at least one set"):
        JointSet([])
