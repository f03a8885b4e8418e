"""The published models of a comparison, loaded from given files; metrics whose file is not given are left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import Tensor

from eval.extractors.clip_audio import ClipAudio
from eval.features.cache import FeatureCache, FileDigests
from eval.features.clip_features import FEATURES, ClipFeatures
from eval.features.sources import FeatureSource, ModelSource, prepare_all
from eval.metrics import ClipMetric, ClipScorer, model_free_scorers
from eval.metrics.aesthetics import AestheticsScorer
from eval.metrics.alignment import CLAP_LAION, CLAP_MS, IB_SCORE, CosineScorer
from eval.metrics.desync import DesyncScorer
from eval.metrics.embeddings import Embeddings
from eval.metrics.greatest_hits import ScriptScorer
from eval.metrics.pam import PROMPTS, PamScorer
from teacher.encoders.registry import read_window_frames
from teacher.features.store import Record
from teacher.media import probe

Side = Callable[[Record], Tensor]
"""The features of a record's picture or caption that its sound is compared with."""
PROMPTS_CACHED = 4096
"""Number of captions whose embeddings stay in memory."""
LEAST_S = {"imagebind": 4.0, "synchformer": 4.8}
"""Shortest clip in seconds by model: two frames of picture 2 s apart; the 14 segments that the offset head takes."""
ADAPTER = "adapter"
"""Marks a field of `PublishedModels` whose model is a source of features for set metrics, called as the field is. The
value is "module:class" of its `EmbeddingModel`, which is imported only where the file is given."""


@dataclass(frozen=True, kw_only=True)
class PublishedModels:
    """Files of published models. Nothing is downloaded; a report names the metrics whose file is not given.

    A new audio embedding model is its adapter and one field here, with `ADAPTER`.
    """

    passt: Path | None = field(default=None, metadata={ADAPTER: "eval.extractors.passt:Passt"})
    """PaSST, passt-s-f128-p16-s10-ap.476-swa.pt: FD, KL, IS and KAD of PaSST."""
    panns: Path | None = field(default=None, metadata={ADAPTER: "eval.extractors.panns:Panns"})
    """PANNs, Cnn14_16k_mAP=0.438.pth: FD, KL, IS and KAD of PANNs."""
    vggish: Path | None = field(default=None, metadata={ADAPTER: "eval.extractors.vggish:Vggish"})
    """VGGish, vggish-10086976.pth: FD of VGGish."""
    synchformer: Path | None = None
    """Synchformer with its offset head, synchformer_state_dict.pth: DeSync."""
    imagebind: Path | None = None
    """ImageBind, imagebind_huge.pth (CC BY-NC-SA 4.0): ImageBind score."""
    clap_laion: Path | None = None
    """LAION-CLAP, music_speech_audioset_epoch_15_esc_89.98.pt; needs roberta_tokens."""
    clap_ms: Path | None = None
    """MS-CLAP, CLAP_weights_2023.pth: CLAP score and PAM; needs gpt2_tokens."""
    roberta_tokens: Path | None = None
    """Folder with vocab.json and merges.txt of roberta-base."""
    gpt2_tokens: Path | None = None
    """Folder with vocab.json and merges.txt of gpt2."""
    aesthetics: Path | None = None
    """Audiobox-Aesthetics, checkpoint.pt, or model.safetensors with its config.json beside it; needs the package
    audiobox_aesthetics."""
    greatest_hits: bool = False
    """Also compute the scores of MMAudio's Greatest Hits script (gh_accuracy, gh_ap, gh_f1), with its faults."""

    def __post_init__(self) -> None:
        for model, tokens in (("clap_laion", "roberta_tokens"), ("clap_ms", "gpt2_tokens")):
            if getattr(self, model) is not None and getattr(self, tokens) is None:
                raise ValueError(f"{tokens} must be given with {model}: the folder of its vocab.json and merges.txt")
        for one in fields(self):
            path = getattr(self, one.name)
            if isinstance(path, Path) and not path.exists():
                raise ValueError(f"{one.name}: {path} is not there")

    def load(
        self,
        *,
        duration_s: float,
        device: str,
        cache: Path,
        process: int = 0,
        report: Callable[[str], None] = lambda line: None,
    ) -> tuple[tuple[FeatureSource, ...], tuple[ClipScorer, ...]]:
        """Sources of features and scorers of single clips, beside the scorers that need no model. Adapters are imported
        only where their file is given. `report` takes a line about each file: its digest, and whether it is the
        published one.

        Raises:
            ValueError: clips of `duration_s` are too short for a model.
            WeightsError: a file does not fit; in one line.
        """
        for name, least_s in LEAST_S.items():
            if getattr(self, name) is not None and duration_s < least_s - 1e-6:
                raise ValueError(f"{name} takes clips of at least {least_s:g} s, these are of {duration_s:g} s")
        sources: list[FeatureSource] = []
        for one in fields(self):
            if ADAPTER in one.metadata and getattr(self, one.name) is not None:
                model = resolve_name(one.metadata[ADAPTER]).load(getattr(self, one.name), device=device)
                sources.append(ModelSource(source=one.name, model=model, duration_s=duration_s))
                report(f"{one.name}: {model.loaded}")
        scorers = [*model_free_scorers()]
        sides = _Sides(cache=FeatureCache(folder=cache), digests=FileDigests(folder=cache, process=process))
        if self.imagebind is not None:
            scorers.append(self._imagebind(duration_s, device, sides, report))
        if self.synchformer is not None:
            scorers.append(self._desync(duration_s, device, sides, report))
        scorers += self._clap(duration_s, device, report)
        if self.aesthetics is not None:
            scorers.append(_aesthetics(self.aesthetics, duration_s, device, report))
        if self.greatest_hits:
            scorers.append(ScriptScorer())
        return tuple(sources), tuple(scorers)

    def _imagebind(self, duration_s: float, device: str, sides: "_Sides", report: Callable[[str], None]) -> ClipScorer:
        from eval.extractors.imagebind import ImageBind, imagebind_frames

        model = ImageBind.load(_given(self.imagebind), device=device)
        report(f"imagebind: {model.loaded}")

        def picture(record: Record) -> Tensor:
            frames = imagebind_frames(Path(record.path), start_s=record.start_s, duration_s=duration_s)
            return model.embed_frames(torch.from_numpy(frames))[None]

        return CosineScorer(
            key=IB_SCORE.key,
            model=ModelSource(source="imagebind", model=model, duration_s=duration_s),
            side=sides.of(model.name, duration_s, picture, lambda rows: rows[0]),
            tasks=IB_SCORE.tasks,
            against="picture",
        )

    def _desync(self, duration_s: float, device: str, sides: "_Sides", report: Callable[[str], None]) -> ClipScorer:
        from eval.extractors.synchformer import DesyncExtractor, as_segments

        model = DesyncExtractor.load(_given(self.synchformer), device=device)
        report(f"synchformer: {model.loaded}")

        def picture(record: Record) -> Tensor:
            info = probe(Path(record.path))
            frames, _ = read_window_frames((model.request, model.request), info, record.start_s, duration_s)
            return model.visual_features(torch.from_numpy(frames)).flatten(0, 1)

        return DesyncScorer(model=model, side=sides.of(model.visual_name, duration_s, picture, as_segments))

    def _clap(self, duration_s: float, device: str, report: Callable[[str], None]) -> list[ClipScorer]:
        scorers: list[ClipScorer] = []
        if self.clap_laion is not None:
            from eval.extractors import clap

            tokenizer = _given(self.roberta_tokens)
            laion = clap.Clap.load(self.clap_laion, clap.CLAP_LAION, tokenizer=tokenizer, device=device)
            report(f"clap_laion: {laion.loaded}; {laion.tokens}")
            sound = ModelSource(source="clap_laion", model=laion, duration_s=duration_s)
            scorers.append(_captioned(CLAP_LAION, sound, laion.embed_text))
        if self.clap_ms is not None:
            from eval.extractors import clap

            tokenizer = _given(self.gpt2_tokens)
            ms = clap.Clap.load(self.clap_ms, clap.CLAP_MS_2023, tokenizer=tokenizer, device=device)
            report(f"clap_ms: {ms.loaded}; {ms.tokens}")
            sound = ModelSource(source="clap_ms", model=ms, duration_s=duration_s)
            scorers.append(_captioned(CLAP_MS, sound, ms.embed_text))
            prompts = ms.embed_text(PROMPTS)
            scorers.append(PamScorer(model=ms, sound=sound, prompts=prompts, window=ms.spec.samples))
        return scorers


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Features of pictures, stored on disk by the digest of the media file."""

    cache: FeatureCache
    digests: FileDigests

    def of(
        self, name: str, duration_s: float, picture: Callable[[Record], Tensor], shaped: Callable[[Tensor], Tensor]
    ) -> Side:
        """`picture` gives features (rows, width) of a record, which are computed once; `shaped` makes of them what a
        scorer takes."""

        def side(record: Record) -> Tensor:
            what: dict[str, object] = {
                "seen": name,  # as older versions wrote their files: another text would be another digest
                "file": self.digests.of(Path(record.path)),
                "start": record.start_s,
                "seconds": duration_s,
            }

            def make() -> tuple[ClipFeatures, dict[str, str]]:
                rows = picture(record)
                return ClipFeatures.of([record.id], {"seen": Embeddings(rows=rows, counts=(len(rows),))}), {}

            self.cache.get(what, make)
            return shaped(self.cache.read(what)[0].tensors["seen" + FEATURES])

        return side


def _captioned(metric: ClipMetric, sound: ModelSource, embed_text: Callable[[Sequence[str]], Tensor]) -> ClipScorer:
    side = _captions(embed_text)
    return CosineScorer(key=metric.key, model=sound, side=side, tasks=metric.tasks, against="caption")


def _aesthetics(path: Path, duration_s: float, device: str, report: Callable[[str], None]) -> ClipScorer:
    from eval.extractors.aesthetics import Aesthetics

    model = Aesthetics.load(path, device=device)
    report(f"aesthetics: {model.loaded}")
    policy = ClipAudio(sample_rate=model.sample_rate, duration_s=duration_s, remove_dc=False)
    return AestheticsScorer(name=f"{model.name}, {policy.name}", prepare=partial(prepare_all, policy), model=model)


def _captions(embed_text: Callable[[Sequence[str]], Tensor]) -> Side:
    """Embeddings of captions, each computed once."""
    known: dict[str, Tensor] = {}

    def side(record: Record) -> Tensor:
        if record.caption not in known:
            if len(known) >= PROMPTS_CACHED:
                known.clear()
            known[record.caption] = embed_text([record.caption])[0]
        return known[record.caption]

    return side


def _given(path: Path | None) -> Path:
    assert path is not None
    return path
