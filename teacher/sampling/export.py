"""The one-step generator as files for other programs: an ONNX file, and an archive of torch.export.

Each file is loaded again and compared with the pipeline's own generator on random inputs.

    generator.onnx   (generator.onnx.data beside it where the weights pass 2 GB)   the format for exchange: data only
    generator.pt2    torch.export's archive. Loading one is loading code: never load one that you did not make yourself
    export.json      inputs with shapes and types, sample rate, duration, digests, licence, guidance, versions, parity

The graph takes noise and the encoders' features and gives the wave where the codec is MMAudio's. A fitted codec decodes
with Griffin-Lim, which does not export (complex spectra, a random starting phase, a loop over frames): then the graph
gives normalised latents. The duration is fixed, the batch is free or fixed; nothing is drawn inside.
"""

import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from meanflow.guidance import Guidance
from teacher.audio.mmaudio_codec import MMAudioCodec
from teacher.files import new_folder, tensors_digest
from teacher.network.conditions import Conditions
from teacher.sampling.exportable import Decoder, ExportedGenerator, GivenGuidance, OneStep
from teacher.sampling.generator import SamplingConfig
from teacher.sampling.pipeline import Pipeline

INPUTS = ("noise", "clip", "sync", "text", "has_clip", "has_sync", "has_text", "omega")
"""Names of the graph's inputs in order; omega is missing unless the guidance scale is an input."""

Runner: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""Runs an exported file: inputs in the order of INPUTS -> wave or latents."""


class Parity(NamedTuple):
    """Largest absolute deviation of an exported file from the eager network, and the root mean square of the values."""

    deviation: float
    rms: float


def random_inputs(
    pipeline: Pipeline, duration_s: float, rows: int, with_omega: bool, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Random inputs of the graph: normal noise, features of random direction and unit length, omega in [1, 2).

    The first row has all modalities; in the other rows each modality is present at random.
    """
    blank = Conditions.empty(rows, duration_s, pipeline.net.config.widths)
    frames = pipeline.codec.sequence.latent_frames(duration_s)
    shapes = [torch.Size((rows, frames, pipeline.codec.latent_channels))]
    shapes += [part.shape for part in (blank.clip, blank.sync, blank.text)]
    noise, *features = (torch.randn(shape, generator=generator) for shape in shapes)
    features = [torch.nn.functional.normalize(feature, dim=-1) for feature in features]
    has = [(torch.rand(rows, generator=generator) < 0.5) | (torch.arange(rows) == 0) for _ in range(3)]
    omega = [1.0 + torch.rand(rows, generator=generator)] if with_omega else []
    return (noise, *features, *has, *omega)


def eager(pipeline: Pipeline, guidance: GivenGuidance, inputs: Sequence[Tensor]) -> Tensor:
    """Normalised latents of the pipeline's own generator for these inputs in one step, row by row."""
    rows = []
    for row in range(len(inputs[0])):
        noise, clip, sync, text, has_clip, has_sync, has_text, *omega = (x[row : row + 1] for x in inputs)
        conditions = Conditions(
            clip=clip, sync=sync, text=text, has_clip=has_clip, has_sync=has_sync, has_text=has_text
        )
        rule = Guidance(omega=float(omega[0])) if isinstance(guidance, str) else guidance
        rows.append(pipeline.generator.latents(conditions, noise, SamplingConfig(guidance=rule)))
    return torch.cat(rows)


def parity(run: Runner, batches: Sequence[Sequence[Tensor]], wanted: Sequence[Tensor]) -> Parity:
    """Largest deviation over all batches; NaN if the file gives NaN. ValueError for an output of another shape."""
    deviations = []
    for inputs, expected in zip(batches, wanted, strict=True):
        made = run(inputs)
        if made.shape != expected.shape:
            raise ValueError(f"the exported file gives {tuple(made.shape)} where {tuple(expected.shape)} was expected")
        deviations.append((made - expected).abs().max())
    rms = torch.cat([x.flatten() for x in wanted]).square().mean().sqrt()
    return Parity(float(torch.stack(deviations).max()), float(rms))


def take_turns(runners: Mapping[str, Runner], inputs: Sequence[Tensor], repeats: int) -> dict[str, float]:
    """Median seconds of each runner over `repeats` rounds; in a round all run once, and the first round is untimed."""
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(repeats + 1):
        for name, run in runners.items():
            began = time.perf_counter()
            run(inputs)
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def open_onnx(path: Path, threads: int | None = None) -> Runner:
    """An ONNX file on onnxruntime's CPU provider with as many threads as torch has, or `threads`."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Tensor]) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=False)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def open_torch(path: Path) -> Runner:
    """Load an archive of torch.export. Loading executes code, so give it only files that this program wrote itself."""
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)


Format: TypeAlias = Literal["onnx", "torch", "both"]
FILES = {"onnx": "generator.onnx", "torch": "generator.pt2"}
ABOUT = "export.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
EXTERNAL_BYTES = 2_000_000_000
"""Weights of more bytes are written beside the .onnx file, whose format is limited to 2 GiB."""
TOLERANCE = {"wave": 1e-3, "latents": 1e-4}
"""Largest absolute deviation from the eager network in float32: a wave lies in [-1, 1], latents have unit size."""
CHECKED_ROWS = (1, 2)
"""Batch sizes on which a graph with dynamic batch is checked."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Configuration of an export: formats, guidance, shapes, and the check."""

    formats: Format = "onnx"
    guidance: GivenGuidance = field(default_factory=Guidance)
    """A guidance rule fixed in the graph (scale 1 is off), or "input" for one more input omega (B,)."""
    batch: int | None = None
    """Rows per call; None accepts any number."""
    duration_s: float | None = None
    """Seconds of sound, fixed in the graph; None takes the duration that the network was trained on."""
    tolerance: float | None = None
    """Largest deviation that passes; None is 1e-3 for waves, 1e-4 for latents."""
    seed: int = 0
    """Seed of the random inputs of the check."""
    repeats: int = 0
    """Rounds in which the eager network and each file are timed in turn on one row (or the fixed batch); 0 is none."""

    def __post_init__(self) -> None:
        if self.formats not in get_args(Format):
            raise ValueError(f"formats must be one of {', '.join(get_args(Format))}, got {self.formats!r}")
        if not isinstance(self.guidance, Guidance) and self.guidance != "input":
            raise ValueError(f"guidance must be a Guidance or 'input', got {self.guidance!r}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1 or None (any), got {self.batch}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}")
        if self.repeats < 0:
            raise ValueError(f"repeats must be at least 0, got {self.repeats}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The formats to write, as keys of FILES."""
        return tuple(FILES) if self.formats == "both" else (self.formats,)


def export_generator(pipeline: Pipeline, out: Path, config: ExportConfig | None = None) -> Path:
    """Write the files into the folder `out`, which it returns, after running each of them on random inputs.

    The written files are loaded again and compared with the pipeline's own generator. Raises ValueError for a
    pipeline that is not float32 on the CPU, a network that is no student's, packages that are not installed, and a file
    that deviates by more than the tolerance (or gives NaN); FileExistsError for a folder that is not empty, OSError
    where the disk does not take the files. Then nothing is left behind.
    """
    config, out = config or ExportConfig(), Path(out)
    _check(pipeline, config, out)
    duration_s = pipeline.window_s if config.duration_s is None else config.duration_s
    frames = pipeline.codec.sequence.latent_frames(duration_s)
    decoder = Decoder(pipeline.codec) if isinstance(pipeline.codec, MMAudioCodec) else None
    step = OneStep(pipeline.net, frames, duration_s, config.guidance)
    module = ExportedGenerator(step, decoder).eval().requires_grad_(False)
    result = "latents" if decoder is None else "wave"
    tolerance = config.tolerance or TOLERANCE[result]

    def eager_result(inputs: Sequence[Tensor]) -> Tensor:
        latents = eager(pipeline, config.guidance, inputs)
        return latents if decoder is None else torch.cat([pipeline.codec.decode(row[None]) for row in latents])

    draw = torch.Generator().manual_seed(config.seed)
    counts = CHECKED_ROWS if config.batch is None else (config.batch,)
    batches = [random_inputs(pipeline, duration_s, n, config.guidance == "input", draw) for n in counts]
    about = describe(pipeline, config, duration_s, batches[-1], result)
    with _whole(out) as folder, torch.no_grad():
        runners = _write(module, batches[-1], config, folder, about)
        wanted = [eager_result(inputs) for inputs in batches]
        about["parity"] = {"tolerance": tolerance}
        for kind, run in runners.items():
            found = parity(run, batches, wanted)
            line = f"{FILES[kind]}: largest deviation {found.deviation:.2g}, tolerance {tolerance:g}; {result}"
            if not found.deviation <= tolerance:
                raise ValueError(f"{line}: the file does not do what the network does; nothing was written")
            print(f"{line} of rms {found.rms:.3g}, {sum(counts)} rows")
            about["parity"][kind] = found._asdict()
        if config.repeats:
            timed = take_turns({"eager": eager_result} | runners, batches[0], config.repeats)
            print(", ".join(f"{name} {seconds:.3f} s" for name, seconds in timed.items()))
            about["seconds"] = timed
        (folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out


def describe(
    pipeline: Pipeline, config: ExportConfig, duration_s: float, inputs: Sequence[Tensor], result: str
) -> dict[str, Any]:
    """The content of export.json without the results of the check; a shape has "batch" where the batch is dynamic."""
    rows: list[int | str] = ["batch" if config.batch is None else config.batch]
    sequence = pipeline.codec.sequence
    made = (sequence.latent_frames(duration_s), pipeline.codec.latent_channels)
    shape = [*made] if result == "latents" else [sequence.num_samples(duration_s)]
    packages = ("mf-mjt", "torch", *(PACKAGES if "onnx" in config.kinds else ()))
    return {
        "kind": "one-step generator",
        "version": 1,
        "inputs": [
            {"name": name, "shape": rows + list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch.")}
            for name, x in zip(INPUTS, inputs, strict=False)
        ],
        "outputs": [{"name": result, "shape": rows + shape, "dtype": "float32"}],
        "sample_rate": sequence.sample_rate,
        "duration_s": duration_s,
        "samples": round(duration_s * sequence.sample_rate),
        "steps": 1,
        "guidance": config.guidance if isinstance(config.guidance, str) else asdict(config.guidance),
        "network_digest": tensors_digest(pipeline.net.state_dict()),
        "codec_digest": pipeline.codec.digest,
        "licence": pipeline.licence,
        "opset": OPSET if "onnx" in config.kinds else None,
        "versions": {name: _version(name) for name in packages},
    }


def _write(
    module: nn.Module, inputs: tuple[Tensor, ...], config: ExportConfig, folder: Path, about: dict[str, Any]
) -> dict[str, Runner]:
    """Write the files into `folder`; returns a runner for each."""
    free = {0: torch.export.Dim("batch", min=1)} if config.batch is None else None
    program = torch.export.export(module, inputs, dynamic_shapes=tuple(free for _ in inputs))
    runners: dict[str, Runner] = {}
    if "torch" in config.kinds:
        held = io.BytesIO()  # its own writer of files ends the process where the disk is full
        torch.export.save(program, held)
        (folder / FILES["torch"]).write_bytes(held.getbuffer())
        runners["torch"] = open_torch(folder / FILES["torch"])
    if "onnx" in config.kinds:
        made = torch.onnx.export(
            program,
            input_names=INPUTS[: len(inputs)],
            output_names=[about["outputs"][0]["name"]],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,  # onnxruntime does that when it loads; here it takes longer than everything else
        )
        assert made is not None
        made.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})
        size = sum(x.numel() * x.element_size() for x in program.state_dict.values())
        made.save(folder / FILES["onnx"], external_data=size > EXTERNAL_BYTES)
        runners["onnx"] = open_onnx(folder / FILES["onnx"])
    return runners


def _check(pipeline: Pipeline, config: ExportConfig, out: Path) -> None:
    absent = [name for name in PACKAGES if find_spec(name) is None] if "onnx" in config.kinds else []
    if absent:
        raise ValueError(f"an ONNX file needs {', '.join(absent)}: pip install 'mf-mjt[export]'")
    device, dtype = pipeline.net.latent_mean.device.type, pipeline.net.latent_mean.dtype
    if device != "cpu" or dtype != torch.float32 or pipeline.precision != "float32":
        raise ValueError(
            f"export needs a pipeline in float32 on the cpu, got {pipeline.precision} ({dtype}) on {device}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already; give another folder, or remove it first")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` at the end (`teacher.files.new_folder`); errors of the disk name `out`."""
    try:
        with new_folder(out) as temporary:
            yield temporary
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(out)) from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
