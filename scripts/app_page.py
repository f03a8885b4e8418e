"""The web page of the sampler: what is on it, and what a visitor sees of errors. Needs gradio, an optional extra."""

import asyncio
import ipaddress
import re
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import gradio as gr
from gradio.routes import App, ORJSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts import app_html
from scripts.app_files import Workspace
from scripts.app_studio import GRIDS, MAX_SEED, Ask, Going, Setting, StoppedError, Studio
from teacher.media import VIDEO_SUFFIXES
from teacher.network.sequence import MIN_DURATION_S

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
SUFFIXES = sorted({*VIDEO_SUFFIXES, ".webm", ".avi", ".ts", ".mpg", ".wmv"})
STEPS, GUIDANCE = 50, 8.0
"""Ends of the sliders."""
QUEUE = 16
"""Clicks that wait; further ones are told that the queue is full."""
KEPT_VISITORS = 1000
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
"""What a browser may load for this page: nothing from another host."""


SAFE = [
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
LOCAL = ("localhost", "127.0.0.1", "::1")
ANYWHERE = ("0.0.0.0", "::")
"""Addresses to listen at that let other machines in, which know this one under names that are not known here."""
SHARED = ".gradio.live"
UPLOADS_AT_ONCE = 4
REQUEST_BYTES = 2**20
"""Longest request that is no upload, and what an upload may have beside its file."""
DRAINED = 64 * 2**20
GRACE_S = 3.0
"""How long work goes on for which nobody waits: who calls a function of the page asks for its result a moment later."""
UPLOAD, EVENTS = "/gradio_api/upload", re.compile(r"/gradio_api/(queue/data|call/(?:v2/)?\w+/(\w+))")


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Under which names the page answers. A foreign name that points here is how a page of a stranger would read this
    one from within a visitor's browser."""

    host: str
    """Address it listens at."""
    extra: tuple[str, ...] = ()
    """Names it has besides, behind a proxy for example."""
    share: bool = False

    def refusal(self, method: str, headers: Headers) -> str | None:
        """Why a request is not answered; None if it is."""
        named = headers.get("host", "")
        if not self._ours(_name(named)):
            return "this page is not served under that name; start it with --allow-host NAME if it should be"
        origin = headers.get("origin")
        same = origin is not None and urlsplit(origin).netloc.lower() == named.lower()
        if origin is not None and not same and (urlsplit(origin).hostname or "") not in self._extra:
            return "requests from pages of other hosts are refused"
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and (mode != "navigate" or method not in ("GET", "HEAD")):
            return "requests from pages of other hosts are refused"
        return None

    @property
    def _extra(self) -> set[str]:
        return {name.lower() for name in self.extra}

    def _ours(self, name: str) -> bool:
        if name in {*LOCAL, self.host.lower(), *self._extra} or (self.share and name.endswith(SHARED)):
            return True
        if self.host not in ANYWHERE:
            return False
        try:
            ipaddress.ip_address(name)  # an address cannot be pointed elsewhere
        except ValueError:
            return name in {socket.gethostname().lower(), socket.getfqdn().lower()}
        return True


class Visitors:
    """Who waits for which result, and who pressed Stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._left: dict[str, float] = {}
        self._running: Counter[str] = Counter()
        self._stopped: set[str] = set()
        self.closing = threading.Event()

    @contextmanager
    def waiting(self, who: str) -> Iterator[None]:
        """While a connection is open on which results are waited for."""
        with self._lock:
            self._waiting[who] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[who] -= 1
                if not self._waiting[who]:
                    del self._waiting[who]
                    self._left[who] = time.monotonic()
                while len(self._left) > KEPT_VISITORS:
                    self._left.pop(next(iter(self._left)))

    @contextmanager
    def working(self, who: str) -> Iterator[Going]:
        """While work is done for somebody: what to ask before every step of it."""
        began = time.monotonic()
        with self._lock:
            self._running[who] += 1

        def going() -> None:
            with self._lock:
                here, left = who in self._waiting, self._left.get(who, began)
                stopped = who in self._stopped
            if self.closing.is_set():
                raise StoppedError("the page is being closed")
            if stopped:
                raise StoppedError("stopped")
            if not here and time.monotonic() - left > GRACE_S:
                raise StoppedError("nobody waits for this any longer")

        try:
            going()
            yield going
        finally:
            with self._lock:
                self._running[who] -= 1
                if not self._running[who]:
                    del self._running[who]
                    self._stopped.discard(who)

    def stop(self, who: str) -> bool:
        """End what is done for somebody at its next step; whether anything is."""
        with self._lock:
            if who in self._running:
                self._stopped.add(who)
            return who in self._running


class Guard:
    """Answers for this host alone, bounds what is sent, notes who waits, and adds POLICY to every answer."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts, visitors: Visitors, workspace: Workspace, max_bytes: int) -> None:
        self._app, self._hosts, self._visitors, self._workspace = app, hosts, visitors, workspace
        self._max_bytes = max_bytes
        self._uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", POLICY.encode()), *SAFE]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        headers = Headers(scope=scope)
        refused = self._hosts.refusal(scope.get("method", "GET"), headers)
        if refused is not None or scope["type"] == "websocket":  # the page uses none
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse(refused, status_code=403)(scope, receive, answer)
            return
        upload = scope["path"].rstrip("/").endswith(UPLOAD)
        if upload and self._uploading >= UPLOADS_AT_ONCE:
            text = "several videos are being sent already; try again in a moment"
            await PlainTextResponse(text, status_code=503)(scope, receive, answer)
            return
        longest = REQUEST_BYTES + (self._max_bytes if upload else 0)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > longest:
            await _drained(receive)
            await PlainTextResponse("this is too large", status_code=413)(scope, receive, answer)
            return
        self._uploading += upload
        try:
            if upload:
                await asyncio.to_thread(self._workspace.sweep)
            with self._noted(scope):
                await self._app(scope, _bounded(receive, longest), answer)
        finally:
            self._uploading -= upload

    def _noted(self, scope: Scope) -> AbstractContextManager[None]:
        """Results come over connections that stay open until they are there."""
        found = EVENTS.search(scope["path"])
        if scope["method"] != "GET" or found is None:
            return nullcontext()
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        return self._visitors.waiting((found[2] or session)[:100])


class GuardedApp(App):
    """gradio's application behind a guard that comes before all of its own middleware, of which one would tell a
    browser that pages of other hosts may read the answers."""

    guard: Guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self.guard(scope, receive, send)


async def _drained(receive: Receive) -> None:
    """Take and forget what is sent, up to DRAINED bytes: a client that is still sending hears no answer."""
    taken, more = 0, True
    while more and taken < DRAINED:
        message = await receive()
        taken += len(message.get("body", b""))
        more = message.get("more_body", False)


def _bounded(receive: Receive, longest: int) -> Receive:
    """The same stream of a request's body, which ends in an error beyond so many bytes, whatever it said before."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > longest:
            raise HTTPException(status_code=413, detail="this is too large")
        return message

    return counted


def _name(netloc: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


def address(path: Path) -> str:
    """Where the server shows a file of the workspace."""
    return f"/gradio_api/file={quote(str(path))}"


def one_line(call: Callable[..., str], root: Path, visitors: Visitors) -> Callable[..., str]:
    """A callback for whoever sent the request, which ends when nobody waits for it. Its errors become one line on the
    page: the message where it is meant for users, without folders of the server; else only that something failed, and
    the traceback goes to the server's standard error."""
    folders = re.compile(re.escape(str(root)) + r"/(?:[^/\s]+/)*")

    def guarded(request: gr.Request, *given: Any) -> str:
        try:
            with visitors.working(visitor(request)) as going:
                return call(going, *given)
        except (ValueError, OSError) as error:
            return app_html.alert(folders.sub("", " ".join(str(error).split())))
        except Exception:
            traceback.print_exc()
            return app_html.alert("this did not work, through no fault of yours; the server's log says why")

    return guarded


def visitor(request: gr.Request) -> str:
    """Whose request it is: the page open in one tab, or one call of the functions behind it."""
    return str(getattr(request, "session_hash", None) or "")[:100]


def uploads_only(component: gr.File) -> gr.File:
    """The same component, which takes what was uploaded and fetches nothing: given an address in the place of a file,
    gradio would have the server download it."""
    move = component.async_move_resource_to_block_cache

    async def local(path: Any) -> Any:
        if re.match(r"[a-z][a-z0-9+.-]*:", str(path), re.IGNORECASE):
            raise gr.Error("send the video itself; addresses are not fetched", print_exception=False)
        return await move(path)

    object.__setattr__(component, "async_move_resource_to_block_cache", local)  # comes before the class's method
    return component


def actions(studio: Studio, visitors: Visitors) -> dict[str, Callable[..., str]]:
    """What events call: functions from a request and the values of the form to HTML."""
    names = [model.name for model in studio.models]

    def ask(video: object, prompt: Any, negative: Any, duration_s: Any) -> Ask:
        path = studio.workspace.upload(video)
        studio.workspace.sweep(keep=path)
        return Ask(video=path, prompt=prompt, negative_prompt=negative, duration_s=duration_s)

    def look(going: Going, video: object) -> str:
        path = studio.workspace.upload(video)
        studio.workspace.sweep(keep=path)
        return "" if path is None else app_html.preview(path, studio.look(path), address)

    def make(going: Going, video: object, prompt: Any, negative: Any, duration_s: Any, seed: Any, *numbers: Any) -> str:
        wanted = ask(video, prompt, negative, duration_s)
        pairs = zip(names, numbers[::2], numbers[1::2], strict=True)
        settings = [Setting(model=name, steps=steps, guidance=guidance) for name, steps, guidance in pairs]
        return app_html.comparison(studio.compare(wanted, settings, seed, going), address)

    def chosen(model: Any, numbers: Sequence[Any]) -> Setting:
        if model not in names:
            raise ValueError(f"the model must be one of {', '.join(names)}")
        k = 2 * names.index(model)
        return Setting(model=model, steps=numbers[k], guidance=numbers[k + 1])

    def grid(
        going: Going, video: object, prompt: Any, negative: Any, duration_s: Any, seed: Any, model: Any, count: Any,
        *numbers: Any,
    ) -> str:  # fmt: skip
        wanted = ask(video, prompt, negative, duration_s)
        return app_html.grid(studio.grid(wanted, chosen(model, numbers), seed, count, going), address)

    def budget(
        going: Going, video: object, prompt: Any, negative: Any, duration_s: Any, model: Any, *numbers: Any
    ) -> str:
        wanted = ask(video, prompt, negative, duration_s)
        return app_html.budget(studio.budget(wanted, chosen(model, numbers), going))

    root = studio.workspace.root
    return {call.__name__: one_line(call, root, visitors) for call in (look, make, grid, budget)}


def build(studio: Studio, visitors: Visitors, *, starts: dict[str, tuple[int, float]]) -> gr.Blocks:
    """The page. `starts`: steps and guidance that the sliders of every model begin with."""
    do, names = actions(studio, visitors), [model.name for model in studio.models]
    window_s = studio.models[0].pipeline.window_s
    with gr.Blocks(title="Sound from video and words", analytics_enabled=False, delete_cache=(600, 7200)) as page:
        gr.HTML(app_html.heading({m.name: m.pipeline.licence for m in studio.models}, studio.limits), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                video = uploads_only(gr.File(label="Video", file_types=SUFFIXES, type="filepath", height=130))
                shown = gr.HTML(padding=False)
                prompt = gr.Textbox(label="What is to be heard", placeholder="a glass ball bounces", max_lines=3)
                negative = gr.Textbox(label="What is not (acts through guidance)", placeholder="music", max_lines=2)
                longest = max(studio.limits.seconds, MIN_DURATION_S)
                duration = gr.Slider(
                    MIN_DURATION_S, longest, min(window_s, longest), step=0.01, label="Seconds, for words alone"
                )
                numbers = []
                for name in names:
                    steps, guidance = starts[name]
                    with gr.Group():
                        numbers += [
                            gr.Slider(1, STEPS, steps, step=1, label=f"Steps of the {name}"),
                            gr.Slider(0.0, GUIDANCE, guidance, step=0.1, label=f"Guidance of the {name}; 1 is off"),
                        ]
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
                go = gr.Button("Make sound", variant="primary", elem_id="make")
                stop = gr.Button("Stop", elem_id="stop", size="sm")
            with gr.Column(scale=2, min_width=300), gr.Tabs():
                with gr.Tab("Sound"):
                    made = gr.HTML('<p class="mf-soft">Nothing made yet.</p>', elem_id="made", min_height=200)
                with gr.Tab("Seeds"):
                    with gr.Row():
                        which = gr.Radio(names, value=names[0], label="Model", min_width=140)
                        count = gr.Radio(list(GRIDS), value=GRIDS[0], label="Sounds", min_width=120)
                        more = gr.Button("Make the grid", variant="primary", elem_id="more", min_width=140)
                    grid = gr.HTML(elem_id="grid", min_height=120)
                with gr.Tab("Budget"):
                    with gr.Row():
                        whose = gr.Radio(names, value=names[0], label="Model", min_width=140)
                        measure = gr.Button("Measure every stage", elem_id="measure", min_width=140)
                    budget = gr.HTML(elem_id="budget", min_height=120)
        scene = [video, prompt, negative, duration]

        def stopped(request: gr.Request) -> None:
            if not visitors.stop(visitor(request)):
                gr.Info("nothing is being made for you", duration=3)

        # One queue for everything that decodes or computes; a second visitor waits for the first.
        one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work"}
        video.change(do["look"], [video], shown, api_name="look", **one)
        go.click(do["make"], [*scene, seed, *numbers], made, api_name="make", scroll_to_output=True, **one)
        more.click(
            do["grid"], [*scene, seed, which, count, *numbers], grid, api_name="grid", scroll_to_output=True, **one
        )
        measure.click(do["budget"], [*scene, whose, *numbers], budget, api_name="budget", scroll_to_output=True, **one)
        stop.click(stopped, queue=False, api_name="stop")
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    return page


def launch_options(
    studio: Studio, visitors: Visitors, hosts: Hosts, *, port: int, max_megabytes: int
) -> dict[str, Any]:
    """Arguments of `gradio.Blocks.launch`: nothing comes from another host, and only what was made here is shown as it
    is. Uploads are not among `allowed_paths`: gradio gives them out as downloads, so that a page somebody uploads is
    not run as one of this host."""
    app = GuardedApp(docs_url=None, redoc_url=None, openapi_url=None, default_response_class=ORJSONResponse)
    app.guard = Guard(
        super(GuardedApp, app).__call__,
        hosts=hosts,
        visitors=visitors,
        workspace=studio.workspace,
        max_bytes=max_megabytes * 2**20,
    )
    return {
        "server_name": hosts.host,
        "server_port": port,
        "share": hosts.share,
        "allowed_paths": [str(studio.workspace.results)],
        "max_file_size": f"{max_megabytes}mb",
        "_app": app,
        "theme": gr.themes.Default(font=FONT, font_mono=MONO),
        "css": app_html.STYLE,
        "footer_links": [],
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "show_error": False,
        "quiet": True,
    }
