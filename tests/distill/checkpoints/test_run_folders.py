"""A run folder has one writer, is never started anew over what it holds, and says of its weights what they are."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distill.checkpoints import check as saving_check
from distill.checkpoints import store as checkpoint
from distill.checkpoints.consolidate import consolidate
from distill.checkpoints.posthoc import reconstruct
from distill.checkpoints.store import manifest, read_manifest
from distill.config import DistillRun, EvaluationConfig, FromWeights
from distill.loop import session
from distill.tasks import student_task, train_teacher
from scripts import check, ema
from teacher.files import FolderLock, LockedError, check_digests, read_digests, recorded_steps, write_digests, write_new
from teacher.files.errors import TrainingError, WeightsError
from teacher.files.lines import last_line
from teacher.network.lora import LoRAConfig
from teacher.sampling.model_card import ModelCard
from teacher.sampling.pipeline import Pipeline
from teacher.weights.loading import load_network, weight_file
from tests.distill import tiny
from tests.distill.processes import launch

LOOP = replace(tiny.LOOP, save_every=1, ema_snapshot_every=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.features(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return train_teacher(tiny.teacher_run(data, loop=LOOP), tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def again(data, run, **changes):
    return train_teacher(tiny.teacher_run(data, loop=replace(LOOP, **changes)), run)


def flip(path):
    """Change one bit of the last tensor; a new file, so that links elsewhere stay whole."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.unlink()
    path.write_bytes(content)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------ one writer


def test_a_second_training_is_refused_and_changes_nothing(data, run):
    before = content(run)
    with FolderLock(run, what="the run"):
        with pytest.raises(ValueError, match=rf"the run is being written by process {os.getpid()} on .*another --out"):
            again(data, run)
        assert {name: kept for name, kept in content(run).items() if name.name != ".lock"} == before
    again(data, run)


def test_the_lock_is_held_from_the_first_file_to_the_last(data, tmp_path, monkeypatch):
    tried = []

    def locked(real):
        def call(*arguments, **options):
            with pytest.raises(LockedError):
                FolderLock(tmp_path / "run").take()
            tried.append(real.__name__)
            return real(*arguments, **options)

        return call

    for module, name in ((session, "write_config"), (checkpoint, "save"), (session, "publish")):
        monkeypatch.setattr(module, name, locked(getattr(module, name)))
    again(data, tmp_path / "run")
    assert set(tried) == {"write_config", "save", "publish"}
    assert not (tmp_path / "run" / ".lock").exists()


def test_an_average_is_made_inside_the_folder_only_when_nobody_trains(run, tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["mf-ema", "--run", str(run), "--std", "0.15", *map(str, arguments)])
        ema.cli()

    with FolderLock(run, what="the run"):
        before = content(run)
        with pytest.raises(SystemExit) as left:
            command()
        assert left.value.code == 2
        assert "the run is being written by" in capsys.readouterr().err
        command("--out", tmp_path / "beside.safetensors")
        assert content(run) == before
    command()
    assert check_digests(run, ["ema-0.15.safetensors"]) == []
    assert recorded_steps(run)["ema-0.15.safetensors"] == 3


def status_of(data, run):
    """In one of several processes: the status that a training ends with."""
    try:
        again(Path(data), Path(run))
    except TrainingError as error:
        return error.status, str(error)
    return 0, ""


def test_every_process_of_a_second_training_is_told_and_of_a_finished_one_ends(data, run):
    target, arguments = "tests.distill.checkpoints.test_run_folders:status_of", {"data": str(data), "run": str(run)}
    with FolderLock(run, what="the run"):
        found = launch(target, arguments)
    assert [status for status, _ in found] == [2, 2]
    assert all("process 0: " in told and "the run is being written by" in told for _, told in found)
    shutil.rmtree(run / "trainer")
    assert [status for status, _ in launch(target, arguments)] == [0, 0]
    assert not (run / "trainer").exists()


# ------------------------------------------------------------------ never started anew


def test_a_finished_run_without_checkpoints_ends_at_once_and_is_not_touched(data, run, capsys):
    shutil.rmtree(run / "trainer")
    before = content(run)
    assert again(data, run) == run
    assert content(run) == before
    assert "is finished (step 3); its checkpoints in trainer/ were removed" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another configuration"):
        again(data, run, seed=1)


def _earlier_version(run):
    for name in ("history.jsonl", "digests.json"):
        (run / name).unlink()


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("lost", ["the last step", "the weights", "the log", "the configuration"])
def test_a_run_that_lost_its_checkpoints_is_not_started_anew(data, run, lost, earlier):
    shutil.rmtree(run / "trainer")
    log = run / "metrics.jsonl"
    if earlier:
        _earlier_version(run)
    if lost == "the last step":
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    elif lost == "the weights":
        for path in run.glob("*.safetensors"):
            path.unlink()
    elif lost == "the log":
        log.unlink()
    else:
        (run / "config.json").unlink()
        log.unlink()
    before = content(run)
    with pytest.raises(
        ValueError, match=r"no checkpoint in trainer/ to go on from; restore .*, or choose another --out"
    ):
        again(data, run)
    assert content(run) == before


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_stopped_before_its_first_checkpoint_starts(data, trained, tmp_path, monkeypatch, earlier):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            again(data, run, save_every=3)
    assert last_line(run / "metrics.jsonl")["step"] == 3
    if earlier:
        _earlier_version(run)
    again(data, run, save_every=3)
    assert tiny.losses(run) == tiny.losses(trained)


# ------------------------------------------------------------------ what the weights are


WEIGHTS = ("model", "ema-0.1", "ema-0.2")


def test_weights_are_recorded_and_damage_is_noticed_when_they_are_opened(data, run):
    assert check_digests(run) == []
    snapshots = {f"ema_ckpts/{path.name}" for path in (run / "ema_ckpts").iterdir()}
    assert len(snapshots) == 6
    assert set(read_digests(run)) - snapshots == {
        "config.json", "features.json", "codec.safetensors", *(f"{name}.safetensors" for name in WEIGHTS),
    }  # fmt: skip
    steps = recorded_steps(run)
    assert {name: step for name, step in steps.items() if name not in snapshots} == {
        f"{name}.safetensors": 3 for name in WEIGHTS
    }
    for name in WEIGHTS:
        flip(run / f"{name}.safetensors")
        with pytest.raises(WeightsError, match=rf"{name}.safetensors is damaged: .* restore the file, or, if you repl"):
            load_network(run, weights=name)
    with pytest.raises(WeightsError, match="is damaged"):
        student_task(DistillRun(data=(data,), teacher=run, loop=LOOP), run.with_name("student"))
    flip(run / "codec.safetensors")
    with pytest.raises(WeightsError, match=r"codec.safetensors is damaged"):
        consolidate(run, run.with_name("out"))
    again(data, run)  # publishes them again, and copies the codec
    assert check_digests(run) == []
    flip(run / "codec.safetensors")
    with pytest.raises(WeightsError, match=r"codec.safetensors is damaged"):
        Pipeline.load(run)
    (run / "digests.json").unlink()  # as in folders of earlier versions; the codec carries its own digest
    with pytest.raises(WeightsError, match=r"codec.safetensors is damaged: its content"):
        Pipeline.load(run)
    again(data, run)
    (run / "digests.json").unlink()
    Pipeline.load(run)


def test_an_edited_configuration_is_told_and_used(run, capsys):
    document = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(document | {"licence": "mine"}))
    assert Pipeline.load(run).licence == "mine"
    assert "config.json has" in capsys.readouterr().err


def test_a_damaged_record_is_told_and_training_writes_it_anew(data, run, capsys):
    (run / "digests.json").write_text("{")
    with pytest.raises(WeightsError, match=r"digests.json is not valid JSON.*; restore it, or remove it"):
        load_network(run)
    again(data, run)
    assert "it is written anew" in capsys.readouterr().out
    assert check_digests(run) == []
    assert len(read_digests(run)) == 6


def test_merged_adapters_are_recorded_and_made_again_where_damaged(data, trained, tmp_path):
    config = tiny.teacher_run(data, start=FromWeights(run=trained), lora=LoRAConfig(rank=2, alpha=4.0), loop=LOOP)
    run = train_teacher(config, tmp_path / "run")
    assert {"adapter.safetensors", "model.safetensors", "ema-0.1.safetensors"} <= set(read_digests(run))
    assert check_digests(run) == []
    flip(run / "model.safetensors")
    with pytest.raises(WeightsError, match="is damaged"):
        load_network(run, weights="model")
    train_teacher(config, run)
    load_network(run, weights="model")


def test_auto_is_the_runs_own_narrowest_average_of_the_last_save(data, run, capsys):
    load_network(run)
    assert capsys.readouterr().err == ""
    for name in ("ema-0.03", "ema-0.05"):
        shutil.copyfile(run / "ema-0.2.safetensors", run / f"{name}.safetensors")
    assert weight_file(run, "auto").stem == "ema-0.1"
    write_digests(run, ["ema-0.1.safetensors"], step=2)
    load_network(run)
    assert "ema-0.1.safetensors is of step 2 and model.safetensors of step 3" in capsys.readouterr().err
    assert weight_file(run, "auto").stem == "model"
    (run / "ema-0.1.safetensors").unlink()
    load_network(run)
    assert "ema-0.1.safetensors is missing, so the weights are those of model" in capsys.readouterr().err
    assert weight_file(run, "ema-0.03").stem == "ema-0.03"


@pytest.mark.parametrize("std", ["0.05", "0.1"])
def test_auto_is_never_an_average_made_afterwards(run, std, monkeypatch, capsys):
    (run / "ema-0.1.safetensors").unlink()
    monkeypatch.setattr("sys.argv", ["mf-ema", "--run", str(run), "--std", std])
    ema.cli()
    assert weight_file(run, "auto").stem == "model"
    load_network(run)
    told = capsys.readouterr().err
    assert ("made afterwards by mf-ema, up to step 3" if std == "0.1" else "is missing") in told


def test_taken_and_saved_weights_are_compared_and_are_what_auto_means(run, tmp_path, capsys):
    made = consolidate(run, tmp_path / "taken").out
    saved = Pipeline.load(run).save_pretrained(tmp_path / "saved", ModelCard(name="me/it"))
    for folder in (made, saved):
        assert check_digests(folder) == []
        assert {p.name for p in folder.iterdir()} - {"digests.json"} == set(read_digests(folder))
        assert weight_file(folder, "auto").stem == "model"
        Pipeline.from_pretrained(folder)
        assert capsys.readouterr().err == ""
        for name in ("model", "codec"):
            path = folder / f"{name}.safetensors"
            whole = path.read_bytes()
            flip(path)
            with pytest.raises(WeightsError, match=f"{name}.safetensors is damaged"):
                Pipeline.from_pretrained(folder)
            path.write_bytes(whole)
    (saved / "digests.json").unlink()  # an earlier version's, whose config.json has the digest alone
    flip(saved / "model.safetensors")
    with pytest.raises(WeightsError, match=r"not the one in config.json"):
        Pipeline.from_pretrained(saved)


# ------------------------------------------------------------------ what a run was made with


def test_steps_in_another_precision_are_told_and_written_down(data, run, monkeypatch, capsys):
    shutil.rmtree(run / "trainer" / "step-0000003")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    again(data, run)
    assert "precision: bfloat16 autocast from step 3 on, float32 before" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [(line["step"], line["precision"]) for line in lines] == [(0, "float32"), (2, "bfloat16 autocast")]
    again(data, run)  # nothing left to do
    assert last_line(run / "history.jsonl")["step"] == 2


@pytest.mark.parametrize("earlier", [False, True])
def test_evaluations_of_other_clips_start_the_best_anew(data, tmp_path, capsys, earlier):
    looks, run = EvaluationConfig(every=1, num_clips=1, num_sounds=0), tmp_path / "run"
    again(data, run, evaluation=looks)
    for folder in sorted((run / "trainer").iterdir())[2:]:
        shutil.rmtree(folder)
    path = max((run / "trainer").iterdir()) / "state.json"
    best = json.loads(path.read_text())["best"]
    assert best["measured"] == {"num_clips": 1}
    _put_best(path, {"value": -1.0} | ({"measured": None} if earlier else {}))  # no loss can be better
    for clips, told in ((1, False), (2, True)):
        copied = tmp_path / str(clips)
        shutil.copytree(run, copied)
        again(data, copied, evaluation=replace(looks, num_clips=clips))
        said = capsys.readouterr().out
        assert ("num_clips 2 from now on, num_clips 1 before: they cannot be compared" in said) == told
    same, new = (checkpoint.newest(tmp_path / name).state["best"] for name in ("1", "2"))
    assert (same["step"], same["value"], same["measured"]) == (best["step"], -1.0, {"num_clips": 1})
    assert (new["step"], new["measured"]) == (3, {"num_clips": 2})


def _put_best(path, changes):
    """Another best evaluation in a checkpoint; earlier versions did not say what it was measured with."""
    state = json.loads(path.read_text())
    state["best"] = {name: value for name, value in (state["best"] | changes).items() if value is not None}
    step, files = state["step"], read_manifest(path.parent)
    path.unlink()
    files["state.json"] = write_new(path, json.dumps(state).encode())
    (path.parent / "manifest.json").write_bytes(manifest(step, files))


# ------------------------------------------------------------------ mf-check


def checked(monkeypatch, capsys, *folders):
    monkeypatch.setattr("sys.argv", ["mf-check", *map(str, folders)])
    with pytest.raises(SystemExit) as left:
        check.cli()
    *faults, summary = capsys.readouterr().out.splitlines()
    return left.value.code, faults, summary


def test_the_check_names_every_damaged_file_once_and_what_to_do(run, tmp_path, monkeypatch, capsys):
    Pipeline.load(run).save_pretrained(tmp_path / "saved", ModelCard(name="me/it"))
    code, faults, summary = checked(monkeypatch, capsys, tmp_path)
    assert (code, faults) == (0, [])
    assert "none damaged" in summary
    damaged = {
        "run/ema-0.2.safetensors": "start the training's command again",
        "run/trainer/step-0000002/optimizer.safetensors": "goes on from the checkpoint before it",
        "run/ema_ckpts/ema-0.1.0000002.safetensors": "mf-ema does without it",
        "saved/codec.safetensors": "restore it from where the folder came from",
    }
    for name in damaged:
        flip(tmp_path / name)
    (run / "model.safetensors").unlink()
    code, faults, again = checked(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert len(faults) == 5
    for name, remedy in (damaged | {"run/model.safetensors is missing": "start the training's"}).items():
        place, _, file = name.rpartition("/")
        assert sum(place in line and file in line and remedy in line for line in faults) == 1, (name, faults)
    assert "5 damaged" in again
    assert again.split(";")[1] == summary.split(";")[1]  # of as many files nothing is recorded
    assert checked(monkeypatch, capsys, tmp_path / "saved")[0] == 1


def test_a_folder_without_records_is_said_to_have_none(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "digests.json").write_text('{"format": 1, "files": {"../x": {"bytes": 1, "sha256": "00"}}}')
    code, faults, summary = checked(monkeypatch, capsys, tmp_path)
    assert (code, len(faults)) == (1, 1)
    assert "which is outside the folder" in faults[0]
    assert "0 files (0 bytes) compared, 1 damaged; 1 without a digest" in summary
    monkeypatch.setattr("sys.argv", ["mf-check", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as left:
        check.cli()
    assert left.value.code == 2


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "optimizer.safetensors"])
@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "/dev/full", "nested"])
def test_the_check_opens_no_pipes_or_devices(run, monkeypatch, capsys, name, what):
    path = run / "trainer" / "step-0000002" / name
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "nested":
        path.write_text('{"a": ' + "[" * 200_000)
    else:
        path.symlink_to(what)
    code, faults, _ = checked(monkeypatch, capsys, run)
    assert (code, len(faults)) == (1, 1)
    assert "step-0000002 is damaged" in faults[0]


def test_a_nested_state_that_the_manifest_names_is_one_line(run, monkeypatch, capsys):
    folder = run / "trainer" / "step-0000002"
    files = read_manifest(folder)
    (folder / "state.json").unlink()
    files["state.json"] = write_new(folder / "state.json", b"[" * 200_000)
    (folder / "manifest.json").write_bytes(manifest(2, files))
    code, faults, _ = checked(monkeypatch, capsys, run)
    assert (code, len(faults)) == (1, 1)
    assert "nested too deep" in faults[0]


@pytest.mark.parametrize("what", ["pipe", "/dev/zero"])
def test_stated_weights_that_are_no_file_are_named(tmp_path, monkeypatch, capsys, what):
    (tmp_path / "config.json").write_text(json.dumps({"digest": "0" * 64}))
    path = tmp_path / "model.safetensors"
    os.mkfifo(path) if what == "pipe" else path.symlink_to(what)
    code, faults, _ = checked(monkeypatch, capsys, tmp_path)
    assert (code, len(faults)) == (1, 1)
    assert "is no regular file" in faults[0]


def test_names_that_no_file_can_have_are_faults_of_their_own_and_are_printed_on_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "good").write_text("x")
    write_digests(tmp_path, ["good"])
    plain = json.loads((tmp_path / "digests.json").read_text())
    plain["files"] |= dict.fromkeys(["a" * 5000, "\x1b[31m\nred", "\ud800"], plain["files"]["good"])
    (tmp_path / "digests.json").write_text(json.dumps(plain))
    (tmp_path / "good").write_text("y")
    code, faults, summary = checked(monkeypatch, capsys, tmp_path)
    assert (code, len(faults)) == (1, 4)
    assert all(line.isprintable() and len(line) < 1500 for line in faults)
    assert "File name too long" in " ".join(faults) or "aaaa ..." in " ".join(faults)
    assert any("good is damaged" in line for line in faults)
    assert "4 damaged" in summary


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    walk = os.walk

    def refusing(folder, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}/closed"))
        yield from walk(folder, onerror=onerror)

    monkeypatch.setattr(os, "walk", refusing)
    code, faults, _ = checked(monkeypatch, capsys, tmp_path)
    assert (code, len(faults)) == (1, 1)
    assert "closed cannot be read" in faults[0]


def test_a_checkpoint_pruned_while_it_is_compared_is_no_fault(run, monkeypatch, capsys):
    verified = saving_check.verified

    def pruned(folder):
        if folder.name == "step-0000002":
            shutil.rmtree(folder)
        return verified(folder)

    monkeypatch.setattr(saving_check, "verified", pruned)
    assert checked(monkeypatch, capsys, run)[:2] == (0, [])


def test_a_damaged_snapshot_is_noticed_by_whoever_averages_it(run):
    flip(run / "ema_ckpts" / "ema-0.1.0000002.safetensors")
    with pytest.raises(WeightsError, match=r"ema-0.1.0000002.safetensors is damaged"):
        reconstruct(run, 0.15)


def test_a_run_goes_on_after_what_it_reads_was_moved(tmp_path, capsys):
    """What counts is what is in the folders, by their digests, not where they lie."""
    features, out = tiny.features(tmp_path / "data"), tmp_path / "run"
    train_teacher(tiny.teacher_run(features), out)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / features.name
    before = content(out)
    train_teacher(tiny.teacher_run(moved), out)
    assert "going on from step 3" in capsys.readouterr().out
    assert {k: v for k, v in content(out).items() if "tensorboard" not in str(k)} == {
        k: v for k, v in before.items() if "tensorboard" not in str(k)
    }
    with pytest.raises(ValueError, match=r"another configuration .*digests"):
        train_teacher(tiny.teacher_run(tiny.features(tmp_path / "other", seed=1)), out)
