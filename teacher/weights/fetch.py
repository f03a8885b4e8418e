"""Downloading official files: resumed after an interruption, verified, and renamed when complete.

`NAME.part` holds the bytes received so far and `NAME.part.tag` the version of the file (ETag or date), so that a
resumed download never joins two versions. Only `mf-fetch` uses this module.
"""

import hashlib
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from teacher.files.errors import WeightsError
from teacher.weights.cards import Card

BLOCK = 2**20
USER_AGENT = "mf-mjt"
Progress = Callable[[int, int], None]
"""Called with (bytes received, bytes in all); the first number never decreases."""


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Downloads the files of cards into one folder."""

    folder: Path
    base_url: str | None = None
    """Address of a mirror with the files under their names in the weights folder; None uses the publishers'."""
    attempts: int = 5
    """Connections per file before giving up; each continues where the last one broke off."""
    pause_s: float = 1.0
    """Seconds to wait before the second attempt, growing with every attempt."""
    timeout_s: float = 60.0
    """Seconds without data after which a connection counts as broken."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        if self.base_url is not None and urlsplit(self.base_url).scheme not in ("http", "https"):
            raise ValueError(f"base_url must begin with http:// or https://, got {self.base_url!r}")

    def url(self, card: Card) -> str:
        """The address of a card's file."""
        return card.url if self.base_url is None else f"{self.base_url.rstrip('/')}/{card.file}"

    def __call__(self, card: Card, *, progress: Progress = lambda done, total: None) -> Path:
        """Path of a card's file in the folder; downloads it if it is missing. Raises WeightsError in one line."""
        target = self.folder / card.file
        if target.exists():
            if wrong := mismatch(target, card):
                raise WeightsError(f"{target} exists but is not the published file: {wrong}; move it away first")
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        self._download(self.url(card), part, card, progress)
        if wrong := mismatch(part, card):
            _discard(part)
            raise WeightsError(f"{self.url(card)} did not return the published file: {wrong}; it was discarded")
        part.rename(target)
        _tag(part).unlink(missing_ok=True)
        return target

    def _download(self, url: str, part: Path, card: Card, progress: Progress) -> None:
        highest = 0

        def report(done: int, total: int) -> None:
            nonlocal highest
            if done > highest:
                highest = done
                progress(done, total)

        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause_s * attempt)
            try:
                if self._receive(url, part, card, report):
                    return
                reason = "the connection broke off"
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # nothing after the bytes there are: they are all, or of something else
                    if error.headers.get("Content-Range", "") == f"bytes */{part.stat().st_size}":
                        return
                    _discard(part)
                elif error.code < 500 and error.code not in (408, 429):
                    raise WeightsError(f"{url}: the server answers {error.code} {error.reason}") from error
                reason = f"the server answers {error.code} {error.reason}"
            except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, HTTPException) as error:
                reason = str(getattr(error, "reason", None) or error or type(error).__name__)
                if not highest and isinstance(error, urllib.error.URLError):
                    raise WeightsError(f"{url} cannot be reached: {reason}") from error
        received = part.stat().st_size if part.exists() else 0
        raise WeightsError(
            f"{url}: {reason} ({self.attempts} attempts); {received} bytes are stored, the same command continues there"
        )

    def _receive(self, url: str, part: Path, card: Card, report: Progress) -> bool:
        """Receive over one connection; returns whether the file is complete now."""
        with urllib.request.urlopen(self._request(url, part), timeout=self.timeout_s) as response:
            have = _start(response, part)
            total = have + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
            if total is not None and not card.plausible(total):
                _discard(part)
                raise WeightsError(f"{url}: holds {total} bytes, {card.file} is published with about {card.size_text}")
            _check_space(part, (total or card.size or 0) - have)
            _tag(part).write_text(_version(response))
            with part.open("ab" if have else "wb") as out:
                expected = total or card.size
                done = _copy(response, out, have, card.largest, lambda done: report(done, expected or done))
            if done > card.largest:
                _discard(part)
                raise WeightsError(
                    f"{url}: holds more than {card.largest} bytes, the most that {card.file} can have "
                    f"({card.size_text}); it was discarded"
                )
        return total is None or done == total

    def _request(self, url: str, part: Path) -> urllib.request.Request:
        request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        version = _tag(part).read_text() if _tag(part).is_file() else ""
        if part.is_file() and part.stat().st_size and version:
            request.add_header("Range", f"bytes={part.stat().st_size}-")
            request.add_header("If-Range", version)
        return request


def mismatch(path: Path, card: Card) -> str | None:
    """How a file differs from the published one in size or digest; None if it does not."""
    if not path.is_file():
        return "it is not a regular file"
    if not card.plausible(path.stat().st_size):
        return f"it has {path.stat().st_size} bytes, published are about {card.size_text}"
    for name, published in (("sha256", card.sha256), ("md5", card.md5)):
        if published is not None:
            found = _digest(path, name)
            return None if found == published else f"its {name} is {found}, published is {published}"
    return None


def _digest(path: Path, name: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def _start(response: HTTPResponse, part: Path) -> int:
    """Bytes of the part that remain valid: all if the server continues from there, none if it starts over."""
    if response.status != 206:
        return 0
    have = part.stat().st_size
    given = response.headers.get("Content-Range", "")
    if not given.startswith(f"bytes {have}-"):
        _discard(part)
        raise WeightsError(f"asked for bytes from {have} on, the server gave {given!r}; start again")
    return have


def _copy(response: IO[bytes], out: IO[bytes], have: int, largest: int, report: Callable[[int], None]) -> int:
    """Copy the response to `out`; returns the bytes received in all. Stops reading beyond `largest` bytes."""
    done = have
    while done <= largest and (block := response.read(BLOCK)):
        out.write(block)
        done += len(block)
        report(done)
    return done


def _version(response: HTTPResponse) -> str:
    """The value for an If-Range header: a strong ETag, else the date; empty if the server gives neither."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise WeightsError(f"{part.parent}: {needed} bytes are still to come, {free} are free")


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)
