"""Torchvision of another build can be imported, in programs that know nothing of this project too, and a fitting one is
left alone."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mf_mjt_torchvision
from mf_mjt_torchvision import _Finder, _Loader, guard_torchvision
from tests.distill.processes import installed

ROOT = Path(__file__).parents[1]


def module(tmp_path, text):
    """A package of this text, as the guard executes one."""
    from importlib.util import module_from_spec, spec_from_file_location

    path = tmp_path / "stand_in.py"
    path.write_text(text)
    spec = spec_from_file_location("stand_in", path, loader=_Loader("stand_in", str(path)))
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_torchvision_can_be_imported_and_transforms():
    guard_torchvision()
    guard_torchvision()
    assert sum(isinstance(finder, _Finder) for finder in sys.meta_path) == 1
    import torch
    import torchvision.transforms.v2.functional as transforms

    assert transforms.center_crop(torch.arange(16).view(1, 4, 4), [2, 2]).tolist() == [[[5, 6], [9, 10]]]


def test_what_can_be_imported_is_executed_once_and_nothing_is_declared(tmp_path):
    """Declaring an operator that a fitting torchvision declares as well would abort the process."""
    declared = list(mf_mjt_torchvision._declared)
    made = module(
        tmp_path, "from pathlib import Path\nwith Path(__file__).with_name('log').open('a') as f: f.write('x')"
    )
    assert made.__spec__.loader.path == str(tmp_path / "stand_in.py")
    assert (tmp_path / "log").read_text() == "x"
    assert mf_mjt_torchvision._declared == declared


@pytest.mark.parametrize(
    ("message", "error", "told"),
    [
        ("operator torchvision::nms does not exist", ImportError, r"does not fit the installed torch .*operator nms"),
        ("operator torchvision::new does not exist", ImportError, r"does not fit the installed torch .*operator new"),
        ("out of memory", RuntimeError, "out of memory"),
    ],
)
def test_import_that_cannot_be_helped_is_an_error(tmp_path, message, error, told):
    """nms is there by now, declared by torchvision itself or by the guard: to miss it again is not our case."""
    guard_torchvision()
    import torchvision  # noqa: F401

    with pytest.raises(error, match=told):
        module(tmp_path, f"raise RuntimeError({message!r})")


def test_programs_that_know_nothing_of_us_can_import_it(tmp_path):
    """The console command accelerate, in a folder with names like those of our packages."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "distill").mkdir()
    program = "import sys\nfrom accelerate.commands.accelerate_cli import main\nimport timm, torchvision\n"
    program += "print(*{name.partition('.')[0] for name in sys.modules})"
    environment = installed(tmp_path / "site")
    for variables, status in ((environment, 0), (environment | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, None)):
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        if status is None and ended.returncode:  # switched off, beside a torchvision of another build
            assert "operator torchvision::nms does not exist" in ended.stderr
        else:
            assert ended.returncode == 0, ended.stderr
            assert not {"teacher", "distill", "meanflow"} & set(ended.stdout.split())


def test_it_costs_no_import():
    program = "import sys; before = set(sys.modules); import mf_mjt_torchvision as m; m.guard_torchvision()\n"
    program += "new = {name.partition('.')[0] for name in set(sys.modules) - before} - {'mf_mjt_torchvision'}\n"
    program += "assert new <= sys.stdlib_module_names, new"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_it_is_installed_with_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["py-modules"] == ["mf_mjt_torchvision"]
    (value,) = project["project"]["entry-points"]["torch.backends"].values()
    assert value == f"{guard_torchvision.__module__}:{guard_torchvision.__name__}"
