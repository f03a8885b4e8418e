"""The runner of recordings: recorded metrics, recordings of other cases, errors, summary and exit status."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm

from tests.golden.__main__ import KINDS, main
from tests.golden.recipe import Recording, recorded_lengths

FOLDER = Path(__file__).parent / "golden" / "recordings"
EMPTY_PROMPT = [49406, 49407, *[0] * 75]


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


# Recordings of other cases, splits, sizes and names, by formulas of their own


def record(folder: Path, name: str, document: dict, tensors: dict[str, torch.Tensor] | None = None) -> None:
    (folder / f"{name}.json").write_text(json.dumps(document))
    if tensors:
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """By scipy's matrix root, in float64."""
    first, second = (np.cov(one.double().numpy(), rowvar=False) for one in (a, b))
    apart = a.double().mean(0) - b.double().mean(0)
    return float(apart @ apart + np.trace(first + second) - 2 * np.trace(sqrtm(first @ second).real))


def divergence(reference: torch.Tensor, generated: torch.Tensor) -> float:
    p, q = reference.double().log_softmax(1), generated.double().log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


def inception(logits: torch.Tensor, splits: int, order: np.ndarray) -> tuple[float, float]:
    """Mean and deviation over floor(s n / S) to floor((s + 1) n / S)."""
    p = logits.double().softmax(1)[torch.from_numpy(order)]
    edges = [s * len(p) // splits for s in range(splits + 1)]
    parts = [p[a:b] for a, b in pairwise(edges)]
    scores = np.array([float((x * (x.log() - x.mean(0).log())).sum(1).mean().exp()) for x in parts])
    return float(scores.mean()), float(scores.std())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double()).mean())


def record_distances(folder: Path) -> None:
    cases = {"tall": (draw(90, 7, seed=0), 1.2 * draw(40, 7, seed=1)), "flat": (draw(5, 9, seed=2), draw(6, 9, seed=3))}
    tensors = {f"in.{c}.{side}": x for c, pair in cases.items() for side, x in zip(("reference", "generated"), pair)}  # noqa: B905
    expected = {f"{c}.fd_from_float64": frechet(*pair) for c, pair in cases.items()}
    record(folder, "distances", {"kind": "metric_fd", "config": {}, "expected": expected}, tensors)


def record_scores(folder: Path, seed: int = 11) -> None:
    logits, expected = 2 * draw(23, 12, seed=4), {}
    order = np.random.RandomState(seed).permutation(23)
    for splits in (3, 7):
        for name, rows in (("shuffled", order), ("unshuffled", np.arange(23))):
            for what, value in zip(("mean", "std"), inception(logits, splits, rows), strict=True):
                expected[f"splits{splits}.{name}.{what}"] = value
    config = {"splits": [3, 7], "rng_seed": seed}
    document = {"kind": "metric_isc", "config": config, "expected": expected, "permutation": order.tolist()}
    record(folder, "scores", document, {"in.logits": logits})


def record_divergences(folder: Path) -> None:
    reference, generated = draw(6, 9, seed=5), draw(6, 9, seed=6)
    p, q = reference.double().sigmoid(), generated.double().sigmoid()
    sigmoid = float((p * (p.log() - q.log())).sum(1).mean())
    expected = {"f64.kl_softmax": divergence(reference, generated), "f64.kl_sigmoid": sigmoid}
    expected |= {f"three_sets.{key.removeprefix('f64.')}": float(np.float32(v)) for key, v in expected.items()}
    tensors = {"in.reference_logits": reference, "in.generated_logits": generated}
    record(folder, "divergences", {"kind": "metric_kl", "config": {}, "expected": expected}, tensors)


def record_evaluation(folder: Path) -> None:
    """Clips whose long names are reduced to a video's: `b` has a reference under its reduced name alone."""
    references, generated = ["a", "b", "c", "d"], ["d", "b-long", "extra", "a"]
    config = {"reference_names": references, "generated_names": generated}
    t = {f"{side}.pann_logits": draw(4, 6, seed=7 + k) for k, side in enumerate(("gt", "pr"))}
    t |= {f"{side}.passt_logits": draw(4, 6, seed=9 + k) for k, side in enumerate(("gt", "pr"))}
    for k, name in enumerate(("vggish_features", "pann_features", "passt_features")):
        shape = (4, 5, 3) if name.startswith("vggish") else (4, 3)
        t |= {f"{side}.{name}": draw(*shape, seed=20 + 2 * k + s) for s, side in enumerate(("gt", "pr"))}
    for k, (seen, heard) in enumerate(
        (("imagebind_video", "imagebind_audio"), ("clap_laion_text",) * 2, ("clap_ms_text",) * 2)
    ):
        heard = heard.replace("text", "audio")
        t |= {f"gt.{seen}": draw(4, 8, seed=30 + 2 * k), f"pr.{heard}": draw(4, 8, seed=31 + 2 * k)}
    t |= {"gt.synchformer_video": draw(4, 16, 8, 6, seed=40), "pr.synchformer_audio": draw(4, 16, 6, 6, seed=41)}
    t |= {"offset_head.A": draw(6, 21, seed=42), "offset_head.B": draw(6, 21, seed=43)}
    gt, pr = torch.tensor([3, 1, 0]), torch.tensor([0, 1, 3])  # by reduced names
    plain = torch.tensor([3, 0]), torch.tensor([0, 3])  # by the names themselves
    expected = {
        "FD-VGG": frechet(t["pr.vggish_features"].flatten(0, 1), t["gt.vggish_features"].flatten(0, 1)),
        "FD-PANN": frechet(t["pr.pann_features"], t["gt.pann_features"]),
        "KL-PANNS-softmax": divergence(t["gt.pann_logits"][plain[0]], t["pr.pann_logits"][plain[1]]),
        "KL-PASST-softmax": divergence(t["gt.passt_logits"][gt], t["pr.passt_logits"][pr]),
        "ISC-PANNS-mean": inception(t["pr.pann_logits"], 2, np.random.RandomState(5).permutation(4))[0],
        "IB-Score": cosine(t["gt.imagebind_video"][gt], t["pr.imagebind_audio"][pr]),
        "MS-CLAP-Score": cosine(t["gt.clap_ms_text"][gt], t["pr.clap_ms_audio"][pr]),
    }
    document = {
        "kind": "metric_evaluate", "config": config | {"splits": 2, "rng_seed": 5},
        "reduced_names": {name: name.removesuffix("-long") for name in generated},
        "expected": {f"metric.{name}": value for name, value in expected.items()},
    }  # fmt: skip
    record(folder, "evaluation", document, {f"in.{name}": value for name, value in t.items()})


def record_cosines(folder: Path) -> None:
    a, b = draw(3, 5, seed=50), draw(3, 5, seed=51)
    pairs = torch.nn.functional.cosine_similarity(a, b)
    tensors = {"in.any.a": a, "in.any.b": b, "out.any.per_pair": pairs}
    document = {"kind": "metric_cosine", "outputs": {"any.per_pair": {}, "any.score": {}}}
    record(folder, "cosines", document | {"expected": {"any.score": float(pairs.mean())}}, tensors)


SECOND_SET = (record_distances, record_scores, record_divergences, record_evaluation, record_cosines)


def test_cases_splits_sizes_and_names_are_those_of_the_recording(tmp_path, capsys):
    for recorded in SECOND_SET:
        recorded(tmp_path)
    status = main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    assert [line.split()[:2] for line in lines[:-1]] == [
        [name, "ok"] for name in ("cosines", "distances", "divergences", "evaluation", "scores")
    ]
    assert lines[-1] == "5 reproduced, 0 failed, 0 with errors, 0 of kinds not implemented here"


def test_pairs_by_reduced_names_are_other_pairs(tmp_path):
    """The divergence over PANNs compares names as they are; reduced ones would have the clip b among them."""
    record_evaluation(tmp_path)
    recording = Recording.read(tmp_path, "evaluation")
    renamed = recording.document | {"config": recording.document["config"] | {"generated_names": ["d", "b", "x", "a"]}}
    assert [
        d.name for d in KINDS["metric_evaluate"](Recording(renamed, recording.tensors)) if not d.value <= d.tolerance
    ] == ["KL-PANNS-softmax"]


def test_what_is_recorded_and_not_made_fails(tmp_path, capsys):
    record_cosines(tmp_path)
    path = tmp_path / "cosines.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"outputs": document["outputs"] | {"any.median": {}}}))
    assert main(tmp_path) == 1
    assert "beyond: any.median: not made here" in capsys.readouterr().out


def test_a_re_sized_network_takes_the_lengths_of_its_last_size():
    built = {f"{name}_seq_len": n for name, n in (("latent", 250), ("clip", 64), ("sync", 192), ("text", 77))}
    assert recorded_lengths(built) == {"latent": 250, "clip": 64, "sync": 192, "text": 77}
    expected = {"latent": 40, "clip": 10, "sync": 24, "text": 77}
    assert recorded_lengths(built | {"update_seq_lengths": [40, 10, 24]}) == expected
    assert recorded_lengths(built | {"update_seq_lengths": [[20, 5, 8], [40, 10, 24]]}) == expected
    by_name = {"latent_seq_len": 40, "clip_seq_len": 10, "sync_seq_len": 24}
    assert recorded_lengths(built | {"update_seq_lengths": by_name}) == expected


# Errors, summary and exit status


def test_an_error_is_one_line_and_the_next_recordings_follow(tmp_path, capsys):
    record_distances(tmp_path)
    record_scores(tmp_path)
    (tmp_path / "divergences.json").write_text(json.dumps({"kind": "metric_kl", "expected": {"kl_softmax": 1.0}}))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "INDEX.json").write_text(json.dumps({"columns": ["file"], "files": []}))
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "other.json").write_text(json.dumps({"kind": "film_pixels"}))
    assert main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["broken", "ERROR"], ["distances", "ok"], ["divergences", "ERROR"], ["other", "not"], ["scores", "ok"],
    ]  # fmt: skip
    assert lines[2].endswith("ERROR  KeyError: 'in.reference_logits'")
    assert lines[3].endswith("not implemented here: film_pixels")
    assert lines[-1] == "2 reproduced, 0 failed, 2 with errors, 1 of kinds not implemented here"


@pytest.mark.parametrize("what", ["beyond its tolerance", "not a number", "nothing to compare"])
def test_one_failure_is_the_exit_status(tmp_path, capsys, what):
    record_scores(tmp_path)
    record_distances(tmp_path)
    path = tmp_path / "scores.json"
    document = json.loads(path.read_text())
    change = {"beyond its tolerance": 1e-3, "not a number": float("nan")}.get(what)
    if change is None:
        document = document | {"expected": {}}
        del document["permutation"]
    else:
        document["expected"]["splits3.shuffled.mean"] += change
    path.write_text(json.dumps(document))
    assert main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["scores", "FAILED"]
    assert lines[-1] == "1 reproduced, 1 failed, 0 with errors, 0 of kinds not implemented here"


def test_a_folder_without_recordings_is_refused(tmp_path, capsys):
    (tmp_path / "INDEX.json").write_text(json.dumps({"columns": ["file"], "files": []}))
    assert main(tmp_path) == 1
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"{tmp_path} holds no recordings: no JSON file there names a kind"
    )
    assert main(tmp_path / "absent") == 1


# What enters the networks


def test_tokens_and_lengths_of_films_are_exact(tmp_path, capsys):
    tokens = {"kind": "clip_tokens", "prompts": ["", "  "], "ids": [EMPTY_PROMPT, EMPTY_PROMPT]}
    # ceil(1.5 s * 31.25) = 47 latents of 512 samples, 12 pictures, floor((37 - 16) / 8) + 1 = 3 segments of 8.
    lengths = {"kind": "film_lengths", "rows": [[1.5, 16_000, 47, 12, 24, 47 * 512]]}
    record(tmp_path, "tokens", tokens)
    record(tmp_path, "lengths", lengths)
    assert main(tmp_path) == 0
    record(tmp_path, "tokens", tokens | {"ids": [EMPTY_PROMPT, [49406, 320, *EMPTY_PROMPT[1:-1]]]})
    record(tmp_path, "lengths", lengths | {"rows": [[1.5, 16_000, 46, 12, 24, 47 * 512]]})
    capsys.readouterr()
    assert main(tmp_path) == 1
    assert "0 reproduced, 2 failed" in capsys.readouterr().out


def test_recorded_tokens_lengths_recipe_and_manifests(recordings, capsys):
    for name in ("tokens", "lengths"):
        recording = Recording.read(recordings.parent / "films", name)
        assert [d.value for d in KINDS[recording.document["kind"]](recording)] == [0.0]
    assert main(recordings.parent) == 0
    assert main(recordings.parent / "manifests") == 0
    assert "11 reproduced, 0 failed" in capsys.readouterr().out
