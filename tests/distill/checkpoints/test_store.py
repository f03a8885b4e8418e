"""Checkpoints are complete or passed over, whatever stops a save or damages a file; the weights for use follow them."""

import errno
import json
import os
import resource
import shutil
import signal
import stat
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.checkpoints import store as checkpoint
from distill.checkpoints.publish import publish
from distill.checkpoints.store import at, drop_later, newest, save
from teacher.files import check_digests, recorded_steps
from teacher.files.safetensors import write_tensors

FILES = ("model.safetensors", "optimizer.safetensors", "ema-0.05.safetensors", "state.json", "manifest.json")


def tensors(step):
    """Types and shapes that training has, and the awkward ones, with values that depend on the step."""
    numbers = torch.arange(60, dtype=torch.float64) / 7 + step
    model = {
        "weight": numbers.float().view(6, 10).T,  # not contiguous
        "half": numbers.bfloat16()[:7],
        "strided": numbers.float()[::2],
        "scalar": torch.tensor(float(step)),
        "none": torch.zeros(0, 3),
        "flag": torch.tensor([True, False, True]),
        "infinite": torch.tensor([float("inf"), float("nan"), -0.0]),
    }
    moments = {"exp_avg.weight": numbers.view(10, 6), "step": torch.tensor(step)}
    return {"model": model, "optimizer": moments, "ema-0.05": {"weight": numbers.float().view(10, 6)}}


def saved(run, *steps, **options):
    for step in steps:
        save(run, step, tensors(step), {"bad_steps": step % 3}, **({"keep_last": 2} | options))
    return run


def steps_of(run):
    return sorted(p.name for p in (run / "trainer").iterdir())


def quiet(line):
    pass


def same_bits(a, b):
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    )


def holds(found, step):
    """Whether a checkpoint is bit for bit what was saved at a step."""
    return found.step == step and all(
        set(found.tensors(name)) == set(wanted)
        and all(same_bits(tensor, wanted[key]) for key, tensor in found.tensors(name).items())
        for name, wanted in tensors(step).items()
    )


def test_round_trip_is_exact_to_the_bit(tmp_path):
    folder = save(tmp_path, 7, tensors(7), {"bad_steps": 2, "best": None}, keep_last=1)
    assert folder == tmp_path / "trainer" / "step-0000007"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    found = newest(tmp_path)
    assert holds(found, 7)
    assert found.state == {"step": 7, "bad_steps": 2, "best": None}
    assert found.folder == folder
    with pytest.raises(ValueError, match=r"cannot read weights .*ema-0\.1\.safetensors"):
        found.tensors("ema-0.1")


def test_without_moments_and_without_checkpoints(tmp_path):
    assert newest(tmp_path) is None
    (tmp_path / "trainer" / "step-0000001.tmp").mkdir(parents=True)  # killed during the first save
    assert newest(tmp_path) is None
    save(tmp_path, 1, {"model": {}, "optimizer": {}}, {}, keep_last=1)
    assert newest(tmp_path).tensors("optimizer") == {}
    assert steps_of(tmp_path) == ["step-0000001"]


def test_blocks_are_written_in_order(tmp_path, monkeypatch):
    """Tensors larger than a block, and a file system that takes fewer bytes than it is given."""
    monkeypatch.setattr("teacher.files.safetensors.BLOCK", 64)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: max(1, len(data) // 2)]))
    assert holds(newest(saved(tmp_path, 3)), 3)


def test_a_type_that_safetensors_files_lack_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"z is of type torch.complex128"):
        save(saved(tmp_path, 1), 2, {"model": {"z": torch.zeros(2, dtype=torch.complex128)}}, {}, keep_last=1)
    assert steps_of(tmp_path) == ["step-0000001"]


DAMAGES = {
    "emptied": lambda p: p.write_bytes(b""),
    "cut by a byte": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "longer by a byte": lambda p: p.write_bytes(p.read_bytes() + b" "),
    "removed": lambda p: p.unlink(),
    "replaced by a folder": lambda p: (p.unlink(), p.mkdir()),
    "beside an extra file": lambda p: p.with_name("extra.safetensors").write_bytes(p.read_bytes()),
} | {f"bit {bit} at {place:g}": (lambda p, b=bit, w=place: flip(p, b, w)) for bit in (0, 7) for place in (0, 0.5, 1)}


def flip(path, bit, place):
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2, to be copied."""
    return saved(tmp_path_factory.mktemp("pair"), 1, 2)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_found_and_the_previous_one_used(pair, tmp_path, file, damage):
    run = tmp_path / "run"
    shutil.copytree(pair, run)
    folder = run / "trainer" / "step-0000002"
    DAMAGES[damage](folder / file)
    lines = []
    assert holds(newest(run, report=lines.append), 1)
    assert len(lines) == 1
    assert str(folder) in lines[0]
    assert "step-0000001 instead" in lines[0]
    assert "\n" not in lines[0]
    with pytest.raises(ValueError, match="step-0000002 cannot be used"):
        at(run, 2)


def test_the_manifest_and_the_state_count_everywhere(pair, tmp_path):
    """The manifest's own without a look at other files."""
    run = tmp_path / "run"
    shutil.copytree(pair, run)
    for file, digests in (("manifest.json", False), ("state.json", True)):
        path = run / "trainer" / "step-0000002" / file
        intact = path.read_bytes()
        for k in range(0, len(intact), 3):
            path.write_bytes(intact[:k] + bytes([intact[k] ^ (1 << (k % 8))]) + intact[k + 1 :])
            with pytest.raises(ValueError, match="step-0000002 cannot be used"):
                at(run, 2, digests=digests)
        path.write_bytes(intact)
    assert at(run, 2).step == 2


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(pair, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pair, run)
    (run / "trainer" / "step-0000002").rename(run / "trainer" / "step-0000009")
    lines = []
    assert holds(newest(run, report=lines.append), 1)
    assert "is of step 2" in lines[0]


def test_nothing_that_verifies_is_refused_not_restarted(pair, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pair, run)
    (run / "trainer" / "step-0000001" / "model.safetensors").unlink()
    flip(run / "trainer" / "step-0000002" / "optimizer.safetensors", 3, 0.9)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be resumed from \(step-0000002: optim") as refused:
        newest(run, report=quiet)
    assert "step-0000001: model.safetensors is missing" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_checkpoints_from_before_manifests_are_refused(tmp_path):
    folder = tmp_path / "trainer" / "step-0000010"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 10}))
    with pytest.raises(ValueError, match=r"it has no manifest.json, so it is incomplete or from a version that wrote"):
        newest(tmp_path)


def test_a_later_format_is_refused_by_name(pair, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pair, run)
    path = run / "trainer" / "step-0000002" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    lines = []
    newest(run, report=lines.append)
    assert "its format is 2, this version reads 1" in lines[0]


def test_one_that_another_process_verified_is_opened_without_reading_it_all(pair, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pair, run)
    flip(run / "trainer" / "step-0000002" / "model.safetensors", 0, 1)
    assert at(run, 2, digests=False).step == 2
    with pytest.raises(ValueError, match=r"has no checkpoint of step 3; there are: 1, 2"):
        at(run, 3)


# ------------------------------------------------------------------ kills


@pytest.fixture
def unflushed(monkeypatch):
    """Flushing takes most of the time of a small save, and a killed process loses nothing that it has written."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def in_child(work):
    """Run `work` in a child process without any clean-up; its exit status, 0 if it ran to its end."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the parent's threads are not here, and would be waited for
            signal.alarm(60)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(k, work):
    """Run `work` in a child that dies at its k-th call that changes the disk, halfway through if that writes; whether
    it got that far."""

    def dying():
        calls = 0

        def counted(real, before_death):
            def call(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls == k:
                    before_death(*arguments)
                    os._exit(77)
                return real(*arguments, **options)

            return call

        write = os.write
        os.write = counted(write, lambda fd, data: write(fd, data[: len(data) // 2]))
        for name in ("fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "open"):
            setattr(os, name, counted(getattr(os, name), lambda *arguments: None))
        work()

    status = in_child(dying)
    assert status in (0, 77)
    return status == 77


NAMES = ("model", "ema-0.05")


def step_two(run):
    publish(run, save(run, 2, tensors(2), {}, keep_last=1), NAMES)


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one(tmp_path, unflushed):
    seen = []
    for k in range(1, 1000):
        run = tmp_path / str(k)
        publish(run, save(run, 1, tensors(1), {}, keep_last=1), NAMES)
        hit = killed_at(k, lambda run=run: step_two(run))
        lines = []
        found = newest(run, report=lines.append)
        assert holds(found, 1) or holds(found, 2)
        assert not lines  # what a kill leaves is no damage
        assert all(load_file(run / f"{name}.safetensors") for name in NAMES)
        assert check_digests(run) == []  # and what is recorded of the weights for use is never of others
        ages = [load_file(run / f"{name}.safetensors") for name in NAMES]
        assert ages[1]["weight"][0, 0] >= ages[0]["scalar"], "an average older than the weights"
        seen.append(found.step)
        # The next start brings the weights for use up to date, and the next save leaves no trace of the kill.
        publish(run, found.folder, NAMES)
        for name in NAMES:
            assert (run / f"{name}.safetensors").samefile(found.folder / f"{name}.safetensors")
        publish(run, save(run, 3, tensors(3), {}, keep_last=1), NAMES)
        assert holds(newest(run), 3)
        assert steps_of(run) == ["step-0000003"]
        left = ["digests.json", "ema-0.05.safetensors", "model.safetensors", "trainer"]
        assert sorted(p.name for p in run.iterdir()) == left
        assert check_digests(run) == []
        assert recorded_steps(run) == {"ema-0.05.safetensors": 3, "model.safetensors": 3}
        if not hit:
            break
    assert not hit
    assert seen == sorted(seen)  # old up to the rename, new from there on
    assert set(seen) == {1, 2}
    assert len(seen) > 30


def test_a_kill_while_a_damaged_one_is_replaced(tmp_path, unflushed):
    small = {"model": tensors(2)["ema-0.05"]}
    for k in range(1, 1000):
        run = saved(tmp_path / str(k), 1, 2)
        flip(run / "trainer" / "step-0000002" / "model.safetensors", 0, 0.5)
        hit = killed_at(k, lambda run=run: save(run, 2, small, {}, keep_last=2))
        assert newest(run, report=quiet).step in (1, 2)
        assert holds(newest(saved(run, 3)), 3)
        if not hit:
            break
    assert not hit


def error_of(work):
    """The message of the OSError that `work` raises, empty if it raises none."""
    try:
        work()
    except OSError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["fsync", "write", "replace", "mkdir"])
def test_a_failure_at_any_call_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, name):
    real = getattr(os, name)
    for k in range(1, 100):
        run, calls = saved(tmp_path / str(k), 1), []

        def failing(*arguments, calls=calls, k=k, **options):
            calls.append(1)
            if len(calls) == k:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            message = error_of(lambda run=run: save(run, 2, tensors(2), {}, keep_last=2))
            if message:
                assert "the checkpoint of step 2 could not be written: No space left on device; it needs" in message
        renamed = (run / "trainer" / "step-0000002").exists()  # where the failure was a flush after the rename
        assert holds(newest(run), 2 if renamed else 1)
        assert not [p for p in steps_of(run) if p.endswith(".tmp")]
        if len(calls) < k:
            break
    assert renamed
    assert not message
    assert k > 1


def test_a_full_disk_is_told_in_one_line(tmp_path):
    """A limit on the size of files stands in for the disk: the operating system's own error, from real writes."""
    run = saved(tmp_path, 1)
    message = tmp_path / "message.txt"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        large = {"a": {"x": torch.ones(9)}, "b": {"x": torch.ones(50_000)}}
        message.write_text(error_of(lambda: save(run, 2, large, {}, keep_last=2)))

    assert in_child(limited) == 0
    message = message.read_text()
    assert "\n" not in message
    needed = 4 * 50_009 + len(json.dumps({"step": 2}, indent=2))
    assert "step 2 could not be written: File too large" in message
    assert f"; it needs {needed:,} bytes, " in message
    assert f"are free in {run}" in message
    assert f"{run / 'trainer' / 'step-0000001'} is the last complete one, and the same command goes on" in message
    assert steps_of(run) == ["step-0000001"]
    assert holds(newest(run), 1)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "trainer").write_text("a file in the way")
    with pytest.raises(OSError, match=r"step 1 could not be written: File exists .*; there is none before it"):
        saved(tmp_path, 1)


def test_an_interruption_leaves_nothing_half_written(tmp_path, monkeypatch):
    run = saved(tmp_path, 1)

    def interrupted(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_new", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved(run, 2)
    assert steps_of(run) == ["step-0000001"]


def test_everything_is_on_disk_before_it_is_named(tmp_path, monkeypatch):
    """Files, then the manifest, then the folder that names them, then the rename, then the folder that names that."""
    run, order = saved(tmp_path, 1), []
    fsync, replace = os.fsync, os.replace

    def named(fd):
        return Path(os.readlink(f"/proc/self/fd/{fd}")).relative_to(run).as_posix()

    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(named(fd)), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"{a.name} > {b.name}"), replace(a, b))[1])
    saved(run, 2, keep_last=1)
    staging = "trainer/step-0000002.tmp"
    files = [f"{staging}/{name}" for name in FILES]
    assert sorted(order[:4]) == sorted(files[:4])
    assert order[4:] == [
        files[4],
        staging,
        "step-0000002.tmp > step-0000002",
        "trainer",
        ".",
        "step-0000001 > step-0000001.old.tmp",  # the old one goes once the new one is there for good
    ]


# ------------------------------------------------------------------ which ones are kept


@pytest.mark.parametrize(
    ("keep_last", "best", "kept"),
    [(1, None, [5]), (2, None, [4, 5]), (2, 2, [2, 4, 5]), (2, 5, [4, 5]), (1, 4, [4, 5]), (9, None, [1, 2, 3, 4, 5])],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep_last, best, kept):
    for step in range(1, 6):
        reached = best if best is not None and best <= step else None
        saved(tmp_path, step, keep_last=keep_last, best=reached)
    assert steps_of(tmp_path) == [f"step-{step:07d}" for step in kept]


def test_what_was_passed_over_is_no_reserve(tmp_path):
    """Steps 3 and 4 are damaged, the run resumes from 2: at step 3 the reserve is 2, not what lies after it."""
    saved(tmp_path, 1, 2, 3, 4, keep_last=4)
    for step in (3, 4):
        flip(tmp_path / "trainer" / f"step-{step:07d}" / "model.safetensors", 0, 0.5)
    assert newest(tmp_path, report=quiet).step == 2
    saved(tmp_path, 3)
    assert steps_of(tmp_path) == ["step-0000002", "step-0000003"]
    assert holds(newest(tmp_path), 3)


def test_later_ones_can_be_dropped_at_the_start(tmp_path):
    saved(tmp_path, 1, 2, 3, keep_last=4)
    drop_later(tmp_path, 2)
    assert steps_of(tmp_path) == ["step-0000001", "step-0000002"]


def test_a_cut_off_one_does_not_count_as_kept(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "trainer" / "step-0000002" / "ema-0.05.safetensors").write_bytes(b"")
    saved(tmp_path, 3)
    assert steps_of(tmp_path) == ["step-0000001", "step-0000003"]


def test_an_old_one_that_cannot_be_removed_does_not_stop_training(tmp_path, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    saved(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    saved(tmp_path, 2, keep_last=1)
    assert "step-0000001 could not be removed" in capsys.readouterr().out


# ------------------------------------------------------------------ weights for use


def test_published_weights_take_no_disk_and_outlive_their_checkpoint(tmp_path, monkeypatch):
    publish(tmp_path, save(tmp_path, 1, tensors(1), {}, keep_last=1), ["model", "ema-0.05"])
    for name in ("model", "ema-0.05"):
        assert (tmp_path / f"{name}.safetensors").stat().st_nlink == 2
    saved(tmp_path, 2, keep_last=1)  # killed before publishing
    assert (tmp_path / "model.safetensors").stat().st_nlink == 1
    assert load_file(tmp_path / "model.safetensors")["scalar"] == 1
    publish(tmp_path, newest(tmp_path).folder, ["model", "ema-0.05"])
    assert load_file(tmp_path / "model.safetensors")["scalar"] == 2
    before = (tmp_path / "model.safetensors").stat().st_ino
    monkeypatch.delattr(os, "link")  # not needed where they are up to date
    publish(tmp_path, newest(tmp_path).folder, ["model", "ema-0.05"])
    assert (tmp_path / "model.safetensors").stat().st_ino == before
    assert not (tmp_path / "optimizer.safetensors").exists()


def test_published_weights_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        folder = saved(tmp_path, 1) / "trainer" / "step-0000001"
        publish(tmp_path, folder, ["model"])
        publish(tmp_path, folder, ["ema-0.05"], lambda name, given: {name: given})
        write_tensors(tmp_path / "other.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    for path in tmp_path.glob("*.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_file_systems_without_links_get_copies(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        folder = saved(tmp_path, step) / "trainer" / f"step-{step:07d}"
        publish(tmp_path, folder, ["model"])
        assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert (tmp_path / "model.safetensors").stat().st_nlink == 1


def test_a_link_left_by_a_kill_is_never_written_through(tmp_path, monkeypatch):
    """The temporary name of a process killed between link and rename leads to the previous checkpoint's file."""
    saved(tmp_path, 1, 2)
    first, second = (tmp_path / "trainer" / f"step-000000{k}" for k in (1, 2))
    left = [tmp_path / f".{name}.safetensors.0123456789ab~.safetensors" for name in ("model", "ema-0.05")]
    for path, name in zip(left, ("model", "ema-0.05"), strict=True):
        os.link(first / f"{name}.safetensors", path)
    publish(tmp_path, second, ["ema-0.05"], lambda name, given: {name: given})
    assert not any(path.exists() for path in left)
    os.link(first / "model.safetensors", left[0])
    monkeypatch.setattr(os, "link", lambda a, b: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    publish(tmp_path, second, ["model"])
    assert not left[0].exists()
    assert at(tmp_path, 1).step == 1


def test_what_is_made_from_a_checkpoint_is_made_once(tmp_path):
    made = []

    def doubled(name, given):
        made.append(name)
        return {name: {"weight": given["weight"] * 2}, "adapter": {"name": torch.tensor(len(made))}}

    for step in (1, 2):
        folder = saved(tmp_path, step) / "trainer" / f"step-{step:07d}"
        for _ in range(2):
            publish(tmp_path, folder, ["model"], doubled)
        wanted = tensors(step)["model"]["weight"] * 2
        assert torch.equal(load_file(tmp_path / "model.safetensors")["weight"], wanted)
    assert made == ["model", "model"]
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    publish(tmp_path, folder, ["model"], doubled)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["weight"], wanted)


def test_a_kill_between_files_made_together_is_made_good(tmp_path, unflushed):
    def transform(name, given):
        return {name: {"a": given["scalar"]}, "adapter": {"a": given["scalar"]}}

    folders = [saved(tmp_path, step) / "trainer" / f"step-{step:07d}" for step in (1, 2)]
    for k in range(1, 100):
        publish(tmp_path, folders[0], ["model"], transform)
        hit = killed_at(k, lambda: publish(tmp_path, folders[1], ["model"], transform))
        publish(tmp_path, folders[1], ["model"], transform)
        assert [load_file(tmp_path / f"{name}.safetensors")["a"] for name in ("model", "adapter")] == [2, 2]
        if not hit:
            break
    assert not hit


def test_weights_that_cannot_be_published_are_told_in_one_line(tmp_path, monkeypatch):
    folder = saved(tmp_path, 1) / "trainer" / "step-0000001"

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match=r"could not be brought to step-0000001: .*No space left.* is complete, and the"):
        publish(tmp_path, folder, ["model"])
    assert [p.name for p in tmp_path.iterdir()] == ["trainer"]
