"""Bytes on disk, once for everybody: replacing files whole, locks of folders, digests, JSON from strangers."""

from teacher.files.digests import (
    DIGEST,
    DIGESTS,
    check_digests,
    compare_recorded,
    file_sha256,
    parts_digest,
    read_digests,
    recorded_steps,
    same_digest,
    settled_faults,
    write_digests,
)
from teacher.files.locks import LOCK, FolderLock, LockedError, wait_for_lock
from teacher.files.moved import Moved
from teacher.files.replace import flush_folder, new_folder, remove_temporaries, replacing
from teacher.files.text import JSON_LIMIT, check_regular, read_bytes, read_json, split_lines, visible

__all__ = [
    "DIGEST",
    "DIGESTS",
    "FolderLock",
    "JSON_LIMIT",
    "LOCK",
    "LockedError",
    "Moved",
    "check_digests",
    "check_regular",
    "compare_recorded",
    "file_sha256",
    "flush_folder",
    "new_folder",
    "parts_digest",
    "read_bytes",
    "read_digests",
    "read_json",
    "recorded_steps",
    "remove_temporaries",
    "replacing",
    "same_digest",
    "settled_faults",
    "split_lines",
    "visible",
    "wait_for_lock",
    "write_digests",
]
