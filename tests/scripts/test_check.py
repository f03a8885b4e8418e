"""mf-check of comparisons and of folders of strangers: everything that carries a check, in bounded time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.saving.manifest import manifest
from distill.saving.writing import Written
from eval.heard import Heard
from eval.kept_embeddings import embeddings_path
from eval.rows import Row, ids_digest, ids_text, json_line, sealed
from scripts.check import check, faults
from teacher.files import file_sha256

ROOT = Path(__file__).resolve().parents[2]
IDS = ("a", "b")


@pytest.fixture
def comparison(tmp_path):
    """A comparison of one row: embeddings, their reference, a cached feature, rows, clips and the list of clips."""
    row = Row(
        task="vta", model="student", steps=1, seed=0, nfe=1, guidance=1.0, metrics={"kl": 1.0}, num_clips=2,
        config_digest="c" * 12, run_id="r", command="c", kind="student", clips_digest=ids_digest(IDS),
    )  # fmt: skip
    heard = Heard(ids=IDS, tensors={"x": torch.arange(4.0).reshape(2, 2)}, per_clip=())
    target = embeddings_path(tmp_path / "rows.jsonl", row)
    target.parent.mkdir()
    written = heard.write(target.with_name("reference.safetensors"), {})
    digest = file_sha256(written)
    written.replace(target.with_name(f"reference-{digest[:16]}.safetensors"))
    heard.write(target, {"config_digest": row.config_digest, "reference": digest})
    heard.write(tmp_path / "cache" / "ab" / "cdef.safetensors", {})
    (tmp_path / "rows.jsonl").write_text(sealed(row.to_json()) + "\n")
    (tmp_path / "clips.jsonl").write_text(sealed(json_line({"id": "a", "kl": 1.0})) + "\n")
    (tmp_path / "scored-vta.txt").write_text(ids_text(IDS))
    return tmp_path


def test_a_comparison_in_order_has_no_faults_and_all_of_it_is_compared(comparison):
    found = check([comparison])
    assert found.faults == []
    assert (found.files, found.unrecorded) == (6, 0)


def test_every_file_of_a_comparison_is_compared(comparison):
    files = sorted(path for path in comparison.rglob("*") if path.is_file())
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        at = whole.rindex(b"a" if path.suffix == ".txt" else b"1") if path.suffix != ".safetensors" else len(whole) - 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        assert faults(comparison), path
        path.write_bytes(whole)
    assert faults(comparison) == []


def test_what_a_row_names_and_is_gone_is_named(comparison):
    gone = next(path for path in (comparison / "embeddings").iterdir() if path.name.startswith("vta"))
    gone.unlink()
    assert [gone.name in line for line in faults(comparison)] == [True]


def _hostile(folder, kind):
    step = folder / "trainer" / "step-0000001"
    step.mkdir(parents=True)
    if kind == "manifest is a pipe":
        os.mkfifo(step / "manifest.json")
    elif kind == "manifest never ends":
        (step / "manifest.json").symlink_to("/dev/zero")
    elif kind == "manifest is nested deep":
        (step / "manifest.json").write_text("[" * 200_000)
    elif kind == "state never ends":
        files = {"state.json": Written(0, "0" * 64)}
        (step / "manifest.json").write_bytes(manifest(1, files))
        (step / "state.json").symlink_to("/dev/zero")
    elif kind == "weights are a pipe":
        (folder / "config.json").write_text(json.dumps({"digest": "0" * 64}))
        os.mkfifo(folder / "model.safetensors")
    elif kind == "a name that no file can have":
        entry = {"bytes": 1, "sha256": "0" * 64}
        (folder / "digests.json").write_text(json.dumps({"format": 1, "files": {"x" * 5000: entry, "gone": entry}}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="devices and limits are those of Linux")
@pytest.mark.parametrize(
    "kind",
    [
        "manifest is a pipe", "manifest never ends", "manifest is nested deep", "state never ends",
        "weights are a pipe", "a name that no file can have",
    ],
)  # fmt: skip
def test_folders_of_strangers_take_bounded_time_and_memory(tmp_path, kind):
    _hostile(tmp_path, kind)
    limits = "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2); "
    code = f"{limits}import sys; sys.argv = ['mf-check', {str(tmp_path)!r}]; from scripts.check import cli; cli()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr[-1000:]
    assert "Traceback" not in done.stderr
    assert str(tmp_path) in done.stdout
    if kind == "a name that no file can have":
        assert "gone is missing" in done.stdout
