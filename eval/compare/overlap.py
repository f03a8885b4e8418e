"""Searches for test clips in the training data of the networks compared: by id, by source and by content."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.compare.hygiene import Overlap, TestFacts, facts_of, write_facts
from eval.compare.rows import Task, read_clip_scores, read_rows
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.files import file_sha256, split_lines
from teacher.weights.run_folder import read_run_config

CLIP_OF_A_VIDEO = re.compile(r"Y?([A-Za-z0-9_-]{11})_\d+(_\d+)?|Y([A-Za-z0-9_-]{11})")
"""Ids of VGGSound and AudioCaps: the 11 letters of a video, then times; of the AudioSet part of WavCaps: a Y and the
letters. Two clips of one video sound alike."""


def trained_on(runs: Iterable[Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Feature folders that the runs were trained on, each once; and the runs without known folders, with the reason."""
    folders: dict[Path, None] = {}
    unknown = []
    for run in runs:
        data = _training_data(run)
        paths = [Path(p) for p in data]
        gone = [str(p) for p in paths if not (p / "features.json").is_file()]
        if gone or not paths:
            unknown.append(f"{run} ({', '.join(gone)} not here)" if gone else f"{run} (its configuration names none)")
        folders |= dict.fromkeys(p for p in paths if str(p) not in gone)
    return tuple(folders), tuple(unknown)


def find_overlap(test: Sequence[Record], runs: Iterable[Path], *, groups: Mapping[str, str] | None = None) -> Overlap:
    """Search for test clips in the training splits of all feature folders that the runs were trained on.

    Clips are compared by item id; by the group of the records and by video, for ids that name one; and by SHA-256 of
    the media files, of which only those with a size that occurs on both sides are read. `groups`: item id -> group_id,
    in place of the groups of the records (see `read_groups`), which features of older versions lack.
    """
    folders, unknown = trained_on(runs)
    ids: set[str] = set()
    sources: set[str] = set()
    files: set[Path] = set()
    groups = groups or {}
    for record in (r for folder in folders for r in FeatureSet.open(folder, "train").records):
        ids.add(record.item_id)
        sources |= sources_of(record, groups)
        files.add(Path(record.path))
    same_bytes, unread = _same_content({Path(r.path) for r in test}, files)
    by_id = [r.id for r in test if r.item_id in ids]
    by_source = [r.id for r in test if r.item_id not in ids and sources_of(r, groups) & sources]
    taken = {*by_id, *by_source}
    return Overlap(
        training_files=len(files),
        by_id=tuple(by_id),
        by_source=tuple(by_source),
        by_content=tuple(r.id for r in test if r.id not in taken and Path(r.path) in same_bytes),
        unread=unread,
        unknown=unknown,
    )


def sources_of(record: Record, groups: Mapping[str, str] | None = None) -> frozenset[str]:
    """The sources of a record: its group where known, and its video where its id names one, else the item itself.

    Group and video both count, since records of the other set may have only one of them.
    """
    video = CLIP_OF_A_VIDEO.fullmatch(record.item_id)
    own = (video.group(1) or video.group(3)) if video else record.item_id
    return frozenset({own, (groups or {}).get(record.item_id, record.group_id)} - {""})


def read_groups(manifest: Path) -> dict[str, str]:
    """Item id -> group_id of a .jsonl, .csv or .tsv manifest; items without either are left out."""
    text = manifest.read_text(encoding="utf-8-sig")
    if manifest.suffix.lower() == ".jsonl":
        rows = [json.loads(line) for line in split_lines(text) if line.strip()]
    else:
        delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    return {str(r["id"]): str(r["group_id"]) for r in rows if r.get("id") and r.get("group_id")}


def _same_content(test: set[Path], training: set[Path]) -> tuple[set[Path], int]:
    """Files of `test` whose bytes are those of some file of `training`, and how many files are gone."""
    sizes = {path: path.stat().st_size for path in test | training if path.is_file()}
    shared = {sizes[p] for p in test if p in sizes} & {sizes[p] for p in training if p in sizes}
    known = {file_sha256(p) for p in training if sizes.get(p) in shared}
    found = {p for p in test if sizes.get(p) in shared and file_sha256(p) in known}
    return found, len(test | training) - len(sizes)


def _training_data(run: Path) -> tuple[str, ...]:
    """The feature folders config.json names; none for published weights."""
    settings = read_run_config(run).get("run")
    data = settings.get("data", ()) if isinstance(settings, dict) else ()
    return (data,) if isinstance(data, str) else tuple(map(str, data))


def recheck_overlap(
    rows_path: Path, data: Path, runs: Sequence[Path], manifest: Path | None = None
) -> dict[Task, TestFacts]:
    """Write testset.json anew for finished rows: ids from the scores, overlap between `data` and the data of `runs`.

    Raises:
        ValueError: as `facts_of`; a scored id that is no test clip of `data`.
    """
    records = {r.id: r for r in FeatureSet.open(data, "test").records}
    groups = read_groups(manifest) if manifest is not None else None
    clips = read_clip_scores(rows_path.with_name("clips.jsonl"))
    found = {}
    for task, fact in facts_of(read_rows(rows_path), clips, rows_path).items():
        unknown = [i for i in fact.ids if i not in records]
        if unknown:
            raise ValueError(f"{data} has no test clips {', '.join(unknown[:5])}, which were scored")
        overlap = find_overlap([records[i] for i in fact.ids], runs, groups=groups)
        found[task] = replace(fact, overlap=overlap)
    write_facts(rows_path.parent, found.values())
    return found
