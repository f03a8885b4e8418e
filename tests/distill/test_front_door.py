"""What `import distill` offers: every name it lists is there, and nothing is loaded before it is used."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import distill
from distill import presets
from teacher.weights.loading import load_network
from tests.distill import tiny


def test_every_name_is_there_and_others_are_not():
    assert all(getattr(distill, name).__name__ == name for name in distill.__all__)
    assert set(distill.__all__) <= set(dir(distill))
    with pytest.raises(AttributeError, match="'distill' has no attribute 'train'"):
        distill.train  # noqa: B018


def test_the_package_itself_loads_no_torch():
    program = "import sys, distill, distill.processes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher and its student, made as the package's docstring makes them, but smaller."""
    folder = tmp_path_factory.mktemp("front_door")
    data = (tiny.features(folder),)
    start = distill.Fresh(network=tiny.NETWORK, init="unit")
    of_teacher = replace(presets.TEACHERS["debug"](), data=data, start=start, loop=tiny.LOOP)
    teacher = distill.train_teacher(of_teacher, folder / "teacher")
    of_student = replace(presets.STUDENTS["debug"](), data=data, teacher=teacher, loop=tiny.LOOP)
    return teacher, distill.distil(of_student, folder / "student")


def test_a_student_is_loaded_and_a_teacher_is_refused(runs):
    teacher, student = runs
    net = distill.load_student(student)
    assert net.config.interval_embedding
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    expected = load_network(student).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
    last = distill.load_student(student, weights="model").state_dict()
    assert any(not torch.equal(last[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="is a teacher"):
        distill.load_student(teacher)


def test_a_teachers_weights_are_read_once_and_its_codec_opened_once(runs, monkeypatch, tmp_path):
    """Also where the student goes on from an earlier one."""
    teacher, student = runs
    config = replace(
        presets.STUDENTS["debug"](),
        data=(teacher.parent / "features",),
        teacher=teacher,
        student=distill.FromWeights(run=student),
        loop=tiny.LOOP,
    )
    calls = []

    def counted(name, position=0):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **o: calls.append((name, a[position].name)) or real(*a, **o))

    from distill import initial_network as module
    from distill.tasks import student_task

    counted("load_network")
    counted("load_codec")
    student_task(config, tmp_path / "run")
    assert sorted(calls) == [("load_codec", "features"), ("load_network", "student"), ("load_network", "teacher")]
