"""Recordings of what enters the networks: lengths, mel spectrograms of sound, tokens of prompts."""

from collections.abc import Iterator
from typing import Any

from teacher.audio.mel import MelConfig, log_mel, mel_filterbank, window
from teacher.encoders.clip import clip_tokenizer
from teacher.network.sequence import SEQUENCE_16K, SEQUENCE_44K, SequenceConfig, image_frames, sync_frames
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording

LOG_MEL = 7e-5
"""In log units, ten times what two implementations differ by where magnitudes are close to the floor."""
FLOAT32 = 2.0**-21
"""Tables that were computed in float32 against ours, float64 and rounded once: eight roundings."""
SEQUENCES: dict[Any, SequenceConfig] = {s.sample_rate: s for s in (SEQUENCE_16K, SEQUENCE_44K)} | {
    "16k": SEQUENCE_16K,
    "44k": SEQUENCE_44K,
}
"""By what a recording calls them."""


def sequence_lengths(recording: Recording) -> Iterator[Deviation]:
    """Lengths as a function of the duration, exact: duration, variant, latents, image and sync features, samples."""
    wrong = 0
    for duration_s, called, *recorded in recording.document["rows"]:
        sequence = SEQUENCES[called]
        lengths = (sequence.latent_frames(duration_s), image_frames(duration_s), sync_frames(duration_s))
        wrong += [*lengths, sequence.num_samples(duration_s)] != recorded
    yield Deviation("rows that differ", float(wrong), 0.0)


def film_lengths(recording: Recording) -> Iterator[Deviation]:
    """The same with the sample rate for the variant."""
    yield from sequence_lengths(recording)


def clip_tokens(recording: Recording) -> Iterator[Deviation]:
    """Token ids of prompts, exact."""
    prompts, ids = recording.document["prompts"], recording.document["ids"]
    made = clip_tokenizer(len(ids[0]))(prompts).tolist()
    yield Deviation("prompts with other tokens", float(sum(a != b for a, b in zip(made, ids, strict=True))), 0.0)


def mel(recording: Recording) -> Iterator[Deviation]:
    """Filters, window and log-mel spectrogram; the latter's deviation is absolute, in log units."""
    c, t = recording.document["config"], recording.tensors
    config = MelConfig(
        sample_rate=c["sampling_rate"], n_fft=c["n_fft"], hop_length=c["hop"], num_mels=c["n_mels"],
        fmin=float(c["fmin"]), fmax=float(c["fmax"]), log=c["log"],
    )  # fmt: skip
    if c["win"] != config.n_fft:
        raise ValueError(f"windows of another length than the transform are not made here, got {c['win']}")
    wave = t["in.waveform"]
    made = {"mel_basis": mel_filterbank(config), "window": window(config), "log_mel": log_mel(wave, config)}
    made["log_mel_f64"] = log_mel(wave.double(), config)
    for name in recording.document["outputs"]:
        if name.startswith("log_mel") and name in made:
            difference = (made[name].double() - t[f"out.{name}"].double()).abs().max()
            yield Deviation(name, float(difference), LOG_MEL)
        elif name in made:
            yield relative(name, made[name], t[f"out.{name}"], FLOAT32)
        else:
            yield Deviation.missing(name)
