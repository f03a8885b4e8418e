"""The README keeps its promises: its Python runs, its commands and presets exist, and what it launches starts."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import tyro
from accelerate.commands.launch import launch_command_parser

from distill.launch.launcher import configuration
from scripts import distill, train_teacher
from tests.distill.launch.test_launch import precision_of, refusal
from tests.saved_student import save_student

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
STUDENT_PRESETS, TEACHER_PRESETS = distill.commands(), train_teacher.commands()
LAUNCHERS = ("accelerate launch", "python -m distill.launch.launcher")
PAGES = ("README.md", "docs/training.md", "docs/methods/recipes.md")


def launched(page):
    """Every command that a page launches by one of the launchers, in a block or within a line, without its comment."""
    text = re.sub(r"\\\n\s*", "", (ROOT / page).read_text())
    lines = [line.partition("  #")[0] for line in text.splitlines() if not line.startswith("|")]
    commands = [line for line in lines if line.startswith(LAUNCHERS) or re.match(r"[A-Z_]+=\S+ python -m", line)]
    commands += [quoted for quoted in re.findall(r"`([^`\n]+)`", text) if quoted.startswith(LAUNCHERS)]
    return [command.strip() for command in commands if "-m scripts." in command or "--config_file" in command]


def test_python_example_runs(tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    save_student(tmp_path / "runs" / "demo" / "student")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "ball.flac").is_file()


def test_lines_of_pages_end_at_120_characters():
    """Every Markdown page of the project, but for the rows of tables, which cannot be broken."""
    pages = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = pages.split() or [str(p.relative_to(ROOT)) for p in ROOT.glob("**/*.md") if ".venv" not in p.parts]
    long = [
        f"{page}:{k}"
        for page in pages
        for k, line in enumerate((ROOT / page).read_text().splitlines(), 1)
        if len(line) > 120 and not line.startswith("|")
    ]
    assert "README.md" in pages
    assert long == []


def test_files_named_on_pages_exist():
    """Paths of source files and folders in backticks, on every page but the changelog, which tells of the past."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"), ROOT / "benchmarks" / "README.md"]
    rooms = "meanflow|teacher|distill|eval|scripts|tests|benchmarks|docs|results"
    named = {  # docs/api is generated
        (page.name, path)
        for page in pages
        if page.name != "lab-notes.md"
        for path in re.findall(rf"`((?:{rooms})/[\w/.-]*)`", page.read_text())
        if not path.startswith("docs/api")
    }
    assert len(named) > 20
    assert sorted((page, path) for page, path in named if not (ROOT / path).exists()) == []


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


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in launched(page)])
def test_what_is_launched_starts(page, command):
    """A file is named, is there and understood; preset and flags are known, and the preset trains in its precision.
    "..." stands for anything."""
    words = [word for word in shlex.split(command[re.search("|".join(LAUNCHERS), command).end() :]) if word != "..."]
    shipped, placeholder = "accelerate" not in command, [] if "-m" in words else ["-m", "scripts.distill", "mf-mjt"]
    parsed = launch_command_parser().parse_args([*words, *placeholder])
    assert parsed.config_file is not None, "a launch file says in which precision and how many processes"
    file = Path(configuration(parsed.config_file)) if shipped else ROOT / parsed.config_file
    kind, table = {
        "scripts.distill": ("distill", STUDENT_PRESETS),
        "scripts.train_teacher": ("train_teacher", TEACHER_PRESETS),
    }[parsed.training_script]
    preset, *flags = parsed.training_script_args
    assert isinstance(tyro.extras.overridable_config_cli(table, args=[preset, *flags]), type(table[preset][1]))
    assert refusal(kind, preset, precision_of(file)) is None


def test_the_readme_launches():
    assert sum(command.startswith("accelerate launch --config_file") for command in launched("README.md")) >= 5
