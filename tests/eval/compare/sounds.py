"""Sounds, rows and run folders that the tests of test sets share."""

import json

import numpy as np

from eval.compare.rows import Row, json_line, read_clip_scores
from teacher.files.lines import append_lines

RATE = 16_000
TEST = tuple(f"test{k}" for k in range(5))


def clips_beside(path):
    return read_clip_scores(path.with_name("clips.jsonl"))


def sound(seed):
    rng = np.random.default_rng(seed)
    t = np.arange(RATE) / RATE
    wave = np.sin(2 * np.pi * rng.uniform(200, 2000) * t) * np.exp(-5 * (t % 0.5)) + 0.01 * rng.standard_normal(RATE)
    return (0.3 * wave).astype(np.float32)


def run_folder(path, data):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"kind": "student", "run": {"data": [str(d) for d in data]}}))
    return path


def results(folder, scored):
    """Rows and per-clip scores: model -> ids."""
    for model, ids in scored.items():
        row = Row(
            task="vta", model=model, steps=1, seed=0, nfe=1, guidance=1.0, metrics={"kl": 1.0}, num_clips=len(ids),
            config_digest="d", run_id="r", command="c",
        )  # fmt: skip
        lines = [
            {"task": "vta", "model": model, "steps": 1, "seed": 0, "config_digest": "d", "id": i, "kl": 1.0}
            for i in ids
        ]
        append_lines(folder / "clips.jsonl", map(json_line, lines))
        append_lines(folder / "rows.jsonl", [row.to_json()])
    return folder / "rows.jsonl"
