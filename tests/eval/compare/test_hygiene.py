"""The facts of a test set: what was scored is written down, and other clips are no comparison."""

import hashlib

import pytest

from eval.compare.hygiene import Overlap, TestFacts, facts_of, read_facts, scored_ids, write_facts
from eval.compare.rows import ids_digest, read_clip_scores, read_rows
from teacher.files.lines import append_lines
from tests.eval.compare.sounds import clips_beside, results


def test_digest_is_that_of_the_sorted_ids_one_a_line():
    expected = hashlib.sha256(b"B\na\n\xc3\xa9\n").hexdigest()
    assert ids_digest(["a", "é", "B"]) == ids_digest(["é", "B", "a"]) == expected
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])
    for ids in (["a", "a"], ["a\nb"]):
        with pytest.raises(ValueError, match="distinct and without line breaks"):
            ids_digest(ids)


def test_facts_survive_the_file_and_changed_ids_are_noticed(tmp_path):
    overlap = Overlap(training_files=3, by_id=("a",), by_source=(), by_content=(), unread=1, unknown=("run (why)",))
    facts = TestFacts(task="vta", ids=("b", "a"), excluded=(("c", "silent"),), overlap=overlap)
    path = write_facts(tmp_path, [facts])
    assert read_facts(path) == {"vta": facts}
    assert hashlib.sha256((tmp_path / "scored-vta.txt").read_bytes()).hexdigest() == facts.digest
    write_facts(tmp_path, [TestFacts(task="tta", ids=("b",))])
    assert set(read_facts(path)) == {"vta", "tta"}  # the other task stays
    path.write_text(path.read_text().replace('"b"', '"x"', 1))
    with pytest.raises(ValueError, match="the ids of vta were changed"):
        read_facts(path)
    path.write_text('{"vta": {"ids": []}}')
    with pytest.raises(ValueError, match="does not hold the facts of a test set"):
        read_facts(path)
    with pytest.raises(ValueError, match=r"must not be scored, got \['c'\]"):
        TestFacts(task="vta", ids=("c",), excluded=(("c", "silent"),))
    printed = " ".join(facts.sentences())
    for part in ("2 clips", facts.digest, "c (silent)", "1 by id (a)", "1 files are not here", "run (why)"):
        assert part in printed


def test_models_scored_on_other_clips_are_no_comparison(tmp_path):
    path = results(tmp_path, {"teacher": ["a", "b", "c"], "student": ["a", "b", "d"]})
    with pytest.raises(ValueError, match=r"student, 1 step, seed 0 was scored on other clips .*\['c', 'd'\]"):
        scored_ids(read_rows(path), clips_beside(path), path)


def test_a_clip_missing_on_one_side_is_noticed_and_a_rerun_is_not(tmp_path):
    path = results(tmp_path, {"teacher": ["a", "b"], "student": ["b", "a"]})
    append_lines(tmp_path / "clips.jsonl", (tmp_path / "clips.jsonl").read_text().splitlines()[:2])  # cut, run again
    assert scored_ids(read_rows(path), clips_beside(path), path) == {"vta": ("a", "b")}
    lines = (tmp_path / "clips.jsonl").read_text().splitlines()
    (tmp_path / "clips.jsonl").write_text("".join(f"{line}\n" for line in lines[:3]))
    with pytest.raises(ValueError, match=r"student, 1 step, seed 0 has 2 clips, clips\.jsonl has scores of 1"):
        scored_ids(read_rows(path), clips_beside(path), path)
    (tmp_path / "clips.jsonl").write_text('{"task": 1}\n')
    with pytest.raises(ValueError, match="line 1 is not the scores of a clip"):
        read_clip_scores(tmp_path / "clips.jsonl")


def test_a_list_that_is_not_the_scored_one_is_refused(tmp_path):
    path = results(tmp_path, {"teacher": ["a", "b"]})
    write_facts(tmp_path, [TestFacts(task="vta", ids=("a", "c"))])
    with pytest.raises(ValueError, match=r"lists other clips for vta than were scored: \['b', 'c'\]"):
        facts_of(read_rows(path), clips_beside(path), path)
