"""The guard before the page: which requests are answered, how much may be sent, and who waits for which result."""

import asyncio
import ipaddress
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from gradio.routes import App
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts.app.studio import Check, StoppedError
from scripts.app.workspace import Workspace

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
"""Addresses that are open to other machines, which may use host names that are not known here."""
SHARED = ".gradio.live"
UPLOADS_AT_ONCE = 4
REQUEST_BYTES = 2**20
"""Largest request in bytes that is not an upload, and the margin of an upload beside its file."""
DRAINED = 64 * 2**20
GRACE_S = 3.0
"""Seconds until a click that nobody waits for ends: a caller asks for the result a moment after the call."""
UPLOAD, EVENTS = "/gradio_api/upload", re.compile(r"/gradio_api/(queue/data|call/(?:v2/)?\w+/(\w+))")


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The host names under which the page answers. Others are refused, because through a foreign name that points here
    a stranger's page could read this one from within a visitor's browser (DNS rebinding)."""

    host: str
    """Address that the server listens on."""
    extra: tuple[str, ...] = ()
    """Further names of the server, for example behind a proxy."""
    share: bool = False

    def refusal(self, method: str, headers: Headers) -> str | None:
        """The reason why a request is refused; None if it is answered."""
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
    """Records who waits for which result, and who pressed Stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._left: dict[str, float] = {}
        self._running: Counter[str] = Counter()
        self._stopped: set[str] = set()
        self.closing = threading.Event()

    @contextmanager
    def waiting(self, who: str) -> Iterator[None]:
        """Context of an open connection on which `who` waits for results."""
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
    def working(self, who: str) -> Iterator[Check]:
        """Context of a click that is served; gives the check to call before each step (StoppedError ends the click)."""
        began = time.monotonic()
        with self._lock:
            self._running[who] += 1

        def check() -> None:
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
            check()
            yield check
        finally:
            with self._lock:
                self._running[who] -= 1
                if not self._running[who]:
                    del self._running[who]
                    self._stopped.discard(who)

    def stop(self, who: str) -> bool:
        """End the click of `who` at its next step; returns whether there is one."""
        with self._lock:
            if who in self._running:
                self._stopped.add(who)
            return who in self._running


class Guard:
    """Refuses foreign host names, bounds uploads, records who waits, and adds POLICY to every answer."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts, visitors: Visitors, workspace: Workspace, max_bytes: int) -> None:
        self._app, self._hosts, self._visitors, self._workspace = app, hosts, visitors, workspace
        self._max_bytes = max_bytes
        self._uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
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
        """Record the session whose result this request waits for, while its connection is open."""
        found = EVENTS.search(scope["path"])
        if scope["method"] != "GET" or found is None:
            return nullcontext()
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        return self._visitors.waiting((found[2] or session)[:100])


class GuardedApp(App):
    """gradio's application behind a guard that comes before all of its own middleware, of which one would let a
    browser that pages of other hosts may read the answers."""

    guard: Guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.guard(scope, receive, send)


async def _drained(receive: Receive) -> None:
    """Read and discard the body, up to DRAINED bytes, because a client that is still sending reads no answer."""
    taken, more = 0, True
    while more and taken < DRAINED:
        message = await receive()
        taken += len(message.get("body", b""))
        more = message.get("more_body", False)


def _bounded(receive: Receive, longest: int) -> Receive:
    """The same stream of a request's body, which ends in an error beyond so many bytes, whatever length it stated."""
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
