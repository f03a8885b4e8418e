"""Checks whether the files of a comparison are complete and as it wrote them, for `mf-check`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.compare.hygiene import FACTS, read_facts
from eval.compare.rows import (
    ClipScores,
    Row,
    changed_lines,
    embeddings_path,
    ids_digest,
    read_clip_scores,
    read_rows,
    sealed_rows,
)
from eval.features.cache import reference_path
from eval.features.clip_features import ClipFeatures, is_sealed
from teacher.files import file_sha256, same_digest

CACHED = re.compile(r"[0-9a-f]{2}/[0-9a-f]{32}\.safetensors")
"""Folder and name of an entry of `eval.features.cache.FeatureCache`."""
REFERENCE = re.compile(r"reference-([0-9a-f]{16})\.safetensors")


def check_files(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """The files of one folder that a comparison wrote with a checksum or digest, and what is wrong with each.

    These are rows.jsonl and clips.jsonl, lists of scored clips, features of rows, entries of the cache and parts of
    unfinished rows. Files that older versions wrote without a digest are left out, as are files that disappear
    meanwhile.
    """
    for name in names:
        path = folder / name
        try:
            if name in ("rows.jsonl", "clips.jsonl"):
                yield from _lines(path)
            elif name == FACTS:
                yield from _ids(path)
            elif _has_features(path) and is_sealed(path):
                yield path, _features_fault(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            yield path, str(error)


def _has_features(path: Path) -> bool:
    """Whether it is where a comparison writes features; names with a dot in front are unfinished."""
    if path.suffix != ".safetensors" or path.name.startswith("."):
        return False
    inside = path.parent.name == "embeddings" or path.parent.parent.name == "parts"
    return inside or CACHED.fullmatch(f"{path.parent.name}/{path.name}") is not None


def _features_fault(path: Path) -> str | None:
    named = REFERENCE.fullmatch(path.name)
    if named is not None and not same_digest(file_sha256(path), named[1]):
        return f"{path} is damaged: its SHA-256 is not the one in its name"
    _, facts = ClipFeatures.read(path)
    digest = facts.get("reference")
    if named is not None or digest is None:
        return None
    reference = reference_path(path, digest)
    if not reference.is_file():
        return f"{reference} is missing, against which {path.name} was scored" if path.exists() else None
    found = file_sha256(reference)
    if found != digest and same_digest(found, digest[:16]):  # else the reference itself is named
        return f"{reference} is not the reference {path.name} was scored against"
    return None


def _lines(path: Path) -> Iterator[tuple[Path, str | None]]:
    """rows.jsonl or clips.jsonl; after the rows, the embeddings that they name and that are gone."""
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    changed = changed_lines(path)
    if changed:
        more = f" and {len(changed) - 1} more" * (len(changed) > 1)
        yield path, f"{path}, line {changed[0]}{more} is not as it was written, it was damaged or changed"
        return
    if path.name == "clips.jsonl":
        read_clip_scores(path)
        yield path, None
        return
    rows = read_rows(path)
    beside = path.with_name("clips.jsonl")
    clips = read_clip_scores(beside) if beside.is_file() else {}
    short = [r for r in rows if r.clips_digest and r.scores_key in clips and _other_clips(r, clips[r.scores_key])]
    yield path, f"{path}: {short[0].title} has scores of other clips in clips.jsonl" if short else None
    for features in (embeddings_path(path, row) for row in sealed_rows(path)):
        if features.parent.is_dir() and not features.exists():  # the whole folder may have been left out on purpose
            yield features, f"{features} is missing, which a row of {path.name} was computed from"


def _other_clips(row: Row, scores: ClipScores) -> bool:
    return ids_digest(scores) != row.clips_digest


def _ids(path: Path) -> Iterator[tuple[Path, str | None]]:
    """testset.json, and the lists beside it whose SHA-256 it holds."""
    facts = read_facts(path)
    yield path, None
    for task, fact in facts.items():
        listed = path.with_name(f"scored-{task}.txt")
        if not listed.exists():
            yield listed, f"{listed} is missing"
        elif file_sha256(listed) != fact.digest:
            yield listed, f"{listed} is damaged: its SHA-256 is not the one in {path.name}"
