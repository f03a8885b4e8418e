"""Tables of results: every score has its place, seeds and intervals are those of the rows, few clips are warned of."""

import pytest

from eval.features.embedded import LENGTH
from eval.metrics import METRICS, metric, metrics_of
from eval.report.settings import settings
from eval.report.tables import few_clips, significant
from tests.eval.report.comparison import estimate, page_of, row

EVERY = (
    *(m.key for m in METRICS),
    *(f"{key}{end}" for key in ("is_passt", "fd_panns_inf") for end in ("_std", "_error")),
)


def test_every_score_has_words_and_a_place():
    assert (metric("onset_clips").label, metric("frechet_bias").label) == ("Onset clips", "FD (embedded), bias")
    assert metric("is_passt_splits").label == "IS (PaSST), parts"
    assert (metric("fd_vggish_inf_error").better, metric("fd_vggish_inf").better) == (None, "lower")
    assert (metric("new_score").label, metric("new_score").better) == ("new_score", None)
    order = [m.key for m in metrics_of(["other", "onset_f1", "precision", "frechet", "desync", "desync_clips", "kad"])]
    assert order == ["desync", "desync_clips", "frechet", "kad", "onset_f1", "precision", "other"]


def test_no_score_of_a_row_is_dropped_from_page_or_table(tmp_path):
    metrics = {key: 1.0 + k / 7 for k, key in enumerate((*EVERY, "a_new_score"))}
    page, markdown = page_of(tmp_path, [row(metrics=metrics), row("student", 1, metrics=metrics)])
    for key, value in metrics.items():
        text = metric(key)
        assert text.title.replace(" ↑", "\xa0↑").replace(" ↓", "\xa0↓") in page
        assert text.title in markdown
        assert f"<td>{value:.{text.digits}f}</td>" in page
    main = markdown.split("### More scores")[0]
    assert "FD (PaSST) ↓ | FD (PANNs) ↓ | FD (VGGish) ↓ | KL (PANNs) ↓ | KL (PaSST) ↓ | IS (PANNs) ↑" in main
    assert main.index("CLAP (MS)") < main.index("FD (embedded)") < main.index("Onset F1")
    assert "can be placed beside published figures only" in page


def test_an_interval_on_the_page_is_that_of_the_row(tmp_path):
    rows = [row(seed=s, metrics={"kl": v}, estimates={"kl": estimate(v)}) for s, v in ((0, 10.0), (1, 20.0))]
    page, markdown = page_of(tmp_path, [*rows, row("student", 1, metrics={"kl": 3.0})])
    # Mean over seeds: 15 with [(6.5 + 16.5) / 2, (14.25 + 24.25) / 2] and the bias of both; the student has none.
    for text in ("<td>[11.500, 19.250]</td>", "<td>0.250</td>", "<td>14.750</td>", "<td>17</td>"):
        assert text in page
    assert "| Teacher | 25 | 15.000 | [11.500, 19.250] | 0.250 | 14.750 | 17 |" in markdown
    assert markdown.count("Interval by a jackknife; bias: a closed form.") == 1
    assert markdown.split("### Intervals and bias")[1].split("###")[0].count("\n| ") == 2  # titles, teacher
    both = settings(rows)[0]
    assert (both.span("kl").low, both.span("absent")) == (11.5, None)


def test_an_interval_that_one_seed_lacks_is_not_shown():
    rows = [row(metrics={"kl": 1.0}, estimates={"kl": estimate(1.0)}), row(seed=1, metrics={"kl": 2.0})]
    assert settings(rows)[0].span("kl") is None


def test_a_score_that_one_seed_lacks_is_named(tmp_path):
    rows = [row(metrics={"kl": 1.0, "pam": 0.5}), row(seed=1, metrics={"kl": 2.0})]
    for text in page_of(tmp_path, rows):
        assert "therefore without a mean: Teacher, 25 steps: PAM." in text


def test_unequal_seeds_stand_in_a_column_and_in_words(tmp_path):
    rows = [row(seed=s) for s in (0, 1)] + [row("student", 1, 1), row("reference", 0)]
    page, markdown = page_of(tmp_path, rows)
    assert "| Teacher | 25 | 50 | 10.00 ± 0.00 | 2 | 4 |" in markdown
    assert "| Student | 1 | 2 | 10.00 | 1 | 4 |" in markdown
    assert "| Real sound | – | – | 10.00 | – | 4 |" in markdown
    for text in (page, markdown):
        assert "the number of seeds in the row. Unfinished: seed 0 is missing for Student." in text
        assert "a difference is over those that both have" in text
    (tmp_path / "equal").mkdir()
    for text in page_of(tmp_path / "equal", [r for r in rows if r.seed == 1]):
        assert "Seeds" not in text
        assert "Unfinished" not in text


@pytest.mark.parametrize(("clips", "key", "warned"), [(49, "fd_vggish", True), (255, "fd_vggish", True),
                         (256, "fd_vggish", False), (167, "frechet", True), (168, "frechet", False),
                         (4095, "fd_panns", True), (1536, "fd_passt", False)])  # fmt: skip
def test_few_clips_for_the_dimension_are_cautioned_against(clips, key, warned):
    rows = [row(metrics={key: v}, estimates={key: estimate(v)}, num_clips=clips, steps=n) for v, n in ((9, 1), (7, 2))]
    text = few_clips(settings([*rows, row("codec", 0, metrics={key: 1.0}, num_clips=clips)], {}))
    assert bool(text) == warned
    if warned:
        assert f"few clips, {clips} in {metric(key).dimensions} dimensions" in text
        assert "as large as 0.25, which is part of the lowest value, 7.00 of Teacher, 2 steps." in text


def test_the_caution_stands_on_the_page_and_without_a_bias_says_so(tmp_path):
    assert metric("frechet").dimensions == LENGTH
    for text in page_of(tmp_path, [row()]):
        assert "few clips, 4 in 84 dimensions; its bias was not recorded." in text


def test_factors_keep_three_digits():
    assert [significant(v) for v in (0.1, 0.00312, 12.345, 0.0)] == ["0.100", "0.00312", "12.3", "0"]
