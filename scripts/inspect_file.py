"""Show what is in sound and video files, and which model made their sound."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scripts.errors import one_line_errors
from teacher.files import visible
from teacher.media import MediaError, StreamInfo, open_media, probe, stream_infos
from teacher.sampling.provenance import Provenance, ProvenanceError, read_provenance
from teacher.weights.loading import which_weights

FOUND, NOT_FOUND, UNREADABLE = 0, 1, 2
INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Exit status 0 if every file names its origin, 1 if one does not (or --check-model finds another model), 2 if one
    cannot be read."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Sound or video files."""
    check_model: Path | None = None
    """Run folder; check by digest whether its weights made the sound."""
    json: bool = False
    """One line of JSON for each file."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found out about one file."""

    file: Path
    duration_s: float = 0.0
    streams: tuple[StreamInfo, ...] = ()
    provenance: Provenance | None = None
    error: str | None = None
    checked: bool = False
    weights: str | None = None
    """Weights of --check-model that made the sound."""

    @property
    def status(self) -> int:
        """Exit status for this file alone."""
        if self.error is not None:
            return UNREADABLE
        return NOT_FOUND if self.provenance is None or (self.checked and self.weights is None) else FOUND


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Inspect, description=__doc__)
    if not args.files:
        raise ValueError("give at least one file")
    worst = FOUND
    for file in args.files:
        finding = inspect(file, args.check_model)
        print(as_json(finding) if args.json else as_text(finding, args.check_model), flush=True)
        worst = max(worst, finding.status)
    sys.exit(worst)


def inspect(file: Path, run: Path | None = None) -> Finding:
    """Streams and provenance of one file, compared with the weights of a run folder. Raises WeightsError."""
    try:
        duration_s = probe(file).duration_s
        with open_media(file) as container:
            streams = tuple(stream_infos(container))
    except MediaError as error:
        return Finding(file=file, error=_one_line(error))
    try:
        provenance = read_provenance(file)
    except ProvenanceError as error:
        return Finding(file=file, duration_s=duration_s, streams=streams, error=_one_line(error))
    checked = run is not None and provenance is not None
    weights = which_weights(provenance.model_digest, run) if provenance is not None and run is not None else None
    return Finding(
        file=file, duration_s=duration_s, streams=streams, provenance=provenance, checked=checked, weights=weights
    )


def as_json(finding: Finding) -> str:
    """One line; "provenance" and "error" are null where there is none, "check_model" where it was not asked for."""
    streams = [
        {name: value for name, value in asdict(s).items() if value or name in ("kind", "codec")}
        for s in finding.streams
    ]
    return json.dumps(
        {
            "file": str(finding.file),
            "status": finding.status,
            "error": finding.error,
            "duration_s": finding.duration_s,
            "streams": streams,
            "provenance": None if finding.provenance is None else finding.provenance.plain(),
            "check_model": {"same": finding.weights is not None, "weights": finding.weights}
            if finding.checked
            else None,
        }
    )


def as_text(finding: Finding, run: Path | None = None) -> str:
    """Lines for people. Text from a file is shown without control characters, which could steer a terminal."""
    lines = [f"{visible(str(finding.file))}: " + (f"{finding.duration_s:.3f} s" if finding.streams else "")]
    lines += [INDENT + _stream(stream) for stream in finding.streams]
    if finding.error is not None:
        lines.append(f"{INDENT}error: {visible(finding.error)}")
    elif finding.provenance is None:
        lines.append(f"{INDENT}no provenance: made by something else, or stripped")
    else:
        facts = _provenance(finding.provenance)
        width = max(len(name) for name, _ in facts)
        lines += [f"{INDENT}{name:{width}}  {visible(text)}" for name, text in facts]
    if finding.checked:
        answer = f"yes, {finding.weights} of {run}" if finding.weights else f"no, none of the weights in {run}"
        lines.append(f"{INDENT}made by that model? {answer}")
    return "\n".join(lines)


def _stream(stream: StreamInfo) -> str:
    parts = [f"{stream.kind}: {stream.codec}"]
    parts += [f"{stream.width}x{stream.height}"] if stream.width else []
    parts += [f"{stream.fps:.6g} frames/s"] if stream.fps else []
    parts += [f"{stream.sample_rate} Hz, {stream.channels} channel(s)"] if stream.sample_rate else []
    parts += [f"{stream.duration_s:.3f} s"] if stream.duration_s else []
    return ", ".join(parts)


def _provenance(p: Provenance) -> list[tuple[str, str]]:
    """Names and texts, in the order people ask."""
    teacher = p.teacher or "unnamed"
    distilled = p.teacher is not None or p.teacher_digest is not None
    numbers = f" {_numbers(p.guidance_values)}" if p.guidance != "none" else ""
    solver = p.solver + (f" {_numbers(p.solver_values)}" if p.solver_values else "")
    shift = f", shift {p.shift:g}" if p.shift != 1.0 else ""
    start = f", from {p.start_s:g} s on" if p.start_s else ""
    facts = [
        ("made by", f"{p.software} {p.version} (torch {p.torch}, {p.precision} on {p.device}) on {p.date}"),
        ("licence", p.licence),
        ("model", f"{p.model}, {p.weights}, SHA-256 {p.model_digest}"),
        ("teacher", f"{teacher}, SHA-256 {p.teacher_digest or 'unknown'}" if distilled else ""),
        ("codec", f"SHA-256 {p.codec_digest}" if p.codec_digest else ""),
        ("prompt", p.prompt or ""),
        ("negative", p.negative_prompt or ""),
        ("video", f"{p.source}, SHA-256 {p.source_sha256 or 'unknown'}{start}" if p.source else ""),
        ("seed", str(p.seed)),
        ("steps", f"{p.steps}, {solver}{shift}" + (f", {p.zero_init_steps} of zero" if p.zero_init_steps else "")),
        ("guidance", p.guidance + numbers),
        ("duration", f"{p.duration_s:g} s"),
    ]
    return [(name, text) for name, text in facts if text]


def _numbers(values: Mapping[str, object]) -> str:
    return json.dumps(dict(values), ensure_ascii=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    cli()
