"""Bytes on disk, once for everybody: replacing files whole, locks of folders, digests, JSON.

Reading and writing tensors is `teacher.files.safetensors`, `components` and `tensor_file`, which are imported by these
names: they need torch, and what stands here does not.
"""

from teacher.files.digests import (
    DIGEST,
    DIGESTS,
    check_digests,
    compare_recorded,
    file_digest,
    file_sha256,
    json_digest,
    parts_digest,
    read_digests,
    recorded_steps,
    same_digest,
    settled_faults,
    tensors_digest,
    write_digests,
)
from teacher.files.json_files import as_json, read_json, write_json, write_text
from teacher.files.lines import append_lines, read_lines
from teacher.files.locks import LOCK, FolderLock, LockedError, wait_for_lock
from teacher.files.moved import Moved
from teacher.files.replace import (
    Written,
    copy_file,
    flush_folder,
    link_file,
    new_folder,
    remove_temporaries,
    replacing,
    write_new,
)
from teacher.files.text import JSON_LIMIT, check_regular, read_bytes, split_lines, visible

__all__ = [
    "DIGEST",
    "DIGESTS",
    "FolderLock",
    "JSON_LIMIT",
    "LOCK",
    "LockedError",
    "Moved",
    "Written",
    "append_lines",
    "as_json",
    "check_digests",
    "check_regular",
    "compare_recorded",
    "copy_file",
    "file_digest",
    "file_sha256",
    "flush_folder",
    "link_file",
    "json_digest",
    "new_folder",
    "parts_digest",
    "read_bytes",
    "read_digests",
    "read_json",
    "read_lines",
    "recorded_steps",
    "remove_temporaries",
    "replacing",
    "same_digest",
    "settled_faults",
    "split_lines",
    "tensors_digest",
    "visible",
    "wait_for_lock",
    "write_digests",
    "write_json",
    "write_new",
    "write_text",
]
