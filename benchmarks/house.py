"""Size and readability: files, lines and names of this project and of others, and the files on traced trips through it.

python -m benchmarks.house --demo runs/demo --tree before=../before --package azula=PATH --package diffrax=PATH

Counted of every tree, from its syntax: source files (a package's `__init__.py` included), lines, public classes,
public functions (methods are not counted) and the lines of functions, methods included.

Traced of this tree and of every `--tree NAME=PATH` (an earlier checkout of this project, say): a command is run there
on copies of what `--demo` holds, and the files are counted of which a function ran; what runs while a module is being
imported is not counted, since a reader of the trip does not have to read it.

    equation   one optimiser step: the files on the stack from the training loop to the objective's equation, those
               that the equation calls but for the network, and the engine's optimiser step
    batch      one whole step of training: what runs between the end of one optimiser step and the end of the next,
               reading ahead, averages and log included
    training   `scripts.distill debug` for three steps, from the command line to its checkpoint
    film       `scripts.sample --video` of one film, from the command line to WAV and video
    distance   `scripts.verify --cell`: a Frechet distance from the stored features of a comparison
    report     `scripts.report`, from rows to page and tables

An import closure is the number of modules of the tree that `import scripts.NAME` loads.
"""

import ast
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("meanflow", "teacher", "distill", "eval", "scripts")
IMPORTED = ("report", "sample", "distill", "compare")
"""Commands whose import closures are counted."""
EDM2 = {"files": 20, "lines": 5008, "classes": 27, "functions": 112, "median": 6, "p95": 55, "max": 185}
"""NVlabs/edm2 at commit 4bf8162, counted in the same way when a clone was at hand; it is on no package index."""
OPTIMIZED = 0x1
"""Code flag (CO_OPTIMIZED) of functions, which code of modules and class bodies does not have."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts from the syntax of source files: files, lines, public names, lines of functions."""

    files: int
    lines: int
    classes: int
    functions: int
    median: float
    """Lines per function: median, 95th percentile, longest."""
    p95: float
    max: int

    def row(self, name: str) -> tuple[str | float, ...]:
        """The row of the table."""
        return name, self.files, self.lines, self.classes, self.functions, self.median, self.p95, self.max


def count(files: Sequence[Path]) -> Counts:
    """The counts of these source files. Raises SyntaxError for a file that is not Python."""
    lines, classes, functions, lengths = 0, 0, 0, []
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        tree = ast.parse(text)
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            classes += public and isinstance(node, ast.ClassDef)
            functions += public and isinstance(node, ast.FunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
    lengths.sort()
    return Counts(
        files=len(files),
        lines=lines,
        classes=classes,
        functions=functions,
        median=statistics.median(lengths),
        p95=lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        max=lengths[-1],
    )


def sources(tree: Path) -> list[Path]:
    """Source files of a checkout of this project, or of another package without its plug-ins and tests."""
    if (tree / "meanflow").is_dir():
        return sorted(path for name in PACKAGES for path in (tree / name).rglob("*.py"))
    return sorted(path for path in tree.rglob("*.py") if not {"plugins", "tests", "test"} & set(path.parts))


@dataclass(kw_only=True)
class Tracer:
    """A profiler that records the files whose functions run, and those around an objective's equation."""

    tree: str
    ran: set[str] = field(default_factory=set)
    equation: set[str] = field(default_factory=set)
    batch: set[str] = field(default_factory=set)
    steps: int = 0
    """Optimiser steps that have ended."""
    _names: dict[CodeType, str | None] = field(default_factory=dict)
    _inside: dict[int, int] = field(default_factory=dict)
    """Depth of calls within an equation, by thread."""

    def name(self, code: CodeType) -> str | None:
        """The file of a function of the tree, relative to it; None for anything else."""
        if code not in self._names:
            ours = code.co_filename.startswith(self.tree) and code.co_flags & OPTIMIZED
            relative = code.co_filename[len(self.tree) :].lstrip("/")
            self._names[code] = relative if ours and relative.split("/")[0] in PACKAGES else None
        return self._names[code]

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Callback of `sys.setprofile`."""
        thread = threading.get_ident()
        depth = self._inside.get(thread, 0)
        if event == "return":
            self.steps += self._is_step(frame.f_code)
            if depth:
                self._inside[thread] = depth - 1
            return
        if event != "call":
            return
        name = self.name(frame.f_code)
        if depth:
            self._inside[thread] = depth + 1
            if name is not None and not name.startswith("teacher/"):
                self.equation.add(name)
        elif name is not None and name.startswith("meanflow/objectives/") and frame.f_code.co_name == "__call__":
            self._inside[thread] = 1
            self.equation |= {name} | set(self._above(frame))
        if name is not None and self._is_step(frame.f_code):
            self.equation.add(name)
        if name is not None and self.steps == 1:
            self.batch.add(name)
        if name is not None and name not in self.ran and not _importing(frame):
            self.ran.add(name)

    def _is_step(self, code: CodeType) -> bool:
        """Whether a function is an engine's optimiser step."""
        return code.co_name == "step" and (self.name(code) or "").startswith("distill/engines/")

    def _above(self, frame: FrameType) -> Iterator[str]:
        """Files of the callers of a frame, up to the training loop."""
        above = frame.f_back
        while above is not None:
            name = self.name(above.f_code)
            if name is not None:
                yield name
                if above.f_code.co_name == "fit":
                    return
            above = above.f_back


def _importing(frame: FrameType) -> bool:
    above: FrameType | None = frame
    while above is not None:
        if above.f_code.co_filename.startswith("<frozen importlib"):
            return True
        above = above.f_back
    return False


def trace(out: Path, module: str, arguments: Sequence[str]) -> None:
    """Run a module of the working directory's tree as a program and write the recorded files, as JSON."""
    tracer = Tracer(tree=str(Path.cwd()))
    sys.argv = [module, *arguments]
    sys.path.insert(0, str(Path.cwd()))
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    out.write_text(
        json.dumps({name: sorted(getattr(tracer, name)) for name in ("equation", "batch", "ran")}), encoding="utf-8"
    )


def trips(tree: Path, demo: Path) -> dict[str, list[str]]:
    """Files of a tree on every trip, by its name, traced on a copy of the demo's folder."""
    film = next(iter(sorted((demo / "world" / "clips").glob("*.mp4"))))
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / "demo"
        shutil.copytree(demo, copied, symlinks=True)
        lines = (copied / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        cell = next(r for r in map(json.loads, lines) if r["model"] == "student" and "frechet" in r["metrics"])
        of_cell = [cell["task"], cell["model"], str(cell["steps"]), str(cell["seed"]), "frechet"]
        scale = ["--guidance", str(cell["guidance"])]
        folders = ["--data", f"{copied}/features", "--teacher", f"{copied}/teacher", "--out", f"{scratch}/run"]
        commands = {
            "training": ["scripts.distill", "debug", *folders, "--loop.steps", "3"],
            "film": ["scripts.sample", "--run", f"{copied}/student", "--video", str(film), "--out", f"{scratch}/out"],
            "distance": ["scripts.verify", "--rows", f"{copied}/rows.jsonl", "--cell", *of_cell, *scale],
            "report": ["scripts.report", "--rows", f"{copied}/rows.jsonl"],
        }
        found = {}
        for name, command in commands.items():
            noted = Path(scratch) / f"{name}.json"
            _run(tree, [str(Path(__file__).resolve()), "--trace", str(noted), *command])
            read = json.loads(noted.read_text(encoding="utf-8"))
            if name == "training":
                found |= {"equation": read["equation"], "batch": read["batch"]}
            found[name] = read["ran"]
    return found


def closure(tree: Path, module: str) -> int:
    """Number of modules of the tree that importing one of them loads."""
    code = (
        f"import sys, {module}\n"
        f"print(sum(name.split('.')[0] in {PACKAGES} and '.' in name for name in list(sys.modules)))"
    )
    return int(_run(tree, ["-c", code]).strip().splitlines()[-1])


def _run(tree: Path, arguments: Sequence[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"in {tree}: {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def house(
    demo: Path = Path("runs/demo"),
    tree: Mapping[str, Path] | None = None,
    package: Mapping[str, Path] | None = None,
    record: Path | None = None,
    verbose: bool = False,
) -> None:
    """Print the table of counts and the table of trips.

    Args:
        demo: a finished demo of few clips; nothing in it is changed.
        tree: other checkouts of this project, by name.
        package: folders of other packages, by name; they are counted only.
        record: a file of the ledger to write.
        verbose: name the files of every trip.
    """
    from eval.ledger import NumberTable
    from eval.ledger import record as recorded

    trees = {**(tree or {}), "this": ROOT}
    counted = {name: count(sources(path)) for name, path in {**(package or {}), **trees}.items()}
    rows = [("edm2, as counted before", *EDM2.values()), *(found.row(name) for name, found in counted.items())]
    columns = ("tree", "files", "lines", "classes", "functions", "median lines of a function", "95 %", "longest")
    sizes = NumberTable(columns=columns, formats=("", ",d", ",d", ",d", ",d", "g", "g", "d"), rows=tuple(rows))
    walked = {name: trips(path.resolve(), demo.resolve()) for name, path in trees.items()}
    imported = {name: {m: closure(path.resolve(), f"scripts.{m}") for m in IMPORTED} for name, path in trees.items()}
    lengths = [(f"trip: {trip}", *(len(walked[name][trip]) for name in trees)) for trip in walked["this"]]
    lengths += [(f"modules that scripts.{m} imports", *(imported[name][m] for name in trees)) for m in IMPORTED]
    formats = ("", *("d" for _ in trees))
    ways = NumberTable(columns=("files of the project on a trip", *trees), formats=formats, rows=tuple(lengths))
    print(sizes.markdown(), ways.markdown(), sep="\n\n")
    if verbose:
        print(json.dumps(walked["this"], indent=1))
    if record is not None:
        recorded(record, tables={"sizes": sizes, "trips": ways}, rows=[{"tree": n, **w} for n, w in walked.items()])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        trace(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    else:
        import tyro

        tyro.cli(house, description=__doc__)
