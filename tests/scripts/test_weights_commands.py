"""`mf-fetch` and `mf-convert` as a user types them."""

import contextlib
import http.server
import threading
from pathlib import Path

import pytest
import torch

from scripts import convert, fetch
from teacher.files.errors import WeightsError
from teacher.weights import layouts
from teacher.weights.cards import CARDS
from teacher.weights.loading import load_network
from teacher.weights.run_folder import read_licence
from tests.teacher import official


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """A command line in this process, in the empty folder tmp_path; the one line of its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def one_error(command, *arguments):
        monkeypatch.setattr("sys.argv", ["mf", *arguments])
        with pytest.raises(SystemExit) as left:
            command.cli()
        lines = capsys.readouterr().err.strip().splitlines()
        assert left.value.code == 2, lines
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return one_error


@contextlib.contextmanager
def mirror(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_list_shows_every_card_with_its_licence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mf-fetch", "--list"])
    fetch.cli()
    printed = capsys.readouterr().out
    for card in CARDS:
        assert f"{card.component}: {card.file}, {card.size_text}, {card.check_text}" in printed
        assert card.licence in printed
    assert list(tmp_path.iterdir()) == []


def test_list_of_a_variant_shows_its_files_alone():
    said = []
    assert fetch.run(fetch.Fetch(variants=("small_16k",), list=True), report=said.append) == []
    assert [text.split(":")[0] for text in said] == [
        "mmaudio_small_16k", "vae_16k", "bigvgan_16k", "synchformer", "clip_dfn5b_h14_378",
    ]  # fmt: skip


def test_a_file_comes_from_a_mirror_after_its_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "empty_string.pth").write_bytes(b"features")
    said = []
    with mirror(tmp_path / "mirror") as url:
        asked = fetch.Fetch(component=("empty_string",), weights_dir=tmp_path / "weights", base_url=url)
        assert fetch.run(asked, report=said.append) == [tmp_path / "weights" / "empty_string.pth"]
    assert (tmp_path / "weights" / "empty_string.pth").read_bytes() == b"features"
    assert "CC BY-NC 4.0" in said[1]
    assert said[-1].endswith("no digest published")


def test_fetching_says_in_one_line_what_is_wrong(typed, tmp_path):
    assert "name a variant (small_16k, small_44k" in typed(fetch)
    assert "unknown variant 'tiny'; the published ones are" in typed(fetch, "tiny")
    (tmp_path / "mirror").mkdir()
    with mirror(tmp_path / "mirror") as url:
        assert f"{url}/v1-16.pth: the server answers 404" in typed(fetch, "--component", "vae_16k", "--base-url", url)
    assert "base_url must begin with http" in typed(fetch, "--component", "vae_16k", "--base-url", "file:///etc")


def test_converting_says_in_one_line_what_is_wrong(typed, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    (tmp_path / "b.pth").write_text("nothing")
    assert (
        "weights/mmaudio_small_16k.pth is not there; fetch it with `mf-fetch small_16k --weights-dir weights`"
    ) in typed(convert, "small_16k")
    assert "b.pth is not a PyTorch checkpoint" in typed(convert, "--file", "b.pth")
    assert "program.pt is a program" in typed(convert, "--file", "program.pt")
    told = typed(convert, "--file", "a.pth", "--component", "vae_16k")
    assert "a.pth as vae_16k does not fit: 57 missing (" in told
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "give a published variant .* or --file"),
        ({"variant": "small_16k", "file": Path("x")}, "give a published variant .* or --file"),
        ({"variant": "small_16k", "component": "vae_16k"}, "--component needs --file"),
        ({"file": Path("x"), "out": Path("y")}, "--out needs a variant"),
        ({"variant": "debug_16k"}, "the published ones are"),
    ],
)
def test_flags_that_do_not_go_together(arguments, match):
    with pytest.raises(ValueError, match=match):
        convert.run(convert.Convert(**arguments))


def test_a_variant_becomes_a_run_folder(tmp_path, monkeypatch, capsys):
    official.use_tiny_network(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    tensors = official.network_tensors()
    torch.save(tensors, "weights/mmaudio_small_16k.pth")
    convert.run(convert.Convert(variant="small_16k"))
    told = capsys.readouterr()
    assert "warning: mmaudio_small_16k.pth is not the published mmaudio_small_16k" in told.err
    assert "missing synchformer (synchformer_state_dict.pth, 907M): needed for video;" in told.out
    run_folder = Path("runs/mmaudio-small-16k")
    assert torch.equal(load_network(run_folder).latent_std, tensors["latent_std"])
    assert "CC BY-NC 4.0" in read_licence(run_folder)
    with pytest.raises(WeightsError, match="without --strict-digest"):
        convert.run(convert.Convert(variant="small_16k", strict_digest=True))
    convert.run(convert.Convert(file=Path("weights/mmaudio_small_16k.pth"), weights_dir=Path("other")))
    assert capsys.readouterr().out.strip() == "other/mmaudio_small_16k.safetensors"
    layouts.layouts.cache_clear()
