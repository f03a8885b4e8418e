"""Files are replaced whole or not at all, with the access that the umask gives."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teacher.files import (
    remove_temporaries,
    replacing,
)


def _fail_after(_written):
    raise RuntimeError


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
