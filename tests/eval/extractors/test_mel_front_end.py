"""Kaldi's filters are triangles in mel that add up to one, and its energies agree with recorded ones."""

import math

import pytest
import torch

from eval.extractors.mel_front_end import ENERGY_FLOOR, KaldiFbank, hz_to_htk, kaldi_filters
from tests.rounding import UNIT, log_energy

PASST = {"sample_rate": 32_000, "n_fft": 1024, "num_mels": 128, "fmin_hz": 0.0, "fmax_hz": 15_000.0}
IMAGEBIND = {"sample_rate": 16_000, "n_fft": 512, "num_mels": 128, "fmin_hz": 20.0, "fmax_hz": 8000.0}
SETTINGS = [pytest.param(PASST, id="passt"), pytest.param(IMAGEBIND, id="imagebind")]


def mel(hz: float) -> float:
    """1127 ln(1 + f / 700)."""
    return 1127.0 * math.log(1.0 + hz / 700.0)


def points(settings: dict) -> torch.Tensor:
    """The 130 corners in mel, float64."""
    low, top = mel(settings["fmin_hz"]), mel(settings["fmax_hz"])
    return torch.linspace(low, top, settings["num_mels"] + 2, dtype=torch.float64)


def bin_mels(settings: dict) -> torch.Tensor:
    """Frequencies of the bins below Nyquist in mel, float64."""
    step = settings["sample_rate"] / settings["n_fft"]
    return torch.tensor([mel(k * step) for k in range(settings["n_fft"] // 2)], dtype=torch.float64)


def chirps(sample_rate: int, duration_s: float) -> torch.Tensor:
    """Two sweeps, the signal of the recorded numbers."""
    t = torch.arange(round(duration_s * sample_rate), dtype=torch.float64) / sample_rate
    wave = 0.4 * torch.sin(2 * torch.pi * (150 * t + 400 * t**2)) + 0.2 * torch.sin(2 * torch.pi * 800 * t**2)
    return wave[None].float()


def test_mel_scale():
    # 1127 = 1000 / ln(1 + 1000 / 700) to four digits: 1000 Hz is 1000 mel.
    found = hz_to_htk(torch.tensor([0.0, 1000.0, 700.0, 4321.0], dtype=torch.float64)).tolist()
    assert found == pytest.approx([0.0, 1000.0, 1127.0 * math.log(2.0), mel(4321.0)], abs=0.02)


@pytest.mark.parametrize("settings", SETTINGS)
def test_filters_are_triangles_in_mel(settings):
    """Filter m is 1 - |mel - centre| / step where that is positive: float64, rounded once."""
    corners, bins = points(settings), bin_mels(settings)
    step = corners[1] - corners[0]
    expected = (1.0 - (bins - corners[1:-1, None]).abs() / step).clamp_min(0.0)
    made = kaldi_filters(**settings)
    assert made.shape == (128, settings["n_fft"] // 2 + 1)
    assert made.dtype == torch.float32
    # Weights are at most 1, so that the one rounding is at most UNIT; float64 leaves 1e-16 * 3504 mel / 22 mel more.
    torch.testing.assert_close(made[:, :-1].double(), expected, atol=UNIT + 1e-12, rtol=0)
    assert bool((made[:, -1] == 0).all())  # the bin of the Nyquist frequency


@pytest.mark.parametrize("settings", SETTINGS)
def test_filters_add_up_to_one_between_the_outer_centres(settings):
    corners, bins, total = points(settings), bin_mels(settings), kaldi_filters(**settings).double().sum(0)[:-1]
    inside = (bins >= corners[1]) & (bins <= corners[-2])
    assert int(inside.sum()) > 200
    # Two rounded weights in every bin.
    torch.testing.assert_close(total[inside], torch.ones_like(total[inside]), atol=2 * UNIT, rtol=0)
    outside = (bins <= corners[0]) | (bins >= corners[-1])
    # 15 000 Hz is the frequency of a bin, where float64 leaves 3504 * 2^-52 / 27 of a difference of mels.
    assert float(total[outside].max()) < 1e-12
    edge = ~inside & ~outside
    assert bool(((total[edge] > 0) & (total[edge] < 1)).all())


def test_edges_in_hertz():
    """The top corner is 15 000 Hz, bin 480 of 31.25 Hz: the last weight is in bin 479, the first one in bin 1."""
    used = (kaldi_filters(**PASST).sum(0) > 1e-4).nonzero().flatten()
    assert [int(used[0]), int(used[-1])] == [1, 479]
    # 20 Hz lies below the first bin, 31.25 Hz; 8000 Hz is Nyquist, bin 256, left out.
    used = (kaldi_filters(**IMAGEBIND).sum(0) > 1e-4).nonzero().flatten()
    assert [int(used[0]), int(used[-1])] == [1, 255]


def test_filters_narrower_than_a_bin_may_be_empty():
    """At 0 Hz a PaSST filter is 2 x 16.9 = 33.8 Hz wide, more than a bin: none is empty. ImageBind's are 27 Hz."""
    assert int((kaldi_filters(**PASST).sum(1) == 0).sum()) == 0
    corners, bins = points(IMAGEBIND), bin_mels(IMAGEBIND)
    held = [bool(((bins > corners[m]) & (bins < corners[m + 2])).any()) for m in range(128)]
    assert (kaldi_filters(**IMAGEBIND).sum(1) > 0).tolist() == held
    assert held.count(False) == 1


def recorded_rounding(settings: dict, place: int) -> float:
    """Bound on the error of a weight that was computed in float32 throughout, as the recorded ones were.

    A bin's mel 1127 ln(1 + f / 700) is off by UNIT (2 * 1127 + 3 mel): f / 700 and the sum are rounded, the logarithm
    is good to a last bit, two roundings, and the product is rounded. Each corner low + k step is off by 3 UNIT mel,
    and three of them meet in the weight, one in the numerator and two in the denominator. All is divided by a step.
    """
    at = mel(place * settings["sample_rate"] / settings["n_fft"])
    step = (mel(settings["fmax_hz"]) - mel(settings["fmin_hz"])) / (settings["num_mels"] + 1)
    return UNIT * (2 * 1127.0 + (3 + 3 * 3) * at) / step


# Recorded with the kaldi module of torchaudio 2.11 on torch 2.13 and one processor:
# get_mel_banks(128, n_fft, rate, fmin, fmax, 100, -500, 1), and
# fbank(wave - mean, htk_compat=True, window_type="hanning", num_mel_bins=128, dither=0).
@pytest.mark.parametrize(
    ("settings", "filter_", "place", "value"),
    [
        (PASST, 0, 1, 0.188595250248909),
        (PASST, 10, 7, 0.7216516137123108),
        (PASST, 64, 84, 0.6234596967697144),
        (PASST, 100, 229, 0.2849904000759125),
        (PASST, 127, 475, 0.4148443043231964),
        (IMAGEBIND, 0, 1, 0.8026372790336609),
        (IMAGEBIND, 64, 58, 0.7002809047698975),
        (IMAGEBIND, 127, 246, 0.10625889897346497),
    ],
)
def test_recorded_filters(settings, filter_, place, value):
    tolerance = recorded_rounding(settings, place)
    assert tolerance < 1.3e-4
    assert float(kaldi_filters(**settings)[filter_, place]) == pytest.approx(value, abs=tolerance)


def test_recorded_energies():
    wave = chirps(16_000, 2.0)
    wave = wave - wave.mean()
    made, areas = KaldiFbank()(wave)[0], kaldi_filters(**IMAGEBIND).sum(1)
    recorded = [
        (0, 0, -2.4992971420288086), (0, 20, -10.776091575622559), (50, 31, -0.4716452956199646),
        (100, 60, 4.877125263214111), (197, 70, -9.391669273376465),
    ]  # fmt: skip
    for frame, band, value in recorded:
        # The window is at most 1, and so the norm of the differences bounds that of the frame. A weight's error is at
        # most recorded_rounding of the last bin, twice that where energy lies evenly in a triangle of mean 1 / 2.
        samples = wave[0, 160 * frame : 160 * frame + 400]
        tolerance = log_energy(
            math.exp(value), floor=0.0, frame_norm=float((samples[1:] - 0.97 * samples[:-1]).norm()), n_fft=512,
            area=float(areas[band]), filters=2 * recorded_rounding(IMAGEBIND, 255),
        )  # fmt: skip
        assert float(made[frame, band]) == pytest.approx(value, abs=tolerance + 2 * UNIT * abs(value))
    # 198 * 128 values, whose errors of both signs average out; the recorded sum rounded 15 times on its way.
    assert float(made.double().mean()) == pytest.approx(-12.36922550201416, abs=15 * UNIT * 12.37)


def test_frames_of_two_seconds():
    fbank = KaldiFbank()
    assert (fbank.frame_samples, fbank.shift_samples, fbank.n_fft) == (400, 160, 512)
    # 1 + floor((32 000 - 400) / 160): ImageBind pads these 198 to 204.
    assert fbank.num_frames(32_000) == 198
    assert fbank(torch.zeros(2, 32_000)).shape == (2, 198, 128)
    assert fbank(torch.zeros(1, 400)).shape == (1, 1, 128)
    assert fbank(torch.zeros(1, 559)).shape == (1, 1, 128)
    assert fbank(torch.zeros(1, 560)).shape == (1, 2, 128)


def test_one_frame_by_the_formula():
    """Mean off, x[n] - 0.97 x[n - 1] with x[-1] = x[0], symmetric Hann, DFT of 512 points, filters, logarithm."""
    wave = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frame = wave[320:720] - wave[320:720].mean()
    n = torch.arange(400, dtype=torch.float64)
    before = frame[(n.long() - 1).clamp_min(0)]
    windowed = (frame - 0.97 * before) * (0.5 - 0.5 * torch.cos(2 * math.pi * n / 399))
    spectrum = windowed.to(torch.complex128) @ torch.exp(
        -2j * math.pi / 512 * torch.outer(n, torch.arange(257).double())
    )
    energies = kaldi_filters(**IMAGEBIND).double() @ spectrum.abs().square()
    torch.testing.assert_close(KaldiFbank()(wave[None])[0, 2], energies.clamp_min(2.0**-23).log(), atol=1e-9, rtol=1e-9)


def test_silence_is_the_floor_and_a_constant_is_silence():
    assert ENERGY_FLOOR == 2.0**-23
    torch.testing.assert_close(KaldiFbank()(torch.zeros(1, 800)), torch.full((1, 3, 128), -23 * math.log(2.0)))
    torch.testing.assert_close(KaldiFbank()(torch.full((1, 800), 0.5)), torch.full((1, 3, 128), -23 * math.log(2.0)))


@pytest.mark.parametrize("hz", [440.0, 1000.0, 3000.0, 6500.0])
def test_sine_is_loudest_in_its_filter(hz):
    t = torch.arange(16_000) / 16_000
    mean = KaldiFbank()(torch.sin(2 * torch.pi * hz * t)[None])[0].mean(0)
    centres = points(IMAGEBIND)[1:-1]
    # Bins are 31.25 Hz apart, so that below 1 kHz the bin, and with it the filter, may lie half a bin (16 Hz) off.
    off = abs(float(centres[mean.argmax()]) - mel(hz))
    assert off <= float(centres[1] - centres[0]) + mel(hz + 16.0) - mel(hz)


def test_rows_do_not_meet_and_waves_are_not_changed():
    waves = torch.randn(3, 4000, generator=torch.Generator().manual_seed(1))
    copy, fbank = waves.clone(), KaldiFbank()
    together = fbank(waves)
    assert torch.equal(waves, copy)
    torch.testing.assert_close(together[1:2], fbank(waves[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_fft": 1023}, "n_fft must be even, got 1023"),
        ({"num_mels": 0}, "num_mels must be positive, got 0"),
        ({"fmax_hz": 16_001.0}, "fmin_hz and fmax_hz must satisfy .* got 0.0, 16001.0"),
        ({"fmin_hz": 15_000.0}, "fmin_hz and fmax_hz must satisfy .* got 15000.0, 15000.0"),
    ],
)
def test_filters_that_do_not_exist_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        kaldi_filters(**(PASST | change))


def test_settings_and_waves_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"frame_ms must be at least two samples, got 0\.1 at 16000 Hz"):
        KaldiFbank(frame_ms=0.1)
    with pytest.raises(ValueError, match="fmin_hz and fmax_hz must satisfy"):
        KaldiFbank(sample_rate=8000)
    with pytest.raises(ValueError, match=r"at least 400 samples \(one frame\), got 399"):
        KaldiFbank()(torch.zeros(1, 399))
