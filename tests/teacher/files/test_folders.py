"""Folders: one writer at a time, whose lock ends with its process and destroys nothing; new ones are whole or not."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from teacher.files import (
    FolderLock,
    LockedError,
    folders,
    new_folder,
)

HOLD = """
import sys, time
from pathlib import Path
from teacher.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_writer_is_refused_and_told_who_writes(tmp_path, holder):
    with pytest.raises(LockedError, match=rf"the run is being written by process {holder.pid} on .*--out"):
        FolderLock(tmp_path, what="the run").take()


def test_a_killed_writers_lock_is_gone(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / folders.LOCK).exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / folders.LOCK).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_within_one_process_too(tmp_path):
    with FolderLock(tmp_path), pytest.raises(LockedError):
        FolderLock(tmp_path).take()
    FolderLock(tmp_path).release()  # nothing to give back


def test_where_the_file_system_has_no_locks_a_note_stands_in(tmp_path, monkeypatch):
    def no_locks(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.fcntl, "flock", no_locks)
    note = {"host": "elsewhere", "pid": 1, "since": "today", "command": "mf-extract"}
    (tmp_path / folders.LOCK).write_text(json.dumps(note))
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        FolderLock(tmp_path).take()
    old = time.time() - 2 * folders.STALE_AFTER_S
    os.utime(tmp_path / folders.LOCK, (old, old))
    with FolderLock(tmp_path):
        pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / folders.LOCK).write_text(json.dumps(note | {"host": folders.socket.gethostname(), "pid": dead.pid}))
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
    make[kind](out / folders.LOCK)
    with pytest.raises(LockedError, match=r"out/\.lock .*; move it elsewhere or remove it, and run again$"):
        FolderLock(out).take()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()
    assert os.path.lexists(out / folders.LOCK)
    if kind == "file":
        assert (out / folders.LOCK).read_text() == "precious"


@pytest.mark.parametrize("note", [{"pid": 7, "host": "h", "since": "today", "command": "mf-x"}, None])
def test_a_lock_of_another_account_names_its_owner(tmp_path, monkeypatch, note):
    (tmp_path / folders.LOCK).write_text("" if note is None else json.dumps(note))

    def denied(path, *rest, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        taken = FolderLock(tmp_path)
        patch.setattr(taken, "_note", lambda: note or {})
        patch.setattr(folders.os, "open", denied)
        owner = "a process of another account" if note is None else "process 7 on h"
        with pytest.raises(LockedError, match=f"is being written by {owner}.*removed$"):
            taken.take()
        (tmp_path / folders.LOCK).unlink()
        with pytest.raises(PermissionError):
            taken.take()


def test_notes_of_impossible_processes_other_ones_and_the_future_are_stale(tmp_path, monkeypatch):
    def no_locks(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.fcntl, "flock", no_locks)
    here = {"host": folders.socket.gethostname(), "since": "today", "command": "mf-extract"}
    path, parent = tmp_path / folders.LOCK, os.getppid()
    path.write_text(json.dumps(here | {"pid": parent, "started": folders._started(parent)}))
    with pytest.raises(LockedError, match=f"process {parent}"):
        FolderLock(tmp_path).take()
    for note in ({"pid": 10**30}, {"pid": parent, "started": 1 + (folders._started(parent) or 0)}):
        path.write_text(json.dumps(here | note))
        with FolderLock(tmp_path):
            assert json.loads(path.read_text())["started"] == folders._started(os.getpid())
    path.write_text(json.dumps(here | {"host": "elsewhere", "pid": 1}))
    ahead = time.time() + 2 * folders.STALE_AFTER_S
    os.utime(path, (ahead, ahead))
    with FolderLock(tmp_path):
        pass


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
