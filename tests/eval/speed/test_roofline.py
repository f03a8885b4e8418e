"""The machine's rates, and the floor they set."""

import pytest
import torch

from eval.speed import roofline
from eval.speed.budget import Roofline, Timing
from eval.speed.roofline import measure_roofline

LINE = Roofline(flops_per_s=100.0, bytes_per_s=10.0, dtype="float32", device="here")


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    assert LINE.floor_s(500.0, 20.0) == 5.0  # 500 / 100 against 20 / 10
    assert LINE.floor_s(100.0, 20.0) == 2.0
    assert (LINE.bound(500.0, 20.0), LINE.bound(100.0, 20.0)) == ("arithmetic", "memory")
    assert LINE.floor_s(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="must not be negative"):
        LINE.floor_s(-1.0, 0.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rates_must_be_positive(rate):
    with pytest.raises(ValueError, match="bytes_per_s must be positive and finite"):
        Roofline(flops_per_s=1.0, bytes_per_s=rate, dtype="float32", device="here")


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_rates_are_work_over_median_time(monkeypatch, dtype, itemsize):
    called, results = [], []

    def half_a_second(call, *, warmup, repeats, synchronise):
        called.append((warmup, repeats))
        results.append(call())
        return Timing(median_s=0.5, p10_s=0.4, p90_s=0.6, repeats=repeats)

    monkeypatch.setattr(roofline, "measure", half_a_second)
    line = measure_roofline(dtype, size=32, block_bytes=itemsize * 1000, warmup=2, repeats=4)
    assert line.flops_per_s == 2 * 32**3 / 0.5
    assert line.bytes_per_s == 3 * itemsize * 1000 / 0.5  # the triad reads two blocks and writes one: the most moved
    assert (line.dtype, line.device) == (str(dtype).removeprefix("torch."), "cpu")
    assert called == [(2, 4)] * 4
    product, total, copied, triad = results
    assert product.shape == (32, 32)
    assert product.dtype == dtype
    assert total == 1000
    assert bool((copied == 1.0).all() | (copied == 2.0).all())
    assert bool((triad == 2.0).all())  # 1 + 0.5 * 2


def test_a_real_measurement():
    line = measure_roofline(size=64, block_bytes=4096, warmup=1, repeats=2)
    assert 0.0 < line.floor_s(1e6, 1e6) < float("inf")
    with pytest.raises(ValueError, match="at least one element"):
        measure_roofline(size=8, block_bytes=2)
