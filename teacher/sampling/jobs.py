"""The jobs of a sampling command, from films, folders, patterns, manifests and words; and each job's sound on disk.

A job gets one sound, the best of several, or a sound for each of several texts and their mix. Files are written whole,
never over a film that was given or over a file that this project did not make.
"""

import glob
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from meanflow.guidance import Guided
from teacher.lists.manifest import read_manifest
from teacher.media import check_sound_format
from teacher.sampling.generator import SamplingConfig
from teacher.sampling.pipeline import Pipeline
from teacher.sampling.provenance import made_here
from teacher.sampling.scene import Scene, Sound

TABLES = (".jsonl", ".csv", ".tsv")
FILMS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")
GLOB = "*?["
LONGEST = 250
"""Bytes of a result's name without its suffix; file systems take 255."""

Rank: TypeAlias = Callable[[Scene, Tensor, int], Sequence[float]]
"""(scene, waves (seeds, samples), sample rate) -> a value for every wave, larger for the better."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sound: `name` is that of its files."""

    name: str
    video: Path | None
    prompt: str | None


def jobs(inputs: Iterable[str], prompt: str | None) -> tuple[Job, ...]:
    """One job per video, or one for words alone.

    An input is a video, a folder (its videos, not those of folders in it), a pattern with * ? [ ] (** goes into
    folders), or a manifest, whose captions are the words of its videos unless `prompt` is given. Results are called
    like their videos; those of rows of a manifest whose videos share a name (several captions of one), like the rows'
    ids.

    Raises:
        ValueError: nothing to do, an input that matches nothing, or two videos whose results would have one name.
    """
    found = [job for text in inputs for job in _of(text, prompt)]
    if not found:
        if prompt is None:
            raise ValueError("give --video, --prompt or both")
        return (Job(name=name_of(prompt), video=None, prompt=prompt),)
    by_name: dict[str, Job] = {}
    for job in found:
        other = by_name.setdefault(job.name, job)
        if other is not job:
            raise ValueError(
                f"{other.video} and {job.video} share a file name, and so would their results; sample them into "
                "separate --out folders"
            )
    return tuple(found)


def check_stems(found: Iterable[Job], stems: Sequence[str]) -> None:
    """ValueError where a stem of one video would have the name of another video's results."""
    names = {job.name: job for job in found if job.video is not None}
    for job in names.values():
        for text in stems:
            if other := names.get(fitting(f"{job.name}.{name_of(text)}")):
                raise ValueError(f"the stem {text!r} of {job.video} would have the name of {other.video}'s results")


def name_of(words: str) -> str:
    """A file name from words, of 80 bytes at most."""
    name = "_".join("".join(c if c.isalnum() else " " for c in words).split())
    return name.encode()[:80].decode(errors="ignore") or "sound"  # file systems count bytes


def fitting(name: str) -> str:
    """The name, or its beginning and eight digits of its digest where a file system would not take it."""
    raw = os.fsencode(name)
    if len(raw) <= LONGEST:
        return name
    end = f"~{hashlib.sha256(raw).hexdigest()[:8]}"
    return raw[: LONGEST - len(end)].decode("utf-8", "ignore") + end


def best(values: Sequence[float]) -> int:
    """Index of the largest value, the first of equals."""
    return int(torch.tensor(values, dtype=torch.float64).argmax())


def _of(text: str, prompt: str | None) -> list[Job]:
    path = Path(text)
    if path.is_file() and path.suffix.lower() in TABLES:
        items = read_manifest(path)
        stems = Counter(item.path.stem for item in items)
        return [
            Job(
                name=fitting(item.path.stem if stems[item.path.stem] == 1 else _as_file_name(item.id)),
                video=item.path,
                prompt=item.caption if prompt is None else prompt,
            )
            for item in items
        ]
    if path.is_dir():
        films = _films(path.iterdir())
        if not films:
            raise ValueError(f"{path}: holds no video ({', '.join(FILMS)})")
    elif not path.exists() and any(letter in text for letter in GLOB):
        films = _films(map(Path, glob.glob(text, recursive=True)))
        if not films:
            raise ValueError(f"{text}: matches no video ({', '.join(FILMS)})")
    else:
        films = [path]
    return [Job(name=fitting(film.stem), video=film, prompt=prompt) for film in films]


def _as_file_name(identity: str) -> str:
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in identity)
    return f"_{name[1:]}" if name.startswith(".") else name


def _films(paths: Iterable[Path]) -> Sequence[Path]:
    return sorted(p for p in paths if p.suffix.lower() in FILMS and p.is_file() and not p.name.startswith("."))


@dataclass(frozen=True, kw_only=True)
class Result:
    """One sound that was written."""

    name: str
    source: str | None
    seed: int
    duration_s: float
    files: tuple[Path, ...]
    scores: tuple[tuple[int, float], ...]
    """(seed, score) of all sounds it was chosen from."""
    provenance: str

    def plain(self) -> dict[str, object]:
        """For a line of JSON."""
        try:
            provenance = json.loads(self.provenance)
        except ValueError:
            provenance = self.provenance
        return {
            "name": self.name,
            "source": self.source,
            "seed": self.seed,
            "duration_s": self.duration_s,
            "files": [str(file) for file in self.files],
            "scores": [{"seed": seed, "score": value} for seed, value in self.scores],
            "provenance": provenance,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class JobRunner:
    """Makes the sounds of jobs and writes them; the fields hold for all jobs of a command."""

    pipeline: Pipeline
    sampling: SamplingConfig
    observe: Callable[[Guided], None] | None
    negative_prompt: str | None
    duration_s: float | None
    count: int
    """Number of sounds that are made, of which the best one is written."""
    rank: Callable[[Scene], Rank] | None
    """Gives what compares the sounds of a scene; needed above a count of 1. Called before a sound is made, so that
    whatever it needs is found missing in time."""
    folder: Path
    suffix: str
    film: bool
    inputs: frozenset[Path]
    """Films given, resolved: none of them is ever written to."""

    def make(self, job: Job) -> Result:
        """The sound of a job, or the best of several, with its film.

        Raises:
            ValueError, OSError: it cannot be made, or not be written; the latter is found out before it is made.
        """
        self._check(job, [job.name])
        sound, scores = self._chosen(job)
        return self._written(job, sound, job.name, scores, film=self.film)

    def stems(self, job: Job, texts: Sequence[str]) -> list[Result]:
        """A sound for every text, each in a file of its own, then their sum, which goes under the film.

        Raises:
            ValueError: texts that would have one file name.
        """
        names = [name_of(text) for text in texts]
        if len(set(names)) < len(names):
            raise ValueError(f"--stems must differ in more than punctuation, got {', '.join(texts)}")
        made, sounds = [], []
        base = job.name if job.video is not None else name_of(" ".join(names))
        files = [fitting(f"{base}.{name}") for name in names]
        self._check(job, [base, *files])
        for text, file in zip(texts, files, strict=True):
            sound, scores = self._chosen(replace(job, prompt=text))
            made.append(self._written(job, sound, file, scores, film=False))
            sounds.append(sound)
        mix = replace(
            sounds[0],
            wave=torch.stack([sound.wave for sound in sounds]).sum(dim=0),
            scene=replace(
                sounds[0].scene,
                prompt="a mix of sounds made apart: "
                + " + ".join(f"{text} (seed {sound.seed})" for text, sound in zip(texts, sounds, strict=True)),
            ),
        )
        return [*made, self._written(job, mix, base, (), film=self.film)]

    def _check(self, job: Job, names: Sequence[str]) -> None:
        """That results of these names, the first with a film, can be written and take the place of nothing but results.

        Raises:
            ValueError: one of them is a film that was given, or a file that this program did not make.
            OSError: the folder cannot be written to.
        """
        files = [self.folder / f"{name}.{self.suffix}" for name in names]
        check_sound_format(files[0])
        for path in [*files, *([self.folder / f"{names[0]}.mp4"] if self.film and job.video else [])]:
            if path.resolve() in self.inputs:
                raise ValueError(f"{path} is one of the films given and would be overwritten; choose another --out")
            if os.path.lexists(path) and not made_here(path):
                raise ValueError(
                    f"{path} is there already and was not made by this program; move it away or choose another --out"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"room")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error

    def _chosen(self, job: Job) -> tuple[Sound, tuple[tuple[int, float], ...]]:
        encode = self.pipeline.encode if self.count > 1 else self.pipeline.scene
        scene = encode(
            video=job.video, prompt=job.prompt, negative_prompt=self.negative_prompt, duration_s=self.duration_s
        )
        seeds = range(self.sampling.seed, self.sampling.seed + self.count)
        values_of = self.rank(scene) if self.count > 1 and self.rank is not None else None
        _ = self.pipeline.sound(scene, self.sampling, torch.zeros(1)).comment  # what cannot be recorded is not made
        sounds = self.pipeline(scene, seeds=tuple(seeds), sampling=self.sampling, observe=self.observe)
        if values_of is None:
            return sounds[0], ()
        values = values_of(scene, torch.stack([sound.wave for sound in sounds]), sounds[0].sample_rate)
        return sounds[best(values)], tuple(zip(seeds, values, strict=True))

    def _written(
        self, job: Job, sound: Sound, name: str, scores: tuple[tuple[int, float], ...], *, film: bool
    ) -> Result:
        comment = sound.comment
        files = [sound.save(self.folder / f"{name}.{self.suffix}")]
        if film and job.video is not None:
            files.append(sound.save_film(self.folder / f"{name}.mp4"))
        return Result(
            name=name,
            source=None if job.video is None else str(job.video),
            seed=sound.seed,
            duration_s=round(sound.duration_s, 6),
            files=tuple(files),
            scores=scores,
            provenance=comment,
        )
