"""What a comparison is asked for, checked before anything is made: its networks, numbers and clips."""

from collections.abc import Sequence
from pathlib import Path

from eval.compare.rows import Task
from eval.compare.test_set import Unreadable, match_ids, read_test_ids
from scripts.contestants import Entry
from teacher.features.dataset import FeatureSet
from teacher.sampling.pipeline import Pipeline
from teacher.weights.run_folder import read_features_info


def entries(teacher: Path | None, student: Path | None, also: Sequence[str]) -> list[Entry]:
    """The networks by name. Raises ValueError where there is none."""
    own = [Entry(name, run) for name, run in (("teacher", teacher), ("student", student)) if run is not None]
    found = [*own, *map(Entry.parse, also)]
    if not found:
        raise ValueError("there is no network to compare: give --teacher, --student or --also")
    return found


def check_least(**numbers: tuple[Sequence[int], int]) -> None:
    """ValueError naming the flag unless it holds numbers and none is below its least one."""
    for name, (values, least) in numbers.items():
        if not values or min(values) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least {least}, got {' '.join(map(str, values)) or 'none'}")


def check_fits(entry: Entry, pipeline: Pipeline, features: FeatureSet) -> None:
    """ValueError unless the network was trained for the windows, encoders and sample rate of the data: its waves would
    be scored as sound of another rate, or features handed to it that it does not know."""
    jumps = pipeline.net.config.interval_embedding
    if (entry.name, jumps) in (("teacher", True), ("student", False)):
        kind = "jumps, as students do" if jumps else "is integrated, as teachers are"
        raise ValueError(f"--{entry.name} {entry.run} {kind}; exchange the two, or give it by --also NAME={entry.run}")
    config = features.info["config"]
    for name, own, of_data in (
        ("sample rate", pipeline.codec.sequence.sample_rate, features.sequence.sample_rate),
        ("duration in seconds", pipeline.window_s, features.duration_s),
        ("set of encoders", read_features_info(entry.run).encoders, config["encoders"]),
    ):
        if own != of_data:
            raise ValueError(f"{entry.name} ({entry.run}): its {name} is {own}, that of the data is {of_data}")


def listed(
    test_list: Path | None, features: FeatureSet, task: Task, unreadable: Unreadable
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Ids to score and listed ids that are not there; None without a list."""
    if test_list is None:
        return None, ()
    records = [record for record in features.records if record.has_video or task == "tta"]
    matched = match_ids(read_test_ids(test_list), records)
    if matched.missing and unreadable == "fail":
        raise ValueError(
            f"{test_list}: {matched} in {features.folder}; extract them, or leave them out for all models with "
            "--unreadable exclude"
        )
    return matched.ids, matched.missing
