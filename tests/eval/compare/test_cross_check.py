"""FD, KAD and IS by torch-fidelity from stored features: both agree, and a changed value of either is noticed."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from eval.compare.cross_check import FILE, cross_checks, write_cross_checks
from eval.compare.rows import Row, embeddings_path, read_rows
from eval.features.cache import write_row_features
from eval.features.clip_features import ClipFeatures
from eval.metrics import set_metrics
from eval.metrics.embeddings import Embeddings
from scripts.verify import cli
from teacher.files.lines import append_lines

FORMULAS = ("frechet", "kad", "inception_score", "fd_vggish")
"""Of the embedded source one row per clip, of VGGish several."""


def features(seed: int, clips: int, *, dimensions: int = 12) -> ClipFeatures:
    """Rows of clips of two models, and logits of one, drawn around a mean that depends on the seed."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(0))

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, dimensions, generator=g) @ mix + 0.1 * seed + 3.0

    counts = tuple(1 + k % 3 for k in range(clips))
    logits = 3.0 * torch.randn(clips, 7, generator=g)
    return ClipFeatures.of(
        [f"clip{k}" for k in range(clips)],
        {
            "embedded": Embeddings(rows=rows(clips), counts=(1,) * clips, logits=logits),
            "vggish": Embeddings(rows=rows(sum(counts)), counts=counts),
        },
    )


def written(folder: Path, reference: ClipFeatures, generated: ClipFeatures, model: str = "student") -> Path:
    """A row with the values of our own metrics, and its features beside it as a comparison keeps them."""
    path = folder / "rows.jsonl"
    values: dict[str, float] = {}
    for metric in set_metrics():
        if metric.key in FORMULAS:
            of_real = model == "reference" and not metric.uses_reference
            made = (reference if of_real else generated).embeddings(metric.source)
            values |= metric.value(reference.embeddings(metric.source), made)
    row = Row(
        task="tta", model=model, steps=0 if model == "reference" else 1, seed=0, nfe=1, guidance=1.0, metrics=values,
        num_clips=len(generated), config_digest="abc", run_id="run", command="compare",
    )  # fmt: skip
    write_row_features(embeddings_path(path, row), generated, reference, config_digest=row.config_digest)
    append_lines(path, [row.to_json()])
    return path


def command(monkeypatch, path: Path, *more: str) -> object:
    """Exit status of mf-verify --cross-check."""
    monkeypatch.setattr(sys, "argv", ["mf-verify", "--rows", str(path), "--cross-check", *more])
    try:
        cli()
    except SystemExit as left:
        return left.code
    return 0


@pytest.mark.parametrize(("clips", "dimensions"), [(130, 12), (9, 40)], ids=["full rank", "fewer clips than features"])
def test_both_implementations_agree(tmp_path, clips, dimensions):
    """Where there are fewer clips than dimensions most eigenvalues are zero, and the package loses 1e-8 of each."""
    real, other, made = (features(seed, clips, dimensions=dimensions) for seed in (1, 2, 3))
    written(tmp_path, real, other, "reference")
    path = written(tmp_path, real, made)
    found = list(cross_checks(path, read_rows(path)))
    assert [(check.row.model, check.metric) for check in found] == [
        (model, key) for model in ("reference", "student") for key in ("fd_vggish", "frechet", "kad", "inception_score")
    ]
    for check in found:
        assert check.agrees, str(check)
        assert check.tolerance < 2e-4 * max(1.0, abs(check.ours))
    assert found[3].ours != found[7].ours  # of the real clips' own classes, and of the student's
    assert found[1].ours != found[5].ours


def test_file_and_exit_status(tmp_path, monkeypatch, capsys):
    path = written(tmp_path, features(1, 40), features(2, 40))
    assert command(monkeypatch, path) == 0
    assert "4 computed by torch-fidelity too: 4 agree, 0 differ" in capsys.readouterr().out
    made = json.loads((tmp_path / FILE).read_text())
    assert made["package"] == f"torch-fidelity {version('torch-fidelity')}"
    row = read_rows(path)[0]
    assert [entry["metric"] for entry in made["rows"]] == ["fd_vggish", "frechet", "kad", "inception_score"]
    for entry in made["rows"]:
        assert entry.keys() == {"task", "model", "steps", "guidance", "seed", "metric", "ours", "theirs"}
        assert (entry["task"], entry["model"], entry["steps"], entry["seed"]) == ("tta", "student", 1, 0)
        assert entry["ours"] == row.metrics[entry["metric"]]
        assert entry["theirs"] == pytest.approx(entry["ours"], rel=1e-6)


@pytest.mark.parametrize("key", FORMULAS)
def test_a_changed_value_differs(tmp_path, monkeypatch, capsys, key):
    path = written(tmp_path, features(1, 40), features(2, 40))
    plain = json.loads(path.read_text())
    plain["metrics"][key] *= 1.0001
    path.write_text(json.dumps(plain) + "\n")
    assert command(monkeypatch, path) == 1
    out = capsys.readouterr().out
    assert f"{key} {plain['metrics'][key]:.10g}, torch-fidelity" in out
    assert out.count("DIFFERS") == 1
    assert "3 agree, 1 differ" in out


@pytest.mark.parametrize(
    ("clips", "most", "reason"),
    [(30, 5000, "sets of one size, these have 40 and 30 clips"), (40, 39, "too large for more than 39 clips")],
)
def test_kernel_distances_that_the_package_cannot_compute_are_left_out(tmp_path, monkeypatch, clips, most, reason):
    monkeypatch.setattr("eval.compare.cross_check.MOST_FOR_KERNEL", most)
    path = written(tmp_path, features(1, 40), features(2, clips))
    lines: list[str] = []
    found = [check.metric for check in cross_checks(path, read_rows(path), report=lines.append)]
    assert found == ["fd_vggish", "frechet", "inception_score"]
    assert len(lines) == 1
    assert lines[0].startswith("tta student, 1 step, seed 0: kad left out: torch-fidelity ")
    assert reason in lines[0]


def test_values_that_are_no_numbers_are_not_written(tmp_path, monkeypatch):
    path = written(tmp_path, features(1, 40), features(2, 40))
    monkeypatch.setitem(sys.modules["eval.compare.cross_check"].COMPUTED, "inception", lambda *_: (float("nan"), 1e-6))
    found = list(cross_checks(path, read_rows(path)))
    assert [check.agrees for check in found] == [True, True, True, False]
    assert len(json.loads(write_cross_checks(path, found).read_text())["rows"]) == 3


def test_without_features_or_beside_another_mode_it_is_refused(tmp_path, monkeypatch, capsys):
    path = written(tmp_path, features(1, 40), features(2, 40))
    assert command(monkeypatch, path, "--all") == 2
    assert "give exactly one of --cell" in capsys.readouterr().err
    for file in (tmp_path / "embeddings").iterdir():
        file.unlink()
    assert command(monkeypatch, path) == 2
    assert "holds no features of these rows" in capsys.readouterr().err
    assert not (tmp_path / FILE).exists()
