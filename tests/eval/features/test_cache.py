"""Features on disk: round trips, what a file is named after, damage; and parts dealt to processes."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval.compare.sweep import part_path
from eval.features.cache import FeatureCache, FileDigests, in_parts
from eval.features.clip_features import ClipFeatures
from eval.metrics.embeddings import Embeddings

# Features of clips


def some_features(counts=(2, 1, 3), *, start=0.0, scores=True) -> ClipFeatures:
    """Clips c0, c1, ... with counted rows of "many", one row and three logits of "one"."""
    rows = torch.arange(sum(counts) * 2.0).view(-1, 2) + start
    clips = len(counts)
    by_source = {
        "many": Embeddings(rows=rows, counts=tuple(counts)),
        "one": Embeddings(rows=torch.ones(clips, 4), counts=(1,) * clips, logits=torch.eye(3)[:clips]),
    }
    per_clip = [{"kl": 0.1 * k + start, "desync": 1 / 3} for k in range(clips)] if scores else []
    return ClipFeatures.of([f"c{k}" for k in range(clips)], by_source, per_clip)


def same(a: ClipFeatures, b: ClipFeatures) -> bool:
    tensors = a.tensors.keys() == b.tensors.keys() and all(a.tensors[n].equal(b.tensors[n]) for n in a.tensors)
    return tensors and a.ids == b.ids and a.per_clip == b.per_clip


def test_parts_joined_are_the_whole_and_clips_are_cut_by_their_counts():
    whole = some_features()
    assert [len(whole.clips(k, k + 1).embeddings("many").rows) for k in range(3)] == [2, 1, 3]
    assert whole.clips(1, 3).embeddings("many").rows[:, 0].tolist() == [4.0, 6.0, 8.0, 10.0]
    assert whole.clips(1, 3).embeddings("many").by_clip[1][:, 0].tolist() == [6.0, 8.0, 10.0]
    assert whole.clips(1, 2).per_clip == whole.per_clip[1:2]
    for cuts in ((0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3), (0, 0, 3)):
        parts = [whole.clips(a, b) for a, b in pairwise(cuts)]
        assert same(ClipFeatures.join(parts), whole)
    assert whole.sources == ("many", "one")
    assert whole.logits("many") is None
    assert whole.logits("two") is None
    assert whole.logits("one").equal(torch.eye(3))


def test_parts_that_do_not_belong_together_are_refused():
    lacking = ClipFeatures.of(["a"], {"many": Embeddings(rows=torch.ones(1, 2), counts=(1,))})
    for parts in ([], [some_features(), lacking]):
        with pytest.raises(ValueError, match="parts must be there and hold the same tensors"):
            ClipFeatures.join(parts)
    with pytest.raises(ValueError, match="per_clip must be empty or one per clip, got 3 of 6"):
        ClipFeatures.join([some_features(), some_features(scores=False)])
    with pytest.raises(ValueError, match="many must have rows of all 2 clips"):
        ClipFeatures(ids=("a", "b"), tensors=some_features().tensors)
    whole = some_features()
    with pytest.raises(ValueError, match=r"many must have rows of all 3 clips, counted in many\.counts"):
        replace(whole, tensors={**whole.tensors, "many.features": torch.ones(5, 2)})


def test_what_is_written_is_read_again_bit_for_bit(tmp_path):
    whole = some_features(start=1 / 7)
    path = whole.write(tmp_path / "deep" / "features.safetensors", {"excluded": "[]"})
    read, facts = ClipFeatures.read(path)
    assert same(read, whole)
    assert facts == {"excluded": "[]"}
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    empty = ClipFeatures(ids=(), tensors={})
    assert same(ClipFeatures.read(empty.write(tmp_path / "empty.safetensors"))[0], empty)
    view = whole.clips(1, 3)  # slices of other tensors
    assert same(ClipFeatures.read(view.write(tmp_path / "view.safetensors"))[0], view)


@pytest.mark.parametrize("fault", ["cut", "other", "text", "empty"])
def test_a_file_that_is_not_what_was_written_is_named_in_one_line(tmp_path, fault):
    path = some_features().write(tmp_path / "features.safetensors")
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "other":
        save_file({"x": torch.ones(1)}, path)
    else:
        path.write_text("not tensors" if fault == "text" else "")
    with pytest.raises(ValueError, match=r"features\.safetensors cannot be read .*; delete it and run again") as caught:
        ClipFeatures.read(path)
    assert "\n" not in str(caught.value)


# Cache and digests


def test_a_file_of_the_cache_is_made_once_for_what_decides_it(tmp_path):
    cache, made = FeatureCache(folder=tmp_path), []

    def make():
        made.append(1)
        return some_features(start=float(len(made))), {"number": str(len(made))}

    what = {"file": "abc", "model": "m-1", "start": 0.5}
    for _ in range(3):
        cache.get(what, make)
    cache.get(dict(reversed(what.items())), make)  # the order of the names does not matter
    assert len(made) == 1
    assert same(cache.read(what)[0], some_features(start=1.0))
    assert cache.read(what)[1] == {"number": "1"}
    others = [what | {"start": 0.25}, what | {"model": "m-2"}, what | {"file": "abd"}, what | {"seconds": 8.0}]
    assert len({cache.path(one) for one in [what, *others]}) == 5
    for other in others:
        cache.get(other, make)
    assert len(made) == 5
    cache.path(what).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{cache.path(what)} cannot be read"):
        cache.read(what)
    cache.get(what, make)  # nothing takes its place
    assert len(made) == 5


def test_a_failure_leaves_nothing_in_the_cache(tmp_path):
    def fail():
        raise ValueError("no picture")

    cache = FeatureCache(folder=tmp_path)
    with pytest.raises(ValueError, match="no picture"):
        cache.get({"a": 1}, fail)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


SHA = {b"one": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}


def test_digests_are_remembered_by_path_size_and_time(tmp_path, monkeypatch):
    path, folder = tmp_path / "a.wav", tmp_path / "cache"
    path.write_bytes(b"one")
    digests = FileDigests(folder=folder)
    assert digests.of(path) == SHA[b"one"]
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.of(path) == SHA[b"one"]  # same size and time: not read again
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert digests.of(path) != SHA[b"one"]
    path.write_bytes(b"one!")
    assert digests.of(path) not in ("", SHA[b"one"])
    assert len((folder / "files-0.jsonl").read_text().splitlines()) == 3
    assert digests.of(tmp_path / "absent.wav") == digests.of(tmp_path) == ""
    path.write_bytes(b"one")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    monkeypatch.setattr("hashlib.file_digest", None)  # another process, another day: nothing is read
    assert FileDigests(folder=folder, process=3).of(path) == SHA[b"one"]


def test_each_process_writes_its_own_list_and_reads_all(tmp_path, monkeypatch):
    paths = [tmp_path / f"{k}.wav" for k in range(4)]
    for k, path in enumerate(paths):
        path.write_bytes(bytes([k]))
    first, second = (FileDigests(folder=tmp_path / "cache", process=k) for k in range(2))
    found = [first.of(paths[0]), second.of(paths[1]), first.of(paths[2]), second.of(paths[3])]
    assert len(set(found)) == 4
    lists = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "cache").iterdir()}
    assert lists == {"files-0.jsonl": 2, "files-1.jsonl": 2}
    with (tmp_path / "cache" / "files-1.jsonl").open("a") as file:
        file.write('["cut')  # what a killed process left
    monkeypatch.setattr("hashlib.file_digest", None)
    third = FileDigests(folder=tmp_path / "cache", process=2)
    assert [third.of(path) for path in paths] == found


@pytest.mark.parametrize("line", ["not JSON", "[1, 2]", "3", '["a", "b", "c", "d"]'])
def test_a_damaged_list_is_named(tmp_path, line):
    (tmp_path / "files-0.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"files-0\.jsonl cannot be read .*; delete it and run again"):
        FileDigests(folder=tmp_path).of(Path(__file__))


# Parts


@dataclass
class Dealt:
    """Stands in for `Processes`: what the others do happens when they are waited for."""

    rank: int
    world: int
    finish: Callable[[int], None] = lambda rank: None
    waited: list[tuple[str, list[int]]] = field(default_factory=list)

    def mine(self, number):
        return number % self.world == self.rank

    def wait(self, done, *, what, on):
        self.waited.append((what, list(on)))
        for rank in on:
            self.finish(rank)
        assert done()


def parts_of(folder, count, size, processes, made, **options):
    def make(first, last):
        made.append((first, last))
        part_path(folder, first, last).write_text("")

    path = partial(part_path, folder)
    return in_parts(count, size, path=path, make=make, processes=processes, what="the parts", **options)


@pytest.mark.parametrize(("count", "size", "world"), [(10, 3, 1), (10, 3, 2), (10, 3, 3), (10, 3, 7), (4, 4, 2)])
def test_every_part_is_made_once_and_all_have_them_in_order(tmp_path, count, size, world):
    expected = [(k, min(k + size, count)) for k in range(0, count, size)]
    made = {rank: [] for rank in range(world)}

    def finish(rank):
        for first, last in expected[rank::world]:
            if not part_path(tmp_path, first, last).exists():
                made[rank].append((first, last))
                part_path(tmp_path, first, last).write_text("")

    processes = Dealt(rank=0, world=world, finish=finish)
    files = parts_of(tmp_path, count, size, processes, made[0])
    assert files == [part_path(tmp_path, *part) for part in expected]
    assert all(made[rank] == expected[rank::world] for rank in range(world))
    # Waits for the others alone, each for the part it has.
    assert [on for _, on in processes.waited] == [[k % world] for k in range(len(expected)) if k % world]
    assert all(what.startswith("the parts, part ") for what, _ in processes.waited)
    again: list[tuple[int, int]] = []
    assert parts_of(tmp_path, count, size, Dealt(rank=0, world=world), again) == files
    assert again == []


def test_who_does_not_wait_looks_for_no_part_of_another(tmp_path):
    """The lead may have read all parts and removed them before a slower process would look."""
    made: list[tuple[int, int]] = []
    processes = Dealt(rank=1, world=2, finish=lambda rank: pytest.fail("waited"))
    assert len(parts_of(tmp_path, 10, 3, processes, made, wait=False)) == 4
    assert made == [(3, 6), (9, 10)]
    assert processes.waited == []
