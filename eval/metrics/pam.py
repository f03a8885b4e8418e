"""PAM (arXiv 2402.00282): sound quality without a reference, from MS-CLAP 2023 and two opposite prompts.

    PAM = mean over the windows w of a clip of P(clean | w),
    P(clean | w) = softmax over the two prompts of s cos(w, prompt) = 1 / (1 + exp(-s (cos(w, clean) - cos(w, noisy))))

with s the model's logit scale. It measures quality, not whether the sound fits a video or a caption. It lies between 0
and 1 and has no absolute meaning. Windows are 7 s long, so that nothing is cropped at random. State how the rest of a
clip is treated (`Tail`) beside every score, since the published code changed it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from eval.metrics.alignment import paired_cosines
from eval.metrics.base import ClipMetric, PaperColumn, Scores, SoundModel, Task
from eval.metrics.embeddings import Embeddings

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from teacher.features.store import Record

PROMPTS = ("the sound is clear and clean.", "the sound is noisy and with artifacts.")
"""The clean one first."""
WINDOW_SAMPLES = 308_700
"""7 s at MS-CLAP's 44.1 kHz."""
Tail = Literal["tiled", "last", "first"]
"""What follows the whole windows of a clip longer than one.

`tiled`: its rest, repeated until a window is full, as in the first release of the published code. `last`: the last 7 s
of the clip, which overlap the window before, as in its present version. `first`: nothing, and of the whole windows only
the first one, as in the paper's reproduction."""


def pam_windows(
    wave: Float[Tensor, " samples"], *, tail: Tail = "tiled", window: int = WINDOW_SAMPLES
) -> Float[Tensor, "windows window"]:
    """A mono clip at 44.1 kHz -> its windows in order of time; a clip of up to one window is repeated to fill it.

    Raises:
        ValueError: not (samples,), no samples, or an unknown `tail`.
    """
    import torch

    if wave.ndim != 1 or len(wave) == 0:
        raise ValueError(f"wave must be (samples,) with samples in it, got {tuple(wave.shape)}")
    if tail not in get_args(Tail):
        raise ValueError(f"tail must be one of {', '.join(get_args(Tail))}, got {tail}")
    if window < 1:
        raise ValueError(f"window must be positive, got {window}")
    whole, rest = divmod(len(wave), window)
    if whole == 0:
        return _tiled(wave, window)[None]
    if tail == "first":
        return wave[:window][None].clone()
    windows = wave[: whole * window].view(whole, window)
    if rest == 0:
        return windows.clone()
    end = wave[-window:] if tail == "last" else _tiled(wave[-rest:], window)
    return torch.cat((windows, end[None]))


def _tiled(piece: Tensor, window: int) -> Tensor:
    return piece.repeat(-(-window // len(piece)))[:window]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pam:
    """Scores of a set of clips."""

    per_window: NDArray[np.float64]
    """P(clean) of every window, those of the first clip first."""
    counts: tuple[int, ...]
    """Windows of each clip."""
    logit_scale: float

    @classmethod
    def from_embeddings(cls, windows: Embeddings, prompts: Float[Tensor, "2 d"], *, logit_scale: float) -> Self:
        """`windows`: rows of the windows of `pam_windows`, counted per clip. `prompts`: those of `PROMPTS`, in order.

        Rows need not have length 1. Computed in float64.

        Raises:
            ValueError: no clips, other than two prompts, another length of rows, a row that is zero or not finite, or
                a scale that is not positive and finite.
        """
        if len(windows.rows) == 0:
            raise ValueError("windows must be of at least one clip, got none")
        if prompts.ndim != 2 or len(prompts) != 2 or prompts.shape[1] != windows.rows.shape[1]:
            raise ValueError(
                f"prompts must be the clean one and the noisy one, (2, {windows.rows.shape[1]}), got "
                f"{tuple(prompts.shape)}"
            )
        if not 0.0 < logit_scale < math.inf:
            raise ValueError(f"logit_scale must be positive and finite, got {logit_scale}")
        clean, noisy = (paired_cosines(windows.rows, prompt.expand_as(windows.rows)) for prompt in prompts.cpu())
        # tanh neither overflows nor loses digits where exp would.
        per_window = 0.5 * (1.0 + np.tanh(0.5 * logit_scale * (clean - noisy)))
        return cls(per_window=per_window, counts=windows.counts, logit_scale=logit_scale)

    @property
    def per_clip(self) -> NDArray[np.float64]:
        """Mean over each clip's windows, all weighing the same."""
        parts = np.split(self.per_window, np.cumsum(self.counts)[:-1])
        return np.array([part.mean() for part in parts])

    @property
    def mean(self) -> float:
        """Mean over clips."""
        return float(self.per_clip.mean())


class PromptModel(Protocol):
    """The interface of MS-CLAP (`eval.extractors.clap.Clap`) that PAM uses."""

    @property
    def logit_scale(self) -> float:
        """Factor of the cosines before the softmax."""
        ...

    def embed(self, waves: Tensor) -> Embeddings:
        """waves (windows, samples) -> one row each."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PamScorer:
    """PAM of single clips, cut into windows as long as the model takes, the rest of a clip repeated."""

    model: PromptModel
    sound: SoundModel
    """The prompt model with the policy by which sound is prepared for it."""
    prompts: Tensor
    """Embeddings of `PROMPTS`, (2, dimensions)."""
    window: int
    """Samples that the model takes at once, so that nothing is cropped."""

    @property
    def name(self) -> str:
        return f"pam-v1 tiled by {self.sound.name}"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return PAM.tasks

    def scores(self, records: Sequence[Record], waves: Tensor, sample_rate: int) -> list[Scores]:
        import torch

        windows = [pam_windows(wave, window=self.window) for wave in self.sound.prepared(waves, sample_rate)]
        rows = self.model.embed(torch.cat(windows)).rows
        embeddings = Embeddings(rows=rows, counts=tuple(len(some) for some in windows))
        pam = Pam.from_embeddings(embeddings, self.prompts, logit_scale=self.model.logit_scale)
        return [{PAM.key: value} for value in pam.per_clip.tolist()]


PAM = ClipMetric(
    key="pam",
    label="PAM",
    better="higher",
    digits=3,
    explanation="Probability of “the sound is clear and clean” against its opposite by MS-CLAP.",
    source="clap_ms",
    paper=PaperColumn(name="PAM", digits=3),
)
