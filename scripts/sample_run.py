"""Making, choosing and writing the sounds of one job."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from eval.compare.ranker import RANKING, Ranker, Score, best
from eval.features.published_models import PublishedModels
from meanflow.guidance import Guided
from scripts.sample_jobs import Job, fitting, name_of
from teacher.media import check_sound_format
from teacher.sampling.pipeline import Pipeline, SamplingConfig
from teacher.sampling.provenance import made_here
from teacher.sampling.scene import Sound


@dataclass(frozen=True, kw_only=True)
class Made:
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
class Maker:
    """What all jobs of a command share."""

    pipeline: Pipeline
    sampling: SamplingConfig
    observe: Callable[[Guided], None] | None
    negative_prompt: str | None
    duration_s: float | None
    count: int
    """Sounds of which the best is kept."""
    score: Score
    judges: PublishedModels
    folder: Path
    suffix: str
    film: bool
    inputs: frozenset[Path]
    """Films given, resolved: none of them is ever written to."""

    def make(self, job: Job) -> Made:
        """The sound of a job, or the best of several, with its film.

        Raises:
            ValueError, OSError: it cannot be made, or not be written; the latter is found out before it is made.
        """
        self._check(job, [job.name])
        sound, scores = self._chosen(job)
        return self._written(job, sound, job.name, scores, film=self.film)

    def stems(self, job: Job, texts: Sequence[str]) -> list[Made]:
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
            ValueError: one of them is a film that was given, or a file that says nothing of this program.
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
        if self.count > 1 and job.video is None and RANKING[self.score].tasks == ("vta",):
            raise ValueError(
                f"--score {self.score} judges sound against a picture; for words alone use clap_laion, clap_ms or pam"
            )
        encode = self.pipeline.encode if self.count > 1 else self.pipeline.scene
        scene = encode(
            video=job.video, prompt=job.prompt, negative_prompt=self.negative_prompt, duration_s=self.duration_s
        )
        seeds = range(self.sampling.seed, self.sampling.seed + self.count)
        ranker = None
        if self.count > 1:  # before anything is made: what it needs may not be there
            ranker = Ranker.load(self.score, self.judges, duration_s=scene.total_s, device=self.pipeline.device)
        _ = self.pipeline.sound(scene, self.sampling, torch.zeros(1)).comment  # what cannot be recorded is not made
        sounds = self.pipeline(scene, seeds=tuple(seeds), sampling=self.sampling, observe=self.observe)
        if ranker is None:
            return sounds[0], ()
        values = ranker.values(scene, torch.stack([sound.wave for sound in sounds]), sounds[0].sample_rate)
        return sounds[best(values)], tuple(zip(seeds, values, strict=True))

    def _written(self, job: Job, sound: Sound, name: str, scores: tuple[tuple[int, float], ...], *, film: bool) -> Made:
        comment = sound.comment
        files = [sound.save(self.folder / f"{name}.{self.suffix}")]
        if film and job.video is not None:
            files.append(sound.save_film(self.folder / f"{name}.mp4"))
        return Made(
            name=name,
            source=None if job.video is None else str(job.video),
            seed=sound.seed,
            duration_s=round(sound.duration_s, 6),
            files=tuple(files),
            scores=scores,
            provenance=comment,
        )
