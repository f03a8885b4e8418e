"""The README keeps its promises: its Python runs, its commands and presets exist."""

import re
import tomllib
from pathlib import Path

from scripts.distill import PRESETS as STUDENT_PRESETS
from scripts.train_teacher import PRESETS as TEACHER_PRESETS
from tests.saved_student import save_student

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_python_example_runs(tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    save_student(tmp_path / "runs" / "demo" / "student")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "ball.flac").is_file()


def test_commands_exist():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(re.findall(r"\bmf-[a-z0-9-]+", TEXT)) - set(STUDENT_PRESETS) <= set(scripts)
    for module in set(re.findall(r"-m scripts\.(\w+)", TEXT)):
        assert (ROOT / "scripts" / f"{module}.py").is_file()
    for target in set(re.findall(r"^make (\w+)", TEXT, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_presets_named_in_the_readme_exist():
    assert set(re.findall(r"scripts\.train_teacher ([a-z0-9-]+)", TEXT)) <= set(TEACHER_PRESETS)
    assert set(re.findall(r"scripts\.distill ([a-z0-9-]+)", TEXT)) <= set(STUDENT_PRESETS)
