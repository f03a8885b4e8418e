"""The web page: what its buttons do as plain functions, the files it keeps, and the page itself in a browser."""

import functools
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.app import workspace as workspace_module
from scripts.app.command import App, Stop, serve
from scripts.app.html import alert, comparison, grid, latency
from scripts.app.studio import Limits, Model, ModelSetting, SoundRequest, StoppedError, Studio
from scripts.app.workspace import Workspace
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.encoders.registry import load_encoders
from teacher.media import MediaError, probe, write_video
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant
from teacher.sampling.model_card import ModelCard
from teacher.sampling.pipeline import Pipeline
from teacher.sampling.provenance import read_provenance
from teacher.sampling.stages import DECODE, ENCODING, FLOW, TEXT
from tests.scripts.chromium import Chromium, executable

ROOT = Path(__file__).resolve().parents[2]
STUDENT, TEACHER = (
    ModelSetting(model="student", steps=1, guidance=1.4),
    ModelSetting(model="teacher", steps=2, guidance=1.0),
)
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (pip install 'mf-mjt[app]')"
)


def words(prompt="a bell", negative=None, duration_s=1.0):
    return SoundRequest(video=None, prompt=prompt, negative_prompt=negative, duration_s=duration_s)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of an untrained student and teacher with one codec."""
    folder = tmp_path_factory.mktemp("models")
    codec = EmbeddedCodec.fit([0.1 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))])
    for k, name in enumerate(("student", "teacher")):
        torch.manual_seed(k)
        net = MMAudio(replace(variant("debug_16k"), head_dim=16, interval_embedding=name == "student")).eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
        made = Pipeline(net=net, codec=codec, encoders=load_encoders("embedded"), window_s=1.0, licence=f"<{name}> NC")
        made.save_pretrained(folder / name, ModelCard(name=f"me/{name}", description="x", data="none"))
    return folder


@pytest.fixture(scope="module")
def models(runs):
    return [Model(name=name, pipeline=Pipeline.load(runs / name)) for name in ("student", "teacher")]


@pytest.fixture
def studio(models, tmp_path):
    workspace = Workspace(root=tmp_path / "page")
    workspace.prepare()
    return Studio(models=models, workspace=workspace, limits=Limits(seconds=3.0))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (38, 64, 64, 3), dtype=np.uint8)
    write_video(path, frames, 25.0, 0.1 * np.random.default_rng(1).standard_normal(24_320), 16_000)
    return path


def sent(studio, film, name="holiday.mp4"):
    path = studio.workspace.uploads / "abc" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(film.read_bytes())
    return path


def test_both_models_sound_as_the_pipeline_does_and_files_say_where_they_come_from(studio, models, film):
    video = sent(studio, film)
    ask = SoundRequest(video=video, prompt=" a  bell ", negative_prompt="", duration_s=1.0)
    made = studio.compare(ask, [STUDENT, TEACHER], 7)
    for take, model, setting in zip(made.takes, models, (STUDENT, TEACHER), strict=True):
        wanted = model.pipeline(video=video, prompt="a bell", seeds=7, steps=setting.steps, guidance=setting.guidance)
        assert torch.equal(take.sound.wave, wanted[0].wave)
        assert probe(take.film).duration_s == pytest.approx(38 / 25, abs=1e-3)
        for file in (take.audio, take.film):
            said = read_provenance(file)
            assert (said.seed, said.steps, said.licence) == (7, setting.steps, f"<{model.name}> NC")
            assert (said.source, said.prompt) == ("holiday.mp4", "a bell")
        assert take.picture.read_bytes()[:4] == b"\x89PNG"
    assert made.audio_s == pytest.approx(38 / 25, abs=1e-4)


def test_a_scene_is_encoded_once_for_both_models_and_for_later_clicks(studio, film):
    ask = SoundRequest(video=sent(studio, film), prompt="a bell", negative_prompt=None, duration_s=1.0)
    first = studio.compare(ask, [STUDENT, TEACHER], 0)
    assert first.shared
    for seconds in first.seconds.values():
        assert set(seconds) == {*ENCODING, FLOW, DECODE}
        assert all(value > 0 for value in seconds.values())
    assert first.seconds["student"][TEXT] == first.seconds["teacher"][TEXT]
    again = SoundRequest(
        video=sent(studio, film, "other name.mp4"), prompt="a bell", negative_prompt=None, duration_s=1.0
    )
    later = studio.compare(again, [ModelSetting(model="student", steps=3, guidance=2.0), TEACHER], 5)
    assert not later.shared
    assert set(later.seconds["student"]) == set(later.seconds["teacher"]) == {FLOW, DECODE}
    assert later.takes[0].sound.scene.video == again.video
    other = studio.compare(replace(again, prompt="a drum"), [STUDENT], 5)
    assert TEXT in other.seconds["student"]
    assert "Encoded once for both" in latency(first)
    assert "Encoded by an earlier click" in latency(later)


def test_kept_scenes_are_bounded(studio, monkeypatch):
    monkeypatch.setattr("scripts.app.studio.KEEP_SCENES_S", 2.0)
    for prompt in ("one", "two", "three"):
        studio.compare(words(prompt), [STUDENT], 0)
    assert [key[1] for key in studio._scenes] == ["two", "three"]
    studio.compare(words("four", duration_s=2.5), [STUDENT], 0)
    assert [key[1] for key in studio._scenes] == ["four"]


def test_a_grid_is_one_call_and_equals_single_sounds(studio, monkeypatch):
    calls, call = [], Pipeline.__call__

    def counted(self, *given, **named):
        calls.append(named["seeds"])
        return call(self, *given, **named)

    monkeypatch.setattr(Pipeline, "__call__", counted)
    made = studio.grid(words(), STUDENT, 3, 4)
    assert calls == [[3, 4, 5, 6]]
    assert [take.sound.seed for take in made.takes] == [3, 4, 5, 6]
    assert made.audio_s == pytest.approx(4.0)
    alone = studio.compare(words(), [STUDENT], 5).takes[0].sound.wave
    # Griffin-Lim carries rounding, which depends on the batch, on from round to round: 6e-4 was seen.
    torch.testing.assert_close(made.takes[2].sound.wave, alone, atol=5e-3, rtol=0)
    assert (made.takes[1].sound.wave - alone).abs().max() > 0.05
    assert len(set(re.findall(r'<audio src="([^"]+)"', grid(made, str)))) == 4


def test_the_budget_has_every_stage_of_a_video(studio, film):
    ask = SoundRequest(video=sent(studio, film), prompt="a bell", negative_prompt=None, duration_s=1.0)
    found = studio.budget(ask, STUDENT)
    assert [stage.stage for stage in found.stages] == [*ENCODING, FLOW, "latent decode", "vocoder"]
    assert found.duration_s == 1.0
    assert found.stages[4].setting.guidance == 1.4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda s: words("  "), "upload a video or type"),
        (lambda s: words("x" * 401), "400 characters"),
        (lambda s: words(["a"]), "must be text"),
        (lambda s: words(duration_s="long"), "duration must be a number"),
        (lambda s: s.compare(words(duration_s=3.5), [STUDENT], 0), "too long, this page makes up to 3 s"),
        (lambda s: s.compare(words(duration_s=0.1), [STUDENT], 0), "shortest sound"),
        (lambda s: s.compare(words(), [STUDENT], -1), "seed must be a number from 0"),
        (lambda s: s.compare(words(), [STUDENT], 1.5), "seed must be a whole number"),
        (lambda s: s.compare(words(negative="music"), [TEACHER], 0), "negative prompt takes effect through guidance"),
        (lambda s: s.grid(words(), STUDENT, 0, 400), "4 or 8"),
        (lambda s: s.grid(words(), ModelSetting(model="x", steps=1, guidance=1.0), 0, 4), "student, teacher"),
        (lambda s: ModelSetting(model="student", steps=10**6, guidance=1.0), "steps of the student"),
        (lambda s: ModelSetting(model="student", steps=1, guidance=float("nan")), "guidance of the student"),
        (lambda s: ModelSetting(model="student", steps=True, guidance=1.0), "steps of the student"),
    ],
)
def test_wrong_wishes_are_refused_in_one_line(studio, wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        wrong(studio)
    assert "\n" not in str(error.value)
    assert not list(studio.workspace.results.iterdir())


def test_videos_that_are_too_long_or_no_videos_are_refused(studio, film):
    video = sent(studio, film)
    studio.limits = Limits(seconds=1.0)
    with pytest.raises(MediaError, match=r"lasts 1\.5 s, this page takes up to 1 s"):
        studio.compare(SoundRequest(video=video, prompt=None, negative_prompt=None, duration_s=1.0), [STUDENT], 0)
    video.write_text("not a film")
    with pytest.raises(MediaError, match="not a media file"):
        studio.check_video(video)


def test_only_uploads_are_opened(studio, film, tmp_path):
    workspace = studio.workspace
    assert workspace.upload(None) is None
    assert workspace.upload(str(sent(studio, film))).name == "holiday.mp4"
    (workspace.uploads / "link.mp4").symlink_to(film)
    (workspace.uploads / "inside.mp4").symlink_to(sent(studio, film))
    for other in (film, "/etc/passwd", workspace.uploads / ".." / ".." / "x", workspace.uploads / "link.mp4", 3, ["a"]):
        with pytest.raises(ValueError, match="files of the server are not opened"):
            workspace.upload(other)
    for gone in (workspace.uploads / "gone.mp4", workspace.uploads / "inside.mp4", workspace.uploads):
        with pytest.raises(ValueError, match="send it again"):
            workspace.upload(gone)


def test_old_results_and_uploads_are_removed(studio, film, monkeypatch):
    monkeypatch.setattr(workspace_module, "KEEP_RESULTS", 2)
    made = [studio.compare(words(), [STUDENT], seed).takes[0].audio for seed in range(3)]
    assert [path.exists() for path in made] == [False, True, True]
    workspace, now = studio.workspace, 100_000.0
    monkeypatch.setattr(workspace_module.time, "monotonic", lambda: now)
    old, middle, new = (sent(studio, film, f"{k}.mp4") for k in range(3))
    for path, at in ((old, 96_000.0), (middle, 99_980.0), (new, 99_990.0)):
        workspace._used[path] = at
    workspace.sweep(keep=old)
    assert old.exists()
    workspace.sweep()
    assert [path.exists() for path in (old, middle, new)] == [False, True, True]
    monkeypatch.setattr(workspace_module, "KEEP_UPLOADS_BYTES", int(1.5 * film.stat().st_size))
    workspace.sweep()
    assert [path.exists() for path in (middle, new)] == [False, True]


def test_results_beyond_their_bytes_are_removed(studio, monkeypatch):
    first = studio.compare(words(), [STUDENT], 0).takes[0].audio
    monkeypatch.setattr(workspace_module, "KEEP_RESULTS_BYTES", 1)
    second = studio.compare(words(), [STUDENT], 1).takes[0].audio
    assert (first.exists(), second.exists()) == (False, True)


def test_a_clock_that_is_set_back_removes_nothing_that_is_new(tmp_path, monkeypatch):
    workspace = Workspace(root=tmp_path)
    workspace.prepare()
    for _ in range(workspace_module.KEEP_RESULTS):
        os.utime(workspace.new_result(), (time.time() + 3600,) * 2)
    new, newer = workspace.new_result(), workspace.new_result()
    assert new.exists()
    assert newer.exists()
    upload = workspace.uploads / "a.mp4"
    upload.write_bytes(b"x")
    os.utime(upload, (time.time() - 7200,) * 2)
    workspace.sweep()
    assert upload.exists()


def test_a_workspace_is_removed_and_so_are_those_of_servers_that_were_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "from scripts.app.workspace import Workspace; import os, signal\nwith Workspace.temporary() as w:\n"
    code += "    (w.uploads / 'private.mp4').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert len(list(tmp_path.glob("mf-app-*/uploads/private.mp4"))) == 1
    (tmp_path / "mf-app-of-something-else").mkdir()
    with Workspace.temporary() as living:
        assert sorted(tmp_path.iterdir()) == sorted([living.root, tmp_path / "mf-app-of-something-else"])
        with Workspace.temporary() as other:
            assert living.uploads.is_dir()
            assert other.uploads.is_dir()
    assert not living.root.exists()
    with pytest.raises(ValueError, match="being closed"):
        living.new_result()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_wait_and_are_given_back(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        os.kill(os.getpid(), number)
        stop.wait()
    assert stop.signal == number
    signal.signal(number, before)
    with Stop():
        pass
    assert signal.getsignal(number) == before


def test_a_closed_terminal_is_nothing_to_a_server_that_was_told_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_ends_at_the_next_step_and_leaves_nothing(studio):
    """Checked at the start, before the text, before the flow and each of its 2 steps for 3 windows together, before
    latent decoder and vocoder, and before the files: 8 times."""
    asked = []

    def check(limit):
        asked.append(1)
        if len(asked) > limit:
            raise StoppedError("stopped")

    studio.compare(words(duration_s=2.5), [TEACHER], 0, check=lambda: check(10**6))
    whole = len(asked)
    assert whole == 8
    results = list(studio.workspace.results.iterdir())
    for limit in range(whole):
        asked.clear()
        with pytest.raises(StoppedError):
            studio.compare(words(f"new {limit}", duration_s=2.5), [TEACHER], 0, check=lambda: check(limit))  # noqa: B023
        assert len(asked) == limit + 1
    assert list(studio.workspace.results.iterdir()) == results
    assert studio.compare(words(), [STUDENT], 0).takes
    with pytest.raises(StoppedError):
        studio.budget(words(), STUDENT, check=lambda: check(0))


def test_what_a_click_may_ask_for_is_bounded(studio, film):
    info = probe(film)
    pixels = info.width * info.height * info.fps * info.duration_s
    video = sent(studio, film)
    studio.limits = Limits(pixels=0.9 * pixels)
    with pytest.raises(MediaError, match="billion pixels, this page takes up to"):
        studio.check_video(video)
    studio.limits = Limits(pixels=1.1 * pixels, evaluated_s=3.0)
    assert studio.check_video(video).width == info.width
    guided = ModelSetting(model="teacher", steps=2, guidance=2.0)
    for refused in (
        lambda: studio.compare(words(), [guided], 0),  # 1 s x 2 steps x 2
        lambda: studio.compare(words(), [STUDENT, TEACHER], 0),  # 2 + 2
        lambda: studio.grid(words(), ModelSetting(model="student", steps=1, guidance=1.0), 0, 4),
        lambda: studio.budget(words(), TEACHER),
    ):
        with pytest.raises(ValueError, match=r"seconds x evaluations; a click may have 3"):
            refused()
    assert studio.compare(words(), [TEACHER], 0).takes
    assert not list(studio.workspace.uploads.glob("*.tmp"))


@needs_gradio
def test_work_nobody_waits_for_ends_and_stop_ends_its_own(monkeypatch):
    from scripts.app import guard

    now = 0.0
    monkeypatch.setattr(guard.time, "monotonic", lambda: now)
    visitors = guard.Visitors()
    with visitors.waiting("a"), visitors.working("a") as going, visitors.working("b") as other:
        now = 100.0
        going()
        with pytest.raises(StoppedError, match="nobody waits"):
            other()
        assert visitors.stop("a")
        with pytest.raises(StoppedError, match="stopped"):
            going()
    assert not visitors.stop("a")
    with visitors.working("a") as going:  # it has left just now
        now = 100.0 + guard.GRACE_S
        going()
        now += 0.1
        with pytest.raises(StoppedError, match="nobody waits"):
            going()
    with pytest.raises(StoppedError, match="nobody waits"), visitors.working("a"):
        pass
    visitors.closing.set()
    with pytest.raises(StoppedError, match="being closed"), visitors.waiting("c"), visitors.working("c"):
        pass
    assert guard.EVENTS.search("/gradio_api/queue/data")
    assert guard.EVENTS.search("/gradio_api/call/make/abc123")[2] == "abc123"


@needs_gradio
@pytest.mark.parametrize(
    ("hosts", "headers", "answered"),
    [
        ({}, {"host": "localhost:7860"}, True),
        ({}, {"host": "[::1]:7860"}, True),
        ({}, {"host": "evil.example"}, False),
        ({}, {"host": "localhost.evil.example"}, False),
        ({}, {"host": ""}, False),
        ({}, {"host": "[::1"}, False),
        ({}, {}, False),
        ({}, {"host": "192.168.0.9:7860"}, False),
        ({"host": "0.0.0.0"}, {"host": "192.168.0.9:7860"}, True),
        ({"host": "0.0.0.0"}, {"host": "evil.example"}, False),
        ({"host": "192.168.0.9"}, {"host": "192.168.0.9:7860"}, True),
        ({"extra": ("studio.example",)}, {"host": "studio.example"}, True),
        ({"share": True}, {"host": "abc.gradio.live"}, True),
        ({}, {"host": "abc.gradio.live"}, False),
        ({}, {"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        ({}, {"host": "localhost:7860", "origin": "http://localhost:3000"}, False),
        ({}, {"host": "localhost:7860", "origin": "http://evil.example"}, False),
        ({}, {"host": "localhost:7860", "origin": "null"}, False),
        ({"extra": ("studio.example",)}, {"host": "localhost:7860", "origin": "https://studio.example"}, True),
        ({}, {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
        ({}, {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ({}, {"host": "localhost", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, True),
    ],
)
def test_the_page_answers_under_its_own_names_only(hosts, headers, answered):
    from starlette.datastructures import Headers

    from scripts.app.guard import Hosts

    refusal = Hosts(**({"host": "127.0.0.1"} | hosts)).refusal("GET", Headers(headers))
    assert (refusal is None) == answered
    navigated = {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert Hosts(host="localhost").refusal("POST", Headers(navigated)) is not None


def test_what_comes_from_outside_is_escaped(studio, film):
    made = studio.compare(
        SoundRequest(video=sent(studio, film, "<b>x.mp4"), prompt="<script>", negative_prompt=None, duration_s=1.0),
        [STUDENT],
        0,
    )
    page = comparison(made, str)
    assert "<script>" not in page
    assert "<b>" not in page
    assert "Licence: &lt;student&gt; NC" in page
    assert alert("<i>") == '<p class="mf-alert" role="alert">&lt;i&gt;</p>'


def test_the_command_refuses_wrong_numbers_and_a_missing_gradio(monkeypatch):
    for wrong in ({"max_seconds": 0.1}, {"port": 0}, {"max_megabytes": 0}, {"max_gigapixels": 0}, {"max_work": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            App(**wrong)
    assert App(max_gigapixels=2, max_work=7).limits == Limits(seconds=60.0, pixels=2e9, evaluated_s=7)
    assert [s.model for s in App(teacher=None).settings] == ["student"]
    assert App(teacher_steps=9, teacher_guidance=4.5).settings[1] == ModelSetting(
        model="teacher", steps=9, guidance=4.5
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"mf-mjt\[app\]"):
        serve(App())


@needs_gradio
def test_callbacks_show_one_line_and_no_folder_of_the_server(studio, film, capsys, monkeypatch):
    from scripts.app.guard import Hosts, Visitors
    from scripts.app.page import actions, launch_options

    visitors = Visitors()
    do = {name: functools.partial(call, None) for name, call in actions(studio, visitors).items()}
    bad = sent(studio, film, "bad.mp4")
    bad.write_text("nothing")
    numbers = (1, 1.4, 2, 1.4)
    shown = do["make"](str(bad), "", "", 1.0, 0, *numbers)
    assert shown.startswith('<p class="mf-alert" role="alert">bad.mp4: is not a media file')
    assert do["look"](None) == ""
    assert "files of the server" in do["look"]("/etc/passwd")
    assert "upload a video" in do["grid"](None, None, None, 1.0, 0, "student", 4, *numbers)
    assert "must be one of" in do["budget"](None, "x", None, 1.0, "nobody", *numbers)
    monkeypatch.setattr(Studio, "compare", lambda *_: 1 / 0)
    shown = do["make"](None, "a bell", "", 1.0, 0, *numbers)
    assert "no fault of yours" in shown
    assert "Zero" not in shown
    assert "ZeroDivisionError" in capsys.readouterr().err
    hosts = Hosts(host="127.0.0.1", share=True)
    options = launch_options(studio, visitors, hosts, port=1, max_megabytes=7)
    assert (options["share"], options["max_file_size"], options["server_port"]) == (True, "7mb", 1)
    assert options["allowed_paths"] == [str(studio.workspace.results)]


WATCHED = """
import sys
def watch(event, given):
    if event == "socket.connect" and isinstance(given[1], tuple) and not str(given[1][0]).startswith(("127.", "::1")):
        print("OUTSIDE", given[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and given[0] not in ("127.0.0.1", "localhost", None):
        print("OUTSIDE", given[0], file=sys.stderr, flush=True)
sys.addaudithook(watch)
from scripts.app import cli
cli()
"""


@pytest.fixture(scope="module")
def served(runs, tmp_path_factory):
    """Address of a running page, and its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("served")
    (folder / "tmp").mkdir()
    command = [sys.executable, "-c", WATCHED, "--run", str(runs / "student"), "--teacher", str(runs / "teacher")]
    command += ["--port", str(port), "--max-seconds", "3", "--max-megabytes", "1", "--teacher-steps", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while "Ctrl-C" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the page does not come up"
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", folder
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
    assert not list((folder / "tmp").glob("mf-app-*")), "files of the page were left behind"
    assert "OUTSIDE" not in (folder / "log").read_text()
    refused = (folder / "log").read_text().count("was not uploaded by a user")
    assert (folder / "log").read_text().count("Traceback") == refused


def post(url, body, kind="application/json"):
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def upload(url, name, data):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return json.loads(
        post(f"{url}/gradio_api/upload", head + data + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    )


def called(url, name, *values):
    """The last event of a call of the page's API."""
    event = json.loads(post(f"{url}/gradio_api/call/{name}", json.dumps({"data": values}).encode()))["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/{name}/{event}", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return lines[-3].removeprefix("event: "), json.loads(lines[-2].removeprefix("data: "))


@pytest.mark.slow
@needs_gradio
def test_the_api_of_the_served_page(served, film, runs):
    url, folder = served
    [path] = upload(url, "clip.mp4", film.read_bytes())
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    numbers = (1, 1.4, 2, 1.0)
    event, [made] = called(url, "make", file, "a bell", "", 1.0, 3, *numbers)
    assert event == "complete"
    [sound, _] = re.findall(r'<audio src="([^"]+)"', made)
    with urllib.request.urlopen(url + sound, timeout=30) as answer:
        (folder / "got.flac").write_bytes(answer.read())
    assert read_provenance(folder / "got.flac").seed == 3
    event, [shown] = called(url, "grid", None, "a bell", None, 1.0, 0, "teacher", 8, *numbers)
    assert (event, shown.count("<audio")) == ("complete", 8)
    for named in (runs / "student" / "config.json", "/etc/passwd", "http://192.0.2.1/x.mp4", "HTTPS://192.0.2.1/x.mp4"):
        event, answer = called(url, "look", {"path": str(named), "meta": {"_type": "gradio.FileData"}})
        assert event == "error" or "mf-alert" in answer[0], answer
    for hidden in (runs / "student" / "config.json", "/etc/passwd", folder / "log"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{url}/gradio_api/file={hidden}", timeout=30)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        upload(url, "large.mp4", bytes(2 << 20))
    with pytest.raises(urllib.error.HTTPError, match="413"):
        post(f"{url}/gradio_api/call/make", b" " * (2 << 20))
    for name, value in (("Host", "evil.example"), ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")):
        foreign = {"Content-Type": "application/json", "Sec-Fetch-Mode": "cors", name: value}
        for method in ("GET", "POST", "OPTIONS"):
            request = urllib.request.Request(f"{url}/config", headers=foreign, method=method)
            with pytest.raises(urllib.error.HTTPError, match="403") as refused:
                urllib.request.urlopen(request, timeout=30)
            assert refused.value.headers["Access-Control-Allow-Origin"] is None
            assert refused.value.headers["X-Frame-Options"] == "DENY"
    [page] = upload(url, "page.html", b"<script>alert(1)</script>")
    with urllib.request.urlopen(f"{url}/gradio_api/file={page}", timeout=30) as answer:
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Frame-Options"] == "DENY"
    numbers = (50, 8.0, 50, 8.0)  # nobody waits for these: the next visitor does not either
    for _ in range(3):
        post(
            f"{url}/gradio_api/call/grid",
            json.dumps({"data": (None, "x", "", 2.0, 0, "teacher", 8, *numbers)}).encode(),
        )
    began = time.monotonic()
    event, [made] = called(url, "make", None, "a bell", "", 1.0, 3, 1, 1.4, 2, 1.0)
    assert event == "complete"
    assert "<audio" in made
    assert time.monotonic() - began < 30


@pytest.mark.slow
@needs_gradio
@pytest.mark.skipif(executable() is None, reason="neither Chromium nor Chrome is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(served, film, tmp_path, width):
    url, _ = served
    browser = Chromium(tmp_path / "profile", width=width)
    try:
        browser.call("Page.navigate", url=url)
        browser.until("document.querySelector('#make')")
        browser.js("document.querySelector('#make').click()")
        browser.until("document.querySelector('#made .mf-alert')")
        assert "upload a video or type" in browser.js("document.querySelector('#made').innerText")
        browser.files("input[type=file]", film)
        browser.until("document.querySelector('.mf-preview video')?.readyState > 0")
        browser.js("document.querySelector('#make').click()")
        browser.until("document.querySelectorAll('#made .mf-card').length == 2")
        players = "[...document.querySelectorAll('#made audio, #made video')]"
        browser.until(f"{players}.every(p => p.readyState > 0)")
        assert browser.js(f"{players}.map(p => p.duration)") == pytest.approx([1.52] * 4, abs=0.05)
        browser.until("[...document.querySelectorAll('#made img')].every(i => i.naturalWidth == 480)")
        assert "codec decode" in browser.js("document.querySelector('#made table').innerText")
        browser.js("[...document.querySelectorAll('[role=tab]')].find(t => t.innerText.includes('Seeds')).click()")
        browser.until("document.querySelector('#more')?.offsetParent")
        browser.js("document.querySelector('#more').click()")
        browser.until("document.querySelectorAll('#grid .mf-card').length == 4")
        assert browser.js("document.documentElement.scrollWidth") <= width
        outside = [r for r in browser.requests if not r.startswith((url, "data:", "blob:", "about:"))]
        assert outside == []
        assert browser.errors == []
    finally:
        browser.close()
