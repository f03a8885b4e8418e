"""Downloads from a local server: whole, cut, resumed, refused; and what is in the folder afterwards."""

import hashlib
import http.server
import re
import threading
from dataclasses import replace

import pytest

from teacher.files.errors import WeightsError
from teacher.weights.cards import CARDS, COMPONENTS, Card, bundle, card
from teacher.weights.fetch import Fetcher, mismatch

CONTENT = bytes(range(256)) * 12_000  # 3 MB: three blocks
TAG = '"version 1"'


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`; the switches on the server make it misbehave."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        content, begin = server.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and server.ranges and self.headers.get("If-Range") == server.tag:
            begin = int(asked[1])
            if begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin + server.shift}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if not server.endless:
            self.send_header("Content-Length", str(len(content) - begin))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        while server.endless:
            try:
                self.wfile.write(bytes(1 << 18))
            except OSError:
                self.close_connection = True
                return
        end = server.cuts.pop(0) if server.cuts else len(content)
        self.wfile.write(content[begin:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.content, made.tag, made.ranges, made.shift = CONTENT, TAG, True, 0
    made.cuts, made.errors, made.asked, made.endless = [], [], [], False
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def known():
    return Card(
        component="vae_16k",
        kind="vae",
        file="file.pth",
        url="http://127.0.0.1:9/never",
        size=len(CONTENT),
        md5=hashlib.md5(CONTENT).hexdigest(),
        licence="none",
        project="test",
    )


def fetcher(server, folder, **changes):
    return Fetcher(folder=folder, base_url=server.url, **{"pause_s": 0.0, **changes})


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("published", [True, False])
def test_a_server_that_never_ends_is_left_after_the_published_size(server, known, tmp_path, published):
    """Without a stated length too; what has no published size is a configuration of a few kilobytes."""
    server.endless = True
    asked = known if published else card("bigvgan_v2_44k_config")
    most, seen = (int(1.1 * len(CONTENT)), []) if published else (8 << 20, [])
    with pytest.raises(WeightsError, match=f"holds more than {most} bytes"):
        fetcher(server, tmp_path)(asked, progress=lambda done, total: seen.append(done))
    assert max(seen) <= most + (1 << 20)
    assert names(tmp_path) == []
    assert len(server.asked) == 1


def test_a_file_is_fetched_whole_and_then_left_alone(server, known, tmp_path):
    seen = []
    path = fetcher(server, tmp_path / "weights")(known, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert names(tmp_path / "weights") == ["file.pth"]
    assert [total for _, total in seen] == [len(CONTENT)] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == len(CONTENT)
    before = path.stat().st_mtime_ns
    fetcher(server, tmp_path / "weights")(known)
    assert path.stat().st_mtime_ns == before
    assert len(server.asked) == 1


def test_a_broken_connection_is_resumed_where_it_broke(server, known, tmp_path):
    server.cuts = [1_000_000, 2_000_000]
    seen = []
    path = fetcher(server, tmp_path)(known, progress=lambda done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert [(r, t) for _, r, t in server.asked] == [
        (None, None), ("bytes=1000000-", TAG), ("bytes=2000000-", TAG),
    ]  # fmt: skip
    assert seen == sorted(set(seen))


def test_the_next_call_goes_on_where_the_last_gave_up(server, known, tmp_path):
    server.cuts = [1_000_000]
    with pytest.raises(WeightsError, match=r"broke off \(1 attempts\); 1000000 bytes are stored"):
        fetcher(server, tmp_path, attempts=1)(known)
    assert names(tmp_path) == ["file.pth.part", "file.pth.part.tag"]
    assert fetcher(server, tmp_path)(known).read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=1000000-"
    assert names(tmp_path) == ["file.pth"]


def test_a_server_without_ranges_starts_over(server, known, tmp_path):
    server.ranges, server.cuts = False, [2_500_000]
    seen = []
    path = fetcher(server, tmp_path)(known, progress=lambda done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert seen == sorted(set(seen))


def test_a_changed_file_is_not_joined_to_the_old_half(server, known, tmp_path):
    server.cuts = [1_000_000]
    with pytest.raises(WeightsError):
        fetcher(server, tmp_path, attempts=1)(known)
    server.content, server.tag = CONTENT[::-1], '"version 2"'
    changed = replace(known, md5=hashlib.md5(CONTENT[::-1]).hexdigest())
    assert fetcher(server, tmp_path)(changed).read_bytes() == CONTENT[::-1]


def test_without_a_version_nothing_is_resumed(server, known, tmp_path):
    server.tag, server.cuts = "", [1_000_000]
    assert fetcher(server, tmp_path)(known).read_bytes() == CONTENT
    assert [r for _, r, _ in server.asked] == [None, None]


def test_a_part_that_is_complete_needs_no_bytes(server, known, tmp_path):
    (tmp_path / "file.pth.part").write_bytes(CONTENT)
    (tmp_path / "file.pth.part.tag").write_text(TAG)
    assert fetcher(server, tmp_path)(known).read_bytes() == CONTENT
    assert names(tmp_path) == ["file.pth"]


def test_a_part_longer_than_the_file_is_dropped(server, known, tmp_path):
    (tmp_path / "file.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "file.pth.part.tag").write_text(TAG)
    assert fetcher(server, tmp_path)(known).read_bytes() == CONTENT
    assert [r for _, r, _ in server.asked] == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_server_that_resumes_elsewhere_is_refused(server, known, tmp_path):
    server.cuts, server.shift = [1_000_000], 7
    with pytest.raises(WeightsError, match="asked for bytes from 1000000 on"):
        fetcher(server, tmp_path)(known)
    assert names(tmp_path) == []


def test_corrupted_bytes_are_not_kept(server, known, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(WeightsError, match=f"its md5 is .*, published is {known.md5}; it was discarded"):
        fetcher(server, tmp_path)(known)
    assert names(tmp_path) == []


def test_a_page_instead_of_the_file_is_refused_before_it_is_stored(server, known, tmp_path):
    server.content = b"<html>sign in first</html>"
    with pytest.raises(WeightsError, match=r"holds 26 bytes, file\.pth is published with about 3M"):
        fetcher(server, tmp_path)(replace(known, md5=None))
    assert names(tmp_path) == []


def test_a_missing_file_is_not_asked_for_twice(server, known, tmp_path):
    server.errors = [404, 404]
    with pytest.raises(WeightsError, match=f"{server.url}/file.pth: the server answers 404"):
        fetcher(server, tmp_path)(known)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_busy_server_is_asked_again(server, known, tmp_path):
    server.errors = [503, 429]
    assert fetcher(server, tmp_path)(known).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_an_unreachable_server_is_one_line(known, tmp_path):
    with pytest.raises(WeightsError, match=r"^http://127.0.0.1:9/never cannot be reached: [^\n]*$"):
        Fetcher(folder=tmp_path, pause_s=0.0)(known)
    assert names(tmp_path) == []


@pytest.mark.parametrize("there", [b"too short", CONTENT[:-1] + b"?"])
def test_another_file_of_that_name_is_never_overwritten(server, known, tmp_path, there):
    (tmp_path / "file.pth").write_bytes(there)
    with pytest.raises(WeightsError, match=r"exists but is not the published file: its? .*; move it away first"):
        fetcher(server, tmp_path)(known)
    assert (tmp_path / "file.pth").read_bytes() == there
    assert server.asked == []


def test_a_folder_in_the_place_of_the_file_is_refused(server, known, tmp_path):
    (tmp_path / "file.pth").mkdir()
    with pytest.raises(WeightsError, match="not a regular file"):
        fetcher(server, tmp_path)(known)


def test_too_little_space_is_said_before_the_first_byte(server, known, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(WeightsError, match=f"{len(CONTENT)} bytes are still to come, 1000 are free"):
        fetcher(server, tmp_path)(known)
    assert names(tmp_path) == []


def test_sha256_goes_before_md5(known, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    assert mismatch(path, known) is None
    assert mismatch(path, replace(known, sha256=hashlib.sha256(CONTENT).hexdigest(), md5="0" * 32)) is None
    assert "its sha256 is" in mismatch(path, replace(known, sha256="0" * 64))


@pytest.mark.parametrize("base", ["file:///etc", "ftp://host/x", "weights"])
def test_only_web_addresses_are_mirrors(tmp_path, base):
    with pytest.raises(ValueError, match="base_url must begin with http"):
        Fetcher(folder=tmp_path, base_url=base)


def test_cards_name_every_official_file_once():
    assert len({c.component for c in CARDS}) == len({c.file for c in CARDS}) == len(CARDS) == 13
    assert len(COMPONENTS) == 11
    for known in CARDS:
        assert known.url.startswith("https://")
        assert known.md5 is None or re.fullmatch("[0-9a-f]{32}", known.md5)
        assert known.licence
        assert "\n" not in known.licence
    assert [c.component for c in CARDS if c.md5 is None] == [
        "bigvgan_v2_44k", "clip_dfn5b_h14_378", "bigvgan_v2_44k_config", "empty_string",
    ]  # fmt: skip
    assert all("CC BY-NC 4.0" in c.licence for c in CARDS if c.kind == "network")


def test_bundles_hold_what_a_variant_needs():
    assert bundle("small_16k") == ("mmaudio_small_16k", "vae_16k", "bigvgan_16k", "synchformer", "clip_dfn5b_h14_378")
    assert bundle("large_44k_v2")[:3] == ("mmaudio_large_44k_v2", "vae_44k", "bigvgan_v2_44k")
    with pytest.raises(WeightsError, match="the published ones are small_16k, small_44k"):
        bundle("debug_16k")
    with pytest.raises(WeightsError, match="unknown component 'clip'"):
        card("clip")


@pytest.mark.parametrize(
    ("component", "text"),
    [("mmaudio_small_16k", "601M"), ("mmaudio_medium_44k", "2.4G"), ("vae_16k", "655M"), ("vae_44k", "1.2G")],
)
def test_sizes_are_those_of_the_numbers_in_the_files(component, text):
    """Published sizes are rounded up; the number of float32 values gives the bytes."""
    values = {"mmaudio_small_16k": 157_283_644, "mmaudio_medium_44k": 621_805_944, "vae_16k": 171_657_378}
    values["vae_44k"] = 305_479_938
    assert card(component).size_text == text
    assert abs(card(component).size / (4 * values[component]) - 1) < 0.002
