"""Long films: memory against length, and whether the seams between windows can be measured.

`python -m benchmarks.long_video --run runs/demo/student` writes films of 30 s and 300 s of moving shapes, makes sound
for each in a process of its own and prints peak memory, time and how the seams compare with the insides of windows:
energy in 20 ms frames and spectral flux, as the fraction of inside frames below the median seam frame (0.5 is
equal), and the two-sample Kolmogorov-Smirnov distance with its limit at 1 % for that many seams.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from eval.ledger import NumberTable, record
from eval.metrics.onsets import HOP_S, flux_envelope
from teacher.media import write_video
from teacher.sampling.pipeline import Pipeline
from teacher.sampling.windows import overlap_s

FPS, PIXELS = 25, 64


def shapes(duration_s: float) -> np.ndarray:
    """Three soft spots that bounce, uint8 (frames, 64, 64, 3)."""
    t = np.arange(round(duration_s * FPS)) / FPS
    y, x = np.mgrid[:PIXELS, :PIXELS]
    frames = np.zeros((len(t), PIXELS, PIXELS, 3), np.uint8)
    for k, (period, phase) in enumerate(((0.9, 0.0), (1.3, 0.4), (2.1, 0.2))):
        height = 55 - 45 * np.abs(np.sin(math.pi * (t / period + phase)))
        spot = np.exp(-((x[None] - 12 - 18 * k) ** 2 + (y[None] - height[:, None, None]) ** 2) / 30.0)
        frames[..., k] = (230 * spot).astype(np.uint8)
    return frames


def peak_mb() -> float:
    """Peak memory of this program in MB; that of the `resource` module would include its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no peak memory (VmHWM); this needs Linux")


def one(run: Path, film: Path) -> dict[str, float]:
    """Sound for one film in this process: peak memory before and after, time, and the seams."""
    pipe = Pipeline.from_pretrained(run)
    before = peak_mb()
    began = time.perf_counter()
    scene = pipe.scene(video=film)
    sound = pipe(scene, guidance=1.4)[0]
    seconds, peak = time.perf_counter() - began, peak_mb()
    rate, fade = sound.sample_rate, overlap_s(pipe.window_s)
    starts = np.array(scene.starts[1:]) / pipe.codec.sequence.latent_rate
    wave = sound.wave.double().numpy()
    flux = flux_envelope(wave, rate)
    frame = round(0.02 * rate)
    level = 10 * np.log10(np.square(wave[: len(wave) // frame * frame]).reshape(-1, frame).mean(1) + 1e-12)
    found: dict[str, float] = {
        "windows": len(scene), "duration_s": sound.duration_s, "seconds": seconds,
        "peak_mb": peak, "loaded_mb": before,
    }  # fmt: skip
    for name, values, step in (("energy", level, 0.02), ("flux", flux, HOP_S)):
        at = (np.arange(len(values)) + 0.5) * step
        near = (at[:, None] >= starts) & (at[:, None] < starts + fade)
        seam, inside = values[near.any(1)], values[~near.any(1)]
        if len(seam):
            found[f"{name}_below"] = float((inside < np.median(seam)).mean())
            found[f"{name}_ks"] = float(ks_2samp(seam, inside).statistic)
            # Frames within a fade depend on each other: one independent value per seam is counted.
            found[f"{name}_limit"] = 1.63 * math.sqrt(1 / len(starts) + 1 / max(1, len(starts)))
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo/student"))
    parser.add_argument("--film", type=Path)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 300.0])
    parser.add_argument("--record", type=Path, help="also write the figures to this file of the ledger")
    args = parser.parse_args()
    if args.film is not None:
        print(json.dumps(one(args.run, args.film)))
        return
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in args.seconds:
            film = Path(folder) / f"{seconds:g}.mp4"
            write_video(film, shapes(seconds), FPS, np.zeros(round(seconds * 16_000), np.float32), 16_000)
            command = [sys.executable, "-m", "benchmarks.long_video", "--run", str(args.run), "--film", str(film)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            f = json.loads(done.stdout.splitlines()[-1])
            seams = [f[f"{name}_{figure}"] for name in ("energy", "flux") for figure in ("below", "ks")]
            measured.append(
                (seconds, f["windows"], f["peak_mb"], f["loaded_mb"], f["seconds"], *seams, f["energy_limit"])
            )
    table = NumberTable(
        columns=(
            "film s", "windows", "peak MB", "of which loading", "seconds", "energy: below", "KS", "flux: below", "KS",
            "limit of KS",
        ),
        formats=(".0f", ".0f", ".0f", ".0f", ".1f", ".2f", ".3f", ".2f", ".3f", ".2f"),
        rows=tuple(measured),
    )  # fmt: skip
    print(table.markdown())
    if args.record:
        record(args.record, tables={"films": table})


if __name__ == "__main__":
    main()
