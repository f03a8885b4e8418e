"""Checks of the header of an MP4 or QuickTime file before a library reads it.

A table in such a header may claim "80 million samples of 1 byte" in 12 bytes, for which FFmpeg allocates an index of 60
bytes per sample: a file of 2 kB costs gigabytes and many seconds. The file's size bounds the number of its samples.
Names and layouts of the boxes: ISO/IEC 14496-12.
"""

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

CONTAINERS = frozenset(
    b"moov moof trak traf mdia minf stbl edts dinf udta mvex meta sinf schi ipro wave envc tref iprp hoov free".split()
)
"""Boxes of boxes, as deep as a reader searches them for tables (`free` and `hoov`: headers under repair)."""
MAX_SAMPLES = 20_000_000
"""Most samples of a file, including those that an edit list repeats; a day at 60 frames/s with AAC has 10 million."""
SMALLEST_SAMPLE = 1 / 16
"""Fewest bytes per sample of uncompressed or lightly compressed sound."""
SPARE = 1000
MAX_BOXES = 500_000
MAX_DEPTH = 12
MAX_TABLE = 256 * 2**20


class BoxError(ValueError):
    """The header of a media file claims more than the file can hold."""


@dataclass
class _Track:
    """The sizes that the tables of one track, or of one fragment, claim."""

    samples: int = 0
    edits: int = 1
    sound: bool = False
    ticks: bool = False
    chunks: int = 0
    runs: np.ndarray | None = None

    def index_entries(self, size: int) -> int:
        """Entries that a reader will make. Raises BoxError where they cannot lie in a file of `size` bytes."""
        if self.sound and self.ticks:  # counted in samples of sound, but read by the chunk
            return self._chunked(size) * self.edits
        if self.samples > size + SPARE:
            raise BoxError(f"its header claims {self.samples} samples in {size} bytes")
        return self.samples * self.edits

    def _chunked(self, size: int) -> int:
        if self.runs is None or not len(self.runs):
            return 0
        first = np.append(self.runs[:, 0], self.chunks + 1).astype(np.float64)
        held = float((np.diff(first).clip(min=0) * self.runs[:, 1]).sum())
        if held > size / SMALLEST_SAMPLE + SPARE:
            raise BoxError(f"its header claims {held:.0f} samples of sound in {size} bytes")
        return int(held / 1024) + self.chunks


class _Walk:
    """One pass over the boxes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.count = 0
        self.entries = 0

    def boxes(self, begin: int, end: int, depth: int, track: _Track | None) -> None:
        """Visit the boxes in [begin, end); a box that claims to be larger than its parent ends with it."""
        if depth > MAX_DEPTH:
            raise BoxError("the boxes of its header are nested too deeply")
        while end - begin >= 8:
            self.count += 1
            if self.count > MAX_BOXES:
                raise BoxError(f"its header has more than {MAX_BOXES} boxes")
            self.file.seek(begin)
            head = self.file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            inside = begin + 8
            if length == 1:
                length, inside = int.from_bytes(head[8:], "big"), begin + 16
            elif length == 0:
                length = end - begin
            if length < inside - begin:
                return
            stop = min(begin + length, end)
            if kind in (b"trak", b"traf"):
                inner = _Track()
                self.boxes(inside, stop, depth + 1, inner)
                self.entries += inner.index_entries(self.size)
                if self.entries > MAX_SAMPLES:
                    raise BoxError(f"its header claims {self.entries} samples, at most {MAX_SAMPLES} are read")
            elif kind == b"cmov":
                raise BoxError("its header is compressed; write it anew with another program")
            elif kind in CONTAINERS:
                extra = 4 if kind == b"meta" and self._bytes(inside, inside + 4) == b"\0\0\0\0" else 0
                self.boxes(inside + extra, stop, depth + 1, track)
            elif track is not None:
                self._table(kind, inside, stop, track)
            begin += length

    def _table(self, kind: bytes, begin: int, end: int, track: _Track) -> None:
        """Tables open with 4 bytes of version and flags; most go on with the number of their rows."""
        if kind == b"hdlr":
            track.sound = self._bytes(begin + 8, begin + 12) == b"soun"
        elif kind in (b"stsz", b"stz2"):
            track.samples = max(track.samples, self._number(begin + 8))
        elif kind == b"trun":
            track.samples += self._number(begin + 4)
        elif kind == b"elst":
            track.edits = max(track.edits, min(self._number(begin + 4), (end - begin) // 12))
        elif kind in (b"stts", b"ctts"):
            rows = self._rows(begin, end, 2)
            track.samples = max(track.samples, int(rows[:, 0].sum()))
            track.ticks |= kind == b"stts" and len(rows) == 1 and int(rows[0, 1]) == 1
        elif kind == b"stsc":
            track.runs = self._rows(begin, end, 3)
        elif kind in (b"stco", b"co64"):
            track.chunks = min(self._number(begin + 4), (end - begin) // 4)

    def _rows(self, begin: int, end: int, columns: int) -> np.ndarray:
        """Rows of a table of 32-bit numbers that is really there, (rows, columns)."""
        count = min(self._number(begin + 4), max(0, end - begin - 8) // (4 * columns))
        if 4 * columns * count > MAX_TABLE:
            raise BoxError(f"its header has a table of {count} rows")
        block = self._bytes(begin + 8, begin + 8 + 4 * columns * count)
        count = len(block) // (4 * columns)
        return np.frombuffer(block, ">u4", count * columns).reshape(count, columns).astype(np.int64)

    def _number(self, at: int) -> int:
        return int.from_bytes(self._bytes(at, at + 4), "big")

    def _bytes(self, begin: int, end: int) -> bytes:
        self.file.seek(begin)
        return self.file.read(end - begin)


def check_boxes(file: BinaryIO) -> None:
    """Raise BoxError if the header of an MP4 or QuickTime file claims more samples than the file can hold.

    Files of other formats pass, because their first bytes do not form such boxes.
    """
    size = os.fstat(file.fileno()).st_size
    _Walk(file, size).boxes(0, size, 0, None)
