"""The jobs of a sampling command, from videos, folders, patterns, manifests and prompts; and running them.

A job gives one sound, the best of several, or a sound for each of several texts and their mix. Files are replaced
atomically; a given video, or a file that this project did not make, is never overwritten.
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
"""Longest name of a result in bytes, without its suffix; file systems allow 255."""

Rank: TypeAlias = Callable[[Scene, Tensor, int], Sequence[float]]
"""(scene, waves (seeds, samples), sample rate) -> a value for every wave, larger for the better."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sound to generate; `name` is the name of its files without suffix."""

    name: str
    video: Path | None
    prompt: str | None


def jobs(inputs: Iterable[str], prompt: str | None) -> tuple[Job, ...]:
    """The jobs of a command: one per video, or one for a prompt without video.

    An input is a video, a folder (its videos, not those of its subfolders), a pattern with * ? [ ] (** includes
    subfolders), or a manifest; `prompt` overrides captions from a manifest. Results are named after their videos, or
    after the ids of a manifest's rows where several rows have videos of one name (several captions of one video).

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
                f"{other.video} and {job.video} have the same file name, and so would their results; sample them into "
                "separate --out folders"
            )
    return tuple(found)


def check_stems(found: Iterable[Job], stems: Sequence[str]) -> None:
    """Raise ValueError when a stem of one video would have the name of another video's results."""
    names = {job.name: job for job in found if job.video is not None}
    for job in names.values():
        for text in stems:
            if other := names.get(fitting(f"{job.name}.{name_of(text)}")):
                raise ValueError(f"the stem {text!r} of {job.video} would have the name of {other.video}'s results")


def name_of(words: str) -> str:
    """A file name made from a text: its letters and digits joined by underscores, at most 80 bytes."""
    name = "_".join("".join(c if c.isalnum() else " " for c in words).split())
    return name.encode()[:80].decode(errors="ignore") or "sound"  # file systems count bytes


def fitting(name: str) -> str:
    """The name itself; a name too long for a file system is cut and ends in eight digits of its digest."""
    raw = os.fsencode(name)
    if len(raw) <= LONGEST:
        return name
    end = f"~{hashlib.sha256(raw).hexdigest()[:8]}"
    return raw[: LONGEST - len(end)].decode("utf-8", "ignore") + end


def best(values: Sequence[float]) -> int:
    """Index of the largest value, the first one if several are equal."""
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
    """(seed, score) of all candidates that the sound was chosen from."""
    provenance: str

    def plain(self) -> dict[str, object]:
        """The fields as JSON values."""
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
    """Generates and writes the sounds of jobs; the fields apply to all jobs of a command."""

    pipeline: Pipeline
    sampling: SamplingConfig
    observe: Callable[[Guided], None] | None
    negative_prompt: str | None
    duration_s: float | None
    count: int
    """Number of candidates that are generated, of which the best one is written."""
    rank: Callable[[Scene], Rank] | None
    """Returns the function that ranks the sounds of a scene; required for a count above 1. It is called before sounds
    are generated, so that missing files are reported first."""
    folder: Path
    suffix: str
    film: bool
    inputs: frozenset[Path]
    """Resolved paths of the given videos, which are never overwritten."""

    def make(self, job: Job) -> Result:
        """Generate and write the sound of a job, or the best of several, and the video with it.

        Raises:
            ValueError, OSError: it cannot be generated or written; the folder is checked before anything is generated.
        """
        self._check(job, [job.name])
        sound, scores = self._chosen(job)
        return self._written(job, sound, job.name, scores, film=self.film)

    def stems(self, job: Job, texts: Sequence[str]) -> list[Result]:
        """Generate and write a sound for every text, then their sum, which becomes the sound of the video.

        Raises:
            ValueError: two texts would have the same file name.
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
        """Check that files of these names (the first with a video) can be written and would replace only results.

        Raises:
            ValueError: one of them is a given video, or a file that this program did not make.
            OSError: the folder cannot be written to.
        """
        files = [self.folder / f"{name}.{self.suffix}" for name in names]
        check_sound_format(files[0])
        for path in [*files, *([self.folder / f"{names[0]}.mp4"] if self.film and job.video else [])]:
            if path.resolve() in self.inputs:
                raise ValueError(f"{path} is one of the given videos and would be overwritten; choose another --out")
            if os.path.lexists(path) and not made_here(path):
                raise ValueError(
                    f"{path} exists already and was not made by this program; move it away or choose another --out"
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
