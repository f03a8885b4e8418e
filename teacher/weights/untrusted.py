"""Reading checkpoints as nothing but named tensors. A file that contains code is refused, and nothing is executed.

Accepted: PyTorch files (zip or the older pickle) holding a dictionary of tensors, possibly under `generator`, and
safetensors. Values stay on disk until they are used wherever the format allows it.

Before PyTorch reads a file, its zip directory and its pickles are inspected without executing them, because a small
file can request gigabytes of memory.
"""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from teacher.files.components import few, read_tensors
from teacher.files.errors import WeightsError

VOCODER_KEY = "generator"
"""Key of the dictionary of tensors in vocoder files; beside it there may be entries such as a step number."""
MIB = 2**20
LARGEST_PICKLE, LARGEST_PICKLE_WITH_DATA = 16 * MIB, 64 * MIB
"""Largest pickle in bytes: of a list of tensors (100 to 200 bytes per tensor), and of a training state with arrays,
which the caller allows and drops."""
MOST_STEPS = 4_000_000
"""Most opcodes of a pickle, about 40 per tensor; inspecting and executing that many takes seconds."""
LARGEST_DIRECTORY = 32 * MIB
LARGEST_ENCODED = 256 * MIB
"""Most bytes to which the texts of a pickle may expand where arrays, which are stored as encoded texts, are allowed."""
MAGIC = 0x1950A86A20F9469CFC6C
"""First number of files in PyTorch's older format."""
NAMES = re.compile(
    r"collections (OrderedDict|Counter)|torch (Size|Tensor|device|\w+Storage)|torch\.storage \w+Storage|"
    r"torch (u?int\d+|b?float\d+\w*|complex\d+|half|double|float|long|int|short|bool|bfloat16)|"
    r"torch\._utils _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)|torch\.nn\.parameter Parameter|"
    r"(builtins|__builtin__) (set|complex)"
)
"""Names that may occur in a pickle of plain tensors."""
NOT_PLAIN = re.compile(r"torch(\._utils|\._tensor|\.serialization)? _\w+")
"""Names in PyTorch's files of other tensors: sparse, quantised, meta and subclassed ones."""
CALLED = ("GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "BINPERSID")
PLAIN_STEPS = {
    *CALLED,
    *("PROTO", "STOP", "MARK", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
}
"""The opcodes that PyTorch's reader of tensors supports."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read tensors by name. Raises WeightsError in one line for anything but a flat dictionary of plain tensors."""
    if not path.exists():
        raise WeightsError(f"{path} is not there")
    if not path.is_file():
        raise WeightsError(f"{path} is not a file")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty (0 bytes)")
    content = read_tensors(path) if is_safetensors(path) else load_untrusted(path)
    if isinstance(content, Mapping) and isinstance(content.get(VOCODER_KEY), Mapping):
        content = content[VOCODER_KEY]
    return _checked(path, content)


def load_untrusted(path: Path) -> Any:
    """torch.load of tensors only, mapped instead of read where the file is a zip archive.

    Names for which the caller put stand-ins into `torch.serialization.safe_globals` are taken too, and with them longer
    pickles.
    """
    _inspect(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # remarks on the format; what matters is raised
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{path} asks for code ({asked[1]}), not only for tensors: it was not loaded, and nothing in it was run"
            ) from error
        raise WeightsError(f"{path} is not a PyTorch checkpoint; it was not loaded") from error
    except RuntimeError as error:
        if "legacy .tar" in str(error) or "TorchScript" in str(error):
            raise WeightsError(f"{path} is a program or an archive of an old kind, not a state dict") from error
        raise WeightsError(f"{path} is damaged or cut off, or is not a PyTorch checkpoint") from error
    except Exception as error:  # the reader of untrusted pickles fails in as many ways as there are wrong bytes
        raise WeightsError(f"{path} is not a PyTorch checkpoint, or it is damaged ({type(error).__name__})") from error


def _inspect(path: Path) -> None:
    """Raise WeightsError for a file that holds more than a listing of tensors, or whose reading would cost more memory
    than the file has bytes. Nothing in it is carried out."""
    extra = {" ".join(name.rsplit(".", 1)) for name in _allowed_by_caller()}
    limit = LARGEST_PICKLE_WITH_DATA if extra else LARGEST_PICKLE
    with path.open("rb") as stream:
        try:
            if zipfile.is_zipfile(path):
                _inspect_zip(path, stream, limit, extra)
            else:
                _inspect_legacy(path, stream, limit, extra)
        except WeightsError:
            raise
        except Exception as error:  # the readers of zip directories and of opcodes fail in many ways on wrong bytes
            raise WeightsError(
                f"{path} is not a PyTorch checkpoint, or it is damaged ({type(error).__name__})"
            ) from error


def _allowed_by_caller() -> list[str]:
    """Names for which a caller put in something else; what other packages allow for themselves is not meant."""
    return [item[1] for item in torch.serialization.get_safe_globals() if isinstance(item, tuple)]


def _inspect_zip(path: Path, stream: IO[bytes], limit: int, extra: set[str]) -> None:
    if _directory_size(stream) > LARGEST_DIRECTORY:
        raise WeightsError(f"{path} is not a PyTorch checkpoint: the directory of its zip archive is too long")
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise WeightsError(f"{path} is a program or an archive of an old kind, not a state dict")
        pickles = [entry for entry in entries if entry.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if not pickles:
            raise WeightsError(f"{path} is not a PyTorch checkpoint: the zip archive holds no data.pkl")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise WeightsError(
                    f"{path}: {few([entry.filename])} is compressed, which PyTorch never does; unpack the archive and "
                    "store it without compression if the file can be trusted"
                )
        for entry in pickles:
            if entry.file_size > limit:
                raise WeightsError(_too_long(path, limit))
            with archive.open(entry) as pickled:
                _inspect_pickle(path, _Bounded(pickled, limit), extra)


def _directory_size(stream: IO[bytes]) -> int:
    """Bytes of a zip archive's directory as its end record states them, which is what readers allocate."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 65_536 - 22 - 20 - 56))
    tail = stream.read()
    stream.seek(0)
    at = tail.rfind(b"PK\x05\x06")
    stated = int.from_bytes(tail[at + 12 : at + 16], "little")
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if stated == 0xFFFFFFFF:
        stated = int.from_bytes(tail[wide + 40 : wide + 48], "little") if wide >= 0 else size
    return min(stated, size)


def _inspect_legacy(path: Path, stream: IO[bytes], limit: int, extra: set[str]) -> None:
    """Magic number, protocol, machine, the object, the names of its storages: five pickles, then the values."""
    head = stream.read(512)
    if head[257:262] == b"ustar":
        raise WeightsError(f"{path} is a program or an archive of an old kind, not a state dict")
    stream.seek(0)
    for k in range(5):
        first = _inspect_pickle(path, _Bounded(stream, limit), extra)
        if k == 0 and first != MAGIC:
            raise WeightsError(f"{path} is not a PyTorch checkpoint; it was not loaded")


def _inspect_pickle(path: Path, stream: "_Bounded", extra: set[str]) -> object:
    """The first literal of a pickle, all of whose opcodes are those of a listing of tensors."""
    first: object = None
    longest = encoders = 0
    encoding: set[object] = set()
    before = ""
    try:
        for steps, (code, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if steps >= MOST_STEPS or code.name not in PLAIN_STEPS:
                raise WeightsError(f"{path} is not a PyTorch checkpoint; it was not loaded")
            if first is None and argument is not None and code.name != "PROTO":
                first = argument
            if isinstance(argument, str | bytes):
                longest = max(longest, 4 * len(argument))
            if code.name == "GLOBAL":
                name = str(argument)
                if name == "_codecs encode" and extra:
                    before = "encode"
                    encoders += 1
                    continue
                if not (NAMES.fullmatch(name) or name in extra):
                    raise WeightsError(_refusal(path, name))
            # To call it again it is fetched from where it was put: right after it was named, or fetched.
            if code.name in ("BINPUT", "LONG_BINPUT") and before == "encode":
                encoding.add(argument)
            elif code.name in ("BINGET", "LONG_BINGET") and argument in encoding:
                encoders += 1
                before = "encode"
            else:
                before = code.name
            if encoders * longest > LARGEST_ENCODED:
                raise WeightsError(_too_long(path, LARGEST_ENCODED))
    except _TooLongError as error:
        raise WeightsError(_too_long(path, stream.limit)) from error
    return first


def _refusal(path: Path, name: str) -> str:
    shown = ".".join(name.split(" "))[:100]
    if NOT_PLAIN.fullmatch(name):
        return (
            f"{path} holds tensors that are not plain floating-point numbers ({shown}): sparse, quantised or without "
            "values"
        )
    return f"{path} asks for code ({shown}), not only for tensors: it was not loaded, and nothing in it was run"


def _too_long(path: Path, limit: int) -> str:
    return f"{path}: its listing of tensors is longer than {limit // MIB} MiB; it was not loaded"


class _TooLongError(Exception):
    """More was read than a pickle may have."""


class _Bounded:
    """The part of a stream that a pickle may take; reading beyond it raises before anything is allocated."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self.limit = limit
        self._stream, self._left = stream, limit

    def read(self, count: int = -1) -> bytes:
        """`count` bytes, which must be stated."""
        if not 0 <= count <= self._left:
            raise _TooLongError
        self._left -= count
        return self._stream.read(count)

    def readline(self) -> bytes:
        """Up to a line feed."""
        line = self._stream.readline(self._left + 1)
        if len(line) > self._left:
            raise _TooLongError
        self._left -= len(line)
        return line


def _checked(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors by name")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise WeightsError(
            f"{path} is not a flat dictionary of tensors: under {few(others)} there is something else; "
            "it may be a training state: the weights alone are needed"
        )
    if not content:
        raise WeightsError(f"{path} holds no tensors")
    wrong = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in content.items()
        if tensor.layout is not torch.strided or not tensor.dtype.is_floating_point or tensor.is_meta
    ]
    if wrong:
        raise WeightsError(f"{path} holds {len(wrong)} tensors that are not plain floating-point numbers: {few(wrong)}")
    return {name: tensor.detach() for name, tensor in content.items()}


def check_volume(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise WeightsError for a checkpoint smaller than its tensors claim, before they are written out in full.

    That is so for tensors that repeat their numbers (expanded views), and for many views of the same numbers.
    """
    spread = [n for n, t in tensors.items() if t.numel() * t.itemsize > t.untyped_storage().nbytes()]
    if spread:
        raise WeightsError(f"{path} holds fewer numbers than its tensors claim; repeated are those of {few(spread)}")
    claimed, size = sum(t.numel() * t.itemsize for t in tensors.values()), path.stat().st_size
    if claimed > 2 * size:  # twice, because weights may be tied
        raise WeightsError(f"{path} has {size:,} bytes, its tensors claim {claimed:,}; it is not what it seems")


def is_safetensors(path: Path) -> bool:
    """Whether a file is in safetensors format: eight bytes of header length, then a JSON object."""
    with path.open("rb") as stream:
        head = stream.read(9)
    length = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:] == b"{" and length <= path.stat().st_size - 8)
