"""Bytes on disk: whole files only, access by the umask, one writer to a folder, digests that are compared."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teacher.files import (
    FolderLock,
    LockedError,
    check_digests,
    compare_recorded,
    file_sha256,
    locks,
    new_folder,
    read_digests,
    read_json,
    recorded_steps,
    remove_temporaries,
    replacing,
    split_lines,
    write_digests,
)

HOLD = """
import sys, time
from pathlib import Path
from teacher.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _fail_after(_written):
    raise RuntimeError


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        _fail_after(temporary.write_text("half"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_access_is_the_umasks_whoever_writes(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "t.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t.safetensors").stat().st_mode) == mode


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "é" * 120 + ".flac", "a." + "s" * 200])
def test_names_as_long_as_a_file_system_takes(tmp_path, name):
    with replacing(tmp_path / name) as temporary:
        temporary.write_bytes(b"x")
    assert (tmp_path / name).read_bytes() == b"x"


def test_two_replacements_at_once_do_not_meet(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "a").read_text() == "1"  # the outer block ends last


def test_leftovers_are_told_from_other_hidden_files(tmp_path):
    with replacing(tmp_path / "a.json") as temporary:
        name = temporary.name
        temporary.write_text("{}")
    (tmp_path / "a.json").unlink()
    for other in (name, ".hidden", ".a.json.swp", ".a.part"):
        (tmp_path / other).write_text("x")
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a.json.swp", ".a.part", ".hidden"]


def test_the_second_writer_is_refused_and_told_who_writes(tmp_path, holder):
    with pytest.raises(LockedError, match=rf"the run is being written by process {holder.pid} on .*--out"):
        FolderLock(tmp_path, what="the run").take()


def test_a_killed_writers_lock_is_gone(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / locks.LOCK).exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / locks.LOCK).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_within_one_process_too(tmp_path):
    with FolderLock(tmp_path), pytest.raises(LockedError):
        FolderLock(tmp_path).take()
    FolderLock(tmp_path).release()  # nothing to give back


def test_where_the_file_system_has_no_locks_a_note_stands_in(tmp_path, monkeypatch):
    def no_locks(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    note = {"host": "elsewhere", "pid": 1, "since": "today", "command": "mf-extract"}
    (tmp_path / locks.LOCK).write_text(json.dumps(note))
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        FolderLock(tmp_path).take()
    old = time.time() - 2 * locks.STALE_AFTER_S
    os.utime(tmp_path / locks.LOCK, (old, old))
    with FolderLock(tmp_path):
        pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / locks.LOCK).write_text(json.dumps(note | {"host": locks.socket.gethostname(), "pid": dead.pid}))
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "file", "folder", "pipe"])
def test_what_is_no_lock_is_neither_followed_nor_destroyed(tmp_path, kind):
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    make = {
        "link": lambda at: at.symlink_to(victim),
        "dangling": lambda at: at.symlink_to(tmp_path / "new"),
        "hard link": lambda at: at.hardlink_to(victim),
        "file": lambda at: at.write_text("precious"),
        "folder": lambda at: at.mkdir(),
        "pipe": os.mkfifo,
    }
    make[kind](out / locks.LOCK)
    with pytest.raises(LockedError, match=r"out/\.lock .*; move it elsewhere or remove it, and run again$"):
        FolderLock(out).take()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()
    assert os.path.lexists(out / locks.LOCK)
    if kind == "file":
        assert (out / locks.LOCK).read_text() == "precious"


@pytest.mark.parametrize("note", [{"pid": 7, "host": "h", "since": "today", "command": "mf-x"}, None])
def test_a_lock_of_another_account_names_its_owner(tmp_path, monkeypatch, note):
    (tmp_path / locks.LOCK).write_text("" if note is None else json.dumps(note))

    def denied(path, *rest, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        taken = FolderLock(tmp_path)
        patch.setattr(taken, "_note", lambda: note or {})
        patch.setattr(locks.os, "open", denied)
        owner = "a process of another account" if note is None else "process 7 on h"
        with pytest.raises(LockedError, match=f"is being written by {owner}.*removed$"):
            taken.take()
        (tmp_path / locks.LOCK).unlink()
        with pytest.raises(PermissionError):
            taken.take()


def test_notes_of_impossible_processes_other_ones_and_the_future_are_stale(tmp_path, monkeypatch):
    def no_locks(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    here = {"host": locks.socket.gethostname(), "since": "today", "command": "mf-extract"}
    path, parent = tmp_path / locks.LOCK, os.getppid()
    path.write_text(json.dumps(here | {"pid": parent, "started": locks._started(parent)}))
    with pytest.raises(LockedError, match=f"process {parent}"):
        FolderLock(tmp_path).take()
    for note in ({"pid": 10**30}, {"pid": parent, "started": 1 + (locks._started(parent) or 0)}):
        path.write_text(json.dumps(here | note))
        with FolderLock(tmp_path):
            assert json.loads(path.read_text())["started"] == locks._started(os.getpid())
    path.write_text(json.dumps(here | {"host": "elsewhere", "pid": 1}))
    ahead = time.time() + 2 * locks.STALE_AFTER_S
    os.utime(path, (ahead, ahead))
    with FolderLock(tmp_path):
        pass


def test_lines_end_at_line_feeds_alone():
    assert split_lines("a\u2028b\n\x85c\x0c\r\nd") == ["a\u2028b", "\x85c\x0c", "d"]
    assert split_lines("") == []
    assert split_lines("a\n\n") == ["a", ""]


def test_json_of_strangers(tmp_path):
    path = tmp_path / "c.json"
    for content, words in (
        ("[" * 100_000, "nested too deep"),
        ("[1]", "not a JSON object"),
        ('{"a": 1', "not valid JSON"),
        ('{"a": "' + "x" * 100 + '"}', "more than 64 bytes"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            read_json(path, limit=64 if "more" in words else 1 << 20)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="not valid JSON"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match="no regular file"):
            read_json(tmp_path / name)


def test_damage_is_named_and_nothing_else(tmp_path):
    for name in ("a", "b", "c", "new"):
        (tmp_path / name).write_bytes(name.encode() * 10)
    write_digests(tmp_path, ["a", "b"], known={"a": (10, file_sha256(tmp_path / "a"))})
    write_digests(tmp_path, ["c"])
    assert check_digests(tmp_path) == []
    (tmp_path / "a").write_bytes(b"aaaaaaaaab")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "c").unlink()
    (tmp_path / "new").write_bytes(b"")
    found = check_digests(tmp_path)
    assert [line.split()[0].rpartition("/")[2] for line in found] == ["a", "b", "c"]
    assert ["damaged" in found[0], "1 bytes instead of 10" in found[1], "missing" in found[2]] == [True] * 3
    assert check_digests(tmp_path, ["new"]) == []


def test_a_new_folder_is_whole_or_absent_and_leaves_what_others_write(tmp_path):
    out, old = tmp_path / "out", time.time() - 3600
    living, dead = (tmp_path / f".out.{token * 12}.part" for token in "ab")
    for folder in (living, dead):
        folder.mkdir()
        (folder / "half").write_text("x")
    with FolderLock(living):
        for folder in (living, dead):
            os.utime(folder, (old, old))
        with new_folder(out) as staging:
            (staging / "sub").mkdir()
            (staging / "sub" / "file").write_text("x")
            assert not out.exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, "out"]
    assert [p.name for p in out.rglob("*")] == ["sub", "file"]
    with pytest.raises(ValueError, match="exists already"), new_folder(out):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "no"):
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="exists already"), new_folder(tmp_path / "raced"):
        shutil.copytree(out, tmp_path / "raced")
    assert not list(tmp_path.glob(".no.*")) + list(tmp_path.glob(".raced.*"))


def test_a_file_is_compared_with_its_record_when_it_is_opened(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345678")
    compare_recorded(path)  # nothing is recorded
    write_digests(tmp_path, ["a.bin"], step=3)
    compare_recorded(path)
    assert recorded_steps(tmp_path) == {"a.bin": 3}
    path.write_bytes(b"12345679")
    with pytest.raises(
        ValueError, match=r"a.bin is damaged.*restore the file, or, if you replaced it on purpose, remove"
    ):
        compare_recorded(path)
    write_digests(tmp_path, (), forget=["a.bin"])
    compare_recorded(path)
    assert read_digests(tmp_path) == {}


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b"])
def test_a_record_that_leaves_its_folder_is_refused(tmp_path, name):
    (tmp_path / "digests.json").write_text(json.dumps({"format": 1, "files": {name: {"bytes": 1, "sha256": "0" * 64}}}))
    with pytest.raises(ValueError, match="outside the folder"):
        check_digests(tmp_path)


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from teacher.files import replacing
from teacher.files.safetensors import stream_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = Path(sys.argv[1])
for write in (lambda t: stream_tensors(t, {"a": torch.zeros(1000)}), lambda t: t.write_bytes(bytes(5000))):
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        assert (error.strerror, error.filename) == ("File too large", str(path)), error
    else:
        raise SystemExit("written")
"""


def test_a_disk_that_takes_no_more_is_an_oserror_that_names_the_file(tmp_path):
    """A limit on the size of files stands for the full disk."""
    (tmp_path / "a").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "a")],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_folder_that_cannot_be_written_to_names_the_file_and_not_the_temporary_one():
    with pytest.raises(OSError, match=r"'/proc/a\.json'"), replacing(Path("/proc/a.json")):
        pass
