"""The metrics of sets by key: each is computed from the right features, and its replicates delete whole clips."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from eval.features.clip_features import ClipFeatures, set_estimates, set_values
from eval.metrics import METRICS, set_metrics
from eval.metrics.embeddings import Embeddings
from eval.metrics.inception import IS_PANNS, inception_score, splits_for
from eval.metrics.kernel import kernel_distance, reference_bandwidth
from eval.metrics.manifold import manifold_scores
from eval.metrics.moments.distance import frechet_distance
from eval.metrics.uncertainty import group_labels, groups_for

CLIPS, WIDTH, CLASSES = 24, 3, 5


def features(seed, *, sources=("embedded", "passt"), rows_per_clip=1, clips=CLIPS):
    generator = torch.Generator().manual_seed(seed)

    def embeddings(source):
        rows = torch.randn(clips * rows_per_clip, WIDTH, generator=generator) + 0.1 * seed
        logits = None if source == "vggish" else torch.randn(clips, CLASSES, generator=generator)
        return Embeddings(rows=rows, counts=(rows_per_clip,) * clips, logits=logits)

    return ClipFeatures.of([f"c{k}" for k in range(clips)], {source: embeddings(source) for source in sources})


def by_name(reference, generated, *, costly=False):
    metrics = [metric for metric in set_metrics() if costly or not metric.costly]
    return set_values(metrics, reference, generated), set_estimates(metrics, reference, generated)


def test_every_key_is_one_metric():
    assert len({metric.key for metric in METRICS}) == len(METRICS)


def test_the_declarations_import_neither_torch_nor_pyav():
    code = "import sys, eval.metrics; print({'torch', 'av', 'scipy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("source", "frechet", "kad", "score"), [
    ("embedded", "frechet", "kad", "inception_score"),
    ("passt", "fd_passt", "kad_passt", "is_passt"),
])  # fmt: skip
def test_values_are_those_of_the_metric_on_the_features_of_the_source(source, frechet, kad, score):
    reference, generated = features(0), features(1)
    values, _ = by_name(reference, generated)
    x, y = (side.tensors[f"{source}.features"].double().numpy() for side in (reference, generated))
    assert values[frechet] == frechet_distance(x, y)
    assert values[kad] == kernel_distance(x, y, bandwidth=reference_bandwidth(x))
    assert values[score] == inception_score(generated.tensors[f"{source}.logits"], splits=1).mean
    assert values[f"{score}_splits"] == 1.0  # 24 clips are too few for ten parts
    prefix = "" if source == "embedded" else "passt_"
    assert values[f"{prefix}coverage"] == manifold_scores(x, y).coverage
    assert values[f"{prefix}recall"] == manifold_scores(x, y).recall


def test_only_scores_whose_material_is_there_are_made():
    reference, generated = features(0, sources=("embedded", "passt")), features(1, sources=("embedded", "vggish"))
    values, _ = by_name(reference, generated)
    assert "frechet" in values
    assert not any("passt" in name or "vggish" in name for name in values)


def test_costly_scores_are_made_when_asked_for():
    reference, generated = features(0, clips=60), features(1, clips=60)
    plain, costly = by_name(reference, generated)[0], by_name(reference, generated, costly=True)[0]
    assert costly.keys() - plain.keys() == {
        "frechet_inf", "frechet_inf_error", "fd_passt_inf", "fd_passt_inf_error"
    }  # fmt: skip


def test_bias_of_the_frechet_distance_of_clips_with_several_rows_is_the_jackknifes():
    """Rows of one clip are alike; the closed form would count them as independent."""
    reference, generated = features(0, sources=("vggish",), rows_per_clip=3), features(1, sources=("vggish",))
    values, estimates = by_name(reference, generated)
    found = estimates["fd_vggish"]
    groups = len(found.replicates)
    assert found.bias == pytest.approx((groups - 1) * (sum(found.replicates) / groups - values["fd_vggish"]), rel=1e-6)
    assert found.count == CLIPS


@pytest.mark.parametrize("rows_per_clip", [1, 3])
def test_replicates_leave_out_whole_clips(rows_per_clip):
    """Replicate g by hand: the distance of the rows of the clips outside group g."""
    sides = [features(k, sources=("vggish",), rows_per_clip=rows_per_clip) for k in (0, 1)]
    _, estimates = by_name(*sides)
    label = group_labels((CLIPS, CLIPS), groups=20)[0]
    x, y = (side.tensors["vggish.features"].double().numpy().reshape(CLIPS, rows_per_clip, WIDTH) for side in sides)
    by_hand = [frechet_distance(x[label != g].reshape(-1, WIDTH), y[label != g].reshape(-1, WIDTH)) for g in range(20)]
    assert estimates["fd_vggish"].replicates == pytest.approx(by_hand, rel=1e-9)


def test_distances_do_not_depend_on_the_order_of_the_clips():
    reference, generated = features(0), features(1)
    order = torch.randperm(CLIPS, generator=torch.Generator().manual_seed(3)).tolist()
    mixed = ClipFeatures.join([generated.clips(k, k + 1) for k in order])
    values, shuffled = by_name(reference, generated)[0], by_name(reference, mixed)[0]
    for name in ("frechet", "kad", "inception_score", "density", "coverage", "precision", "recall"):
        assert shuffled[name] == pytest.approx(values[name], rel=1e-12)


def test_inception_score_takes_ten_parts_only_with_ten_clips_in_each():
    assert splits_for(99, wanted=10) == 1
    assert splits_for(100, wanted=10) == 10
    logits = torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(0))
    many = ClipFeatures.of(
        [f"c{k}" for k in range(200)],
        {"panns": Embeddings(rows=torch.zeros(200, 1), counts=(1,) * 200, logits=logits)},
    )
    values = set_values([IS_PANNS], many, many)
    assert (values["is_panns"], values["is_panns_splits"]) == (inception_score(logits, splits=10).mean, 10.0)
    assert values["is_panns_std"] == inception_score(logits, splits=10).std
    assert set_estimates([IS_PANNS], many, many)["is_panns"].low < values["is_panns"]


def test_below_four_clips_there_is_no_interval():
    assert (groups_for(3, 100), groups_for(4), groups_for(500, 30)) == (None, 4, 20)
    values, estimates = by_name(features(0, clips=3), features(1, clips=3))
    assert np.isfinite(values["frechet"])
    assert estimates == {}


def test_the_front_door_opens_what_is_asked_for():
    import eval as front

    assert front.METRICS is METRICS
    assert front.run_comparison.__module__ == "eval.compare.comparison"
    with pytest.raises(AttributeError, match="no attribute 'judges'"):
        _ = front.judges
