"""Random numbers and data are functions of (seed, step, position): splitting a batch changes nothing."""

import threading
from dataclasses import replace

import pytest
import torch

from distill.config import FromData, FromTeacher, GuidedInput, Method
from distill.loop.fit import Feed, generator
from distill.method.step import evenly, train_step
from distill.method.student import student_from_teacher
from meanflow import Guidance, ImprovedMeanFlow, MeanFlow, MixedGuidance, TerminalVelocity
from meanflow.time_sampling import MixedTimes, TimePairs
from teacher.flow_matching import ConditionDropout, FlowMatching, flow_matching_step
from teacher.network.batch import Batch, BatchSlice, batch_slices
from tests.distill import tiny
from tests.teacher.network.test_network import conditions, opened, small

DROPOUT = ConditionDropout(video=0.3, text=0.3, text_only=0.2)
METHODS = {
    "meanflow": Method(objective=MeanFlow(), times=TimePairs(fm_fraction=0.5, full_fraction=0.5)),
    "guided by itself": Method(
        velocity=FromData(mixed=MixedGuidance(omega=0.3, kappa=0.9), predictions="student"),
        times=MixedTimes(fm_fraction=0.5),
    ),
    "rescaled guidance": Method(velocity=FromTeacher(guidance=Guidance(omega=2.0))),
    "scale as an input": Method(objective=ImprovedMeanFlow(), velocity=GuidedInput()),
    "prefix": Method(times=MixedTimes(fm_fraction=0.5, assign="prefix")),
    "terminal": Method(objective=TerminalVelocity()),
    "guided later": Method(velocity=GuidedInput(), guided_from=0.9),
}

METHODS |= {
    f"preset {name}": replace(method, velocity_head=min(1, method.velocity_head))
    for name, method in tiny.METHODS.items()
}


@pytest.fixture(scope="module")
def batch():
    g = torch.Generator().manual_seed(3)
    latents = torch.randn(12, 9, 4, generator=g, dtype=torch.float64)
    return Batch(latents=latents, conditions=conditions(small(), 12), indices=torch.arange(12))


def part(batch, batch_slice):
    rows = torch.arange(batch_slice.begin, batch_slice.end)
    return Batch(latents=batch.latents[rows], conditions=batch.conditions.rows(rows), indices=batch.indices[rows])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [2, 3, 12])
def test_losses_of_the_slices_are_those_of_the_whole(batch, name, count):
    """Every row meets the same noise, times, dropped conditions and guidance scale, and logs the same values."""
    method, teacher = replace(METHODS[name], dropout=DROPOUT), opened(small())
    student = student_from_teacher(
        teacher,
        guidance_embedding=isinstance(method.velocity, GuidedInput),
        velocity_head=method.velocity_head,
    )
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02)

    def terms(batch_slice):
        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            return train_step(
                student,
                student,
                teacher,
                part(batch, batch_slice),
                method,
                generator=g,
                progress=0.5,
                batch_slice=batch_slice,
            )

    whole = terms(BatchSlice.whole(12))
    parts = [terms(BatchSlice(b, b + 12 // count, 12)) for b in range(0, 12, 12 // count)]
    torch.testing.assert_close(torch.cat([p.loss for p in parts]), whole.loss, rtol=1e-9, atol=1e-12)
    for key, values in whole.logs.items():
        joined = torch.cat([p.logs[key] for p in parts])
        torch.testing.assert_close(joined, values, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_teacher_step_too(batch):
    net, config = opened(small()), FlowMatching(dropout=DROPOUT)

    def loss(batch_slice):
        g = torch.Generator().manual_seed(5)
        return flow_matching_step(net, part(batch, batch_slice), config, generator=g, batch_slice=batch_slice).loss

    joined = torch.cat([loss(BatchSlice(0, 4, 12)), loss(BatchSlice(4, 12, 12))])
    torch.testing.assert_close(joined, loss(BatchSlice.whole(12)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(8, 0), (8, 8), (8, 2), (512, 128), (7, 3), (100, 33)])
def test_marked_rows_are_spread_evenly(n, k):
    """A permutation, after which every window of m rows holds floor(m k / n) or one more of the marked ones."""
    marked = torch.zeros(n, dtype=torch.bool)
    marked[torch.randperm(n, generator=torch.Generator().manual_seed(0))[:k]] = True
    order = evenly(marked)
    assert torch.equal(order.sort().values, torch.arange(n))
    running = torch.cat([torch.zeros(1, dtype=torch.int64), marked[order].cumsum(0)])
    for m in (1, 2, n // 2, n):
        counts = running[m:] - running[:-m] if m else running
        assert counts.min() >= m * k // n
        assert counts.max() <= -(-m * k // n)


def test_batch_slices_partition_the_batch_in_order():
    for processes, micro in ((1, None), (2, None), (3, 2), (4, 1)):
        made = [
            s for p in range(processes) for s in batch_slices(12, process=p, processes=processes, micro_batch=micro)
        ]
        assert [row for s in made for row in range(s.begin, s.end)] == list(range(12))
        assert len({len(s) for s in made}) == 1


@pytest.mark.parametrize(
    ("total", "processes", "micro", "message"),
    [(10, 4, None, "does not divide over 4"), (12, 2, 4, "does not divide the 6 sounds"), (2, 4, None, "over 4")],
)
def test_unequal_slices_are_refused(total, processes, micro, message):
    with pytest.raises(ValueError, match=message):
        batch_slices(total, process=0, processes=processes, micro_batch=micro)
    with pytest.raises(ValueError, match="0 <= begin < end <= total"):
        BatchSlice(3, 3, 4)


class Numbered:
    """Examples whose latents are their row numbers plus the posterior's noise; remembers which thread asked."""

    def __init__(self, count, fail_at=None):
        self.count, self.fail_at, self.threads, self.asked = count, fail_at, set(), []

    def __len__(self):
        return self.count

    def batch(self, indices, *, generator, batch_slice):
        self.threads.add(threading.get_ident())
        self.asked.append(tuple(indices))
        if self.fail_at is not None and self.fail_at in indices:
            raise OSError(f"row {self.fail_at} cannot be read")
        noise = batch_slice.of(torch.randn(batch_slice.total, generator=generator))
        rows = torch.as_tensor(indices)
        return Batch(latents=(rows + noise)[:, None, None], conditions=None, indices=rows)


def feed(data, **changes):
    return Feed(data, **({"steps": 5, "batch_size": 12, "seed": 4} | changes))


def test_any_split_reads_the_same_rows_and_noise():
    with feed(Numbered(30)) as whole:
        wanted = [torch.cat([b.latents for _, b in whole.passes(step)]) for step in range(5)]
    for processes, micro in ((2, None), (2, 3), (3, 1)):
        feeds = [feed(Numbered(30), process=p, processes=processes, micro_batch=micro) for p in range(processes)]
        for step in range(5):
            made = [batch.latents for f in feeds for _, batch in f.passes(step)]
            assert torch.equal(torch.cat(made), wanted[step])


def test_one_pass_is_read_ahead_by_another_thread_and_none_twice():
    data = Numbered(30)
    with feed(data, micro_batch=6) as one:
        for step in range(3):
            assert len(list(one.passes(step))) == 2
        one.reader.submit(lambda: None).result()  # what was asked for ahead is read by now
        assert len(data.asked) == len(set(data.asked)) == 7
        list(one.passes(4))  # a jump, as after resuming
        one.reader.submit(lambda: None).result()
    assert len(data.asked) == 9  # nothing beyond the last step
    assert threading.get_ident() not in data.threads


def test_what_reading_raises_comes_at_its_step():
    bad = int(Feed(Numbered(30), steps=5, batch_size=12, seed=4).rows(2)[0])
    step = min(s for s in range(5) if bad in feed(Numbered(30)).rows(s).tolist())
    with feed(Numbered(30, fail_at=bad)) as one:
        for earlier in range(step):
            list(one.passes(earlier))
        with pytest.raises(OSError, match=f"row {bad} cannot be read"):
            list(one.passes(step))


def test_generators_depend_on_seed_step_and_purpose():
    draws = [(0, 0, "step"), (0, 1, "step"), (1, 0, "step"), (0, 0, "posterior")]
    assert len({generator(*draw).initial_seed() for draw in draws}) == 4
    assert generator(0, 0, "step").initial_seed() == generator(0, 0, "step").initial_seed()
