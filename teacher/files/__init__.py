"""Files and folders on disk: atomic replacement, locks, digests, text and JSON.

The names exported here need no torch. Import the other modules directly: `safetensors`, `components` and `tensor_file`
read and write tensors, `lines` reads and appends JSON lines, `errors` has the errors and exit statuses, `processes`
coordinates several processes on one folder.
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
from teacher.files.folders import LOCK, FolderLock, LockedError, Moved, new_folder, wait_for_lock
from teacher.files.replace import (
    Written,
    copy_file,
    flush_folder,
    link_file,
    remove_temporaries,
    replacing,
    write_new,
)
from teacher.files.text import (
    as_json,
    check_regular,
    read_bytes,
    read_json,
    split_lines,
    visible,
    write_json,
    write_text,
)

__all__ = [
    "DIGEST",
    "DIGESTS",
    "FolderLock",
    "LOCK",
    "LockedError",
    "Moved",
    "Written",
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
