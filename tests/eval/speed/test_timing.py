"""Timing on a clock of its own: what is waited for, what counts, and how stages and their parts add up."""

import time
from itertools import pairwise

import pytest

from eval.speed import timing as speed
from eval.speed.budget import FINE_STAGES, SCOPES, STAGES, TOTALS, Timing, with_totals
from eval.speed.timing import measure


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)

    def pass_s(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_launched_call_is_waited_for(clock):
    waiting = []

    def launch():  # returns after 1 s, the device works for another 9
        clock.pass_s(1.0)
        waiting.append(9.0)

    def synchronise():
        while waiting:
            clock.pass_s(waiting.pop())

    timing = measure(launch, warmup=2, repeats=3, synchronise=synchronise)
    assert (timing.p10_s, timing.median_s, timing.p90_s) == (10.0, 10.0, 10.0)
    assert timing.warmup_s == 20.0  # the work of the warm-up ends before the first timed call begins
    waiting.clear()
    assert measure(launch, warmup=0, repeats=3).median_s == 1.0  # the trap


def test_percentiles_are_measured_calls_and_the_warm_up_is_not_among_them(clock):
    delays = iter([1000.0, *range(1, 12)])  # 1 s .. 11 s in rising order after the first
    timing = measure(lambda: clock.pass_s(float(next(delays))), warmup=1, repeats=11)
    assert (timing.p10_s, timing.median_s, timing.p90_s) == (2.0, 6.0, 10.0)
    assert (timing.repeats, timing.warmup, timing.warmup_s) == (11, 1, 1000.0)


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 5, 10, 50])
def test_percentiles_are_in_order_for_any_number_of_calls(clock, repeats):
    delays = iter([(7 * k) % 5 + 1.0 for k in range(repeats)])
    timing = measure(lambda: clock.pass_s(next(delays)), warmup=0, repeats=repeats)
    assert 1.0 <= timing.p10_s <= timing.median_s <= timing.p90_s <= 5.0


def test_a_sleep_takes_its_time():
    assert measure(lambda: time.sleep(0.02), warmup=1, repeats=3).p10_s >= 0.02


def test_impossible_times_are_refused():
    with pytest.raises(ValueError, match=r"p10_s <= median_s <= p90_s, got 2\.0, 1\.0, 3\.0"):
        Timing(median_s=1.0, p10_s=2.0, p90_s=3.0, repeats=3)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        Timing(median_s=1.0, p10_s=1.0, p90_s=1.0, repeats=0)
    with pytest.raises(ValueError, match="repeats at least 1"):
        measure(lambda: None, repeats=0)


def test_parts_add_up_to_the_stage_that_they_stand_for():
    parts = {"flow network": 1.0, "latent decode": 2.0, "vocoder": 4.0}
    assert with_totals(parts) == parts | {"codec decode": 6.0, "generator only": 1.0, "noise to wave": 7.0}
    assert with_totals(parts | {"codec decode": 10.0})["noise to wave"] == 11.0  # what was measured whole stays
    assert "codec decode" not in with_totals({"vocoder": 4.0})
    assert with_totals(dict.fromkeys(FINE_STAGES, 1.0))["video-to-audio"] == len(FINE_STAGES) == len(STAGES) + 1


def test_each_scope_is_described_and_holds_the_one_before():
    assert set(SCOPES) == set(TOTALS)
    stages = [set(TOTALS[name]) for name in TOTALS]
    assert all(small < large for small, large in pairwise(stages))
    assert stages[-1] == set(STAGES)
