"""The commands in a row on a tiny world: what a user types, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file

from eval.compare.rows import read_rows
from scripts.demo import Demo, commands
from teacher.media import probe

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*arguments, cwd, check=True):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """World, features, a teacher and a student of a few steps."""
    out = tmp_path_factory.mktemp("run")
    run("scripts.make_world", "--out", "world", "--num-clips", 24, cwd=out)
    run("scripts.extract", "--data", "world/manifest.jsonl", "--out", "features", cwd=out)
    run("scripts.train_teacher", "debug", "--data", "features", "--out", "teacher", cwd=out)
    run("scripts.distill", "debug", "--data", "features", "--teacher", "teacher", "--out", "student", cwd=out)
    return out


def test_run_folder_holds_what_the_readme_says(folder):
    for name in ("teacher", "student"):
        run_folder = folder / name
        for file in ("config.json", "model.safetensors", "ema-0.1.safetensors", "codec.safetensors", "features.json"):
            assert (run_folder / file).is_file(), file
        assert sorted(p.name for p in (run_folder / "trainer").iterdir()) == ["step-0000010", "step-0000020"]
        lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        trained = [line for line in lines if "lr" in line]
        assert [line["step"] for line in trained] == [5, 10, 15, 20]
        assert [line["step"] for line in lines if line not in trained] == [20]
        assert "evaluation/onset_f1" in lines[-1]
        assert list((run_folder / "tensorboard").glob("events*"))
    assert "error/0.6-1.0" in trained[-1] or "error/0.0-0.3" in trained[-1]
    assert lines[-1]["evaluation/latent_error"] > 0


@pytest.mark.slow
def test_interrupted_training_resumes_to_the_same_weights(folder, tmp_path):
    """Ctrl-C at some step, the same command again: bit-identical to the run that was never stopped."""
    command = ["scripts.train_teacher", "debug", "--data", str(folder / "features"), "--loop.steps", "80"]
    command += [
        "--loop.batch-size",
        "2",
        "--loop.log-every",
        "1",
        "--loop.evaluation.every",
        "0",
        "--loop.save-every",
        "400",
    ]
    run(*command, "--out", "straight", cwd=tmp_path)
    stopped = subprocess.Popen(
        [sys.executable, "-m", *command, "--out", "stopped"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGINT)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, said
    assert "saved at step" in said
    run(*command, "--out", "stopped", cwd=tmp_path)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "stopped"))
    assert all(bool((a[name] == b[name]).all()) for name in a)


def test_another_configuration_in_the_same_folder_is_refused(folder):
    done = run(
        "scripts.train_teacher", "debug", "--data", "features", "--out", "teacher", "--loop.seed", 1,
        cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: teacher holds a run with another configuration")


@pytest.mark.slow
def test_two_processes_train_as_one_run(folder, tmp_path):
    """DDP on two processes through torchrun: it starts, logs and saves like a single one."""
    done = run(
        "torch.distributed.run", "--nproc_per_node", 2, "-m", "scripts.distill", "debug", "--data", folder / "features",
        "--teacher", folder / "teacher", "--out", tmp_path / "two", cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DDP, 2 process(es)" in done.stdout
    assert (tmp_path / "two" / "model.safetensors").is_file()


def test_sample_video_and_prompt(folder):
    clip = next((folder / "world").rglob("*.mp4"))
    run("scripts.sample", "--run", "student", "--video", clip, "--out", "made", "--guidance", 2, cwd=folder)
    wave, rate = soundfile.read(folder / "made" / f"{clip.stem}.flac")
    assert len(wave) == round(probe(clip).duration_s * rate)
    film = probe(folder / "made" / f"{clip.stem}.mp4")
    assert film.has_audio
    assert film.has_video
    run(
        "scripts.sample", "--run", "teacher", "--prompt", "glass struck", "--duration-s", 3.1, "--steps", 2,
        "--format", "wav", "--out", "made", cwd=folder,
    )  # fmt: skip
    wave, rate = soundfile.read(folder / "made" / "glass_struck.wav")
    assert len(wave) == round(3.1 * rate)


def test_bad_videos_are_named_and_the_others_made(folder):
    good, bad, empty = next((folder / "world").rglob("*.mp4")), folder / "broken.mp4", folder / "empty.mp4"
    bad.write_bytes(b"not a film" * 100)
    empty.touch()
    done = run(
        "scripts.sample", "--run", "student", "--video", bad, empty, good, "--out", "some", cwd=folder, check=False
    )
    assert done.returncode == 1
    assert "broken.mp4" in done.stderr
    assert "empty.mp4" in done.stderr
    assert "2 of 3 inputs failed" in done.stderr
    assert (folder / "some" / f"{good.stem}.flac").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "nowhere.mp4"], "nowhere.mp4"),
        ([], "give --video, --prompt or both"),
        (["--prompt", "x", "--run", "world"], "not a run folder|features.json"),
        (["--prompt", "x", "--weights", "ema-0.7"], "no weights 'ema-0.7'"),
        (["--prompt", "x", "--steps", "0"], "steps must be at least 1"),
        (["--prompt", "x", "--duration-s", "0.3"], "0.64"),
    ],
)
def test_bad_input_gets_one_line(folder, arguments, message):
    base = [] if "--run" in arguments else ["--run", "student"]
    done = run("scripts.sample", *base, *arguments, cwd=folder, check=False)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert any(part in lines[-1] for part in message.split("|")), lines[-1]
    assert "Traceback" not in done.stderr


def test_compare_and_report(folder):
    compare = ["scripts.compare", "--data", "features", "--teacher", "teacher", "--student", "student", "--out", "."]
    compare += ["--steps", 1, 2, "--seeds", 0, "--num-examples", 2]
    run(*compare, cwd=folder)
    rows = read_rows(folder / "rows.jsonl")
    assert {(r.task, r.model, r.steps) for r in rows} == {
        (task, model, steps)
        for task in ("vta", "tta")
        for model, steps in (
            ("reference", 0), ("codec", 0), ("teacher", 1), ("teacher", 2), ("student", 1), ("student", 2),
        )
    }  # fmt: skip
    vta = next(r for r in rows if (r.task, r.model, r.steps) == ("vta", "student", 1))
    assert {"frechet", "kl", "inception_score", "onset_f1"} <= set(vta.metrics)
    assert {"decode+resize", "flow network", "codec decode", "video-to-audio"} <= set(vta.rtf)
    assert (vta.nfe, vta.guidance) == (2, 1.4)  # one step, guided: two evaluations
    before = (folder / "rows.jsonl").read_text()
    run(*compare, cwd=folder)
    assert (folder / "rows.jsonl").read_text() == before
    run("scripts.report", "--rows", "rows.jsonl", cwd=folder)
    page = (folder / "report.html").read_text()
    for example in json.loads((folder / "examples.json").read_text()):
        for entry in example["entries"]:
            assert entry["media"] in page
            assert (folder / entry["media"]).is_file()


def test_demo_is_the_documented_commands_in_a_row():
    made = [" ".join(command) for command in commands(Demo(), Path("runs/demo"))]
    modules = ["make_world", "extract", "train_teacher", "distill", "compare", "report"]
    assert [next(m for m in modules if f"scripts.{m}" in line) for line in made] == modules
    assert all("distill.launch.launcher --config_file one_gpu_float32" in line for line in made[2:4])
    own = [" ".join(command) for command in commands(Demo(data=Path("clips.csv")), Path("runs/clips"))]
    assert len(own) == 5
    assert "--data clips.csv" in own[0]


def test_demo_trains_once_for_each_training_seed():
    made = [" ".join(command) for command in commands(Demo(training_seeds=(0, 3)), Path("runs/demo"))]
    assert len(made) == 2 + 2 * 3 + 1
    for line in made[5:8]:
        assert "runs/demo/seed-3" in line
    assert [("--loop.seed 3" in line) for line in made] == [False] * 5 + [True, True] + [False] * 2
    assert made[6].count("runs/demo/seed-3/teacher") == 1
