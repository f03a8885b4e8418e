"""Train objectives on problems with exact answers and print, as Markdown, how far 1, 2, 4 and 8 steps are from them.

python -m scripts.toys --objectives MeanFlow SplitMeanFlow --problems mixture-2d --seeds 0 1
"""

import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from eval.ledger import record
from meanflow.toys import (
    PROBLEMS,
    RECIPES,
    Budget,
    Job,
    Score,
    Source,
    euler_score,
    imported,
    markdown,
    problem,
    recipe,
    run,
    with_fm_fraction,
)
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Toys:
    """Every objective is trained with the same steps, batch, network, learning rate and, per seed, random draws."""

    objectives: tuple[str, ...] = tuple(name for name, made in RECIPES.items() if not made.objective.needs.teacher)
    """Names of recipes; none with --objective-import to train the imported one alone."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    objective_import: str | None = None
    """An objective of your own as module:name, a class or an instance; the working folder is searched too."""
    head: bool = False
    """Has no effect any more: an imported objective declares its head itself, by needs = Needs(head=True)."""
    velocity: Source = "data"
    """Velocity to average: data is e - x, exact is the exact v, which stands for a perfect teacher."""
    fm_fraction: float | None = None
    """Fraction of rows with r = t for all objectives that learn u; None takes that of each recipe."""
    sampling_steps: tuple[int, ...] = (1, 2, 4, 8)
    workers: int = 1
    """Trainings that run at the same time, one process and one thread each."""
    out: Path | None = None
    """Also write the tables to this file."""
    record: Path | None = None
    """Also write scores and tables to this file of the ledger (results/NAME.json)."""
    budget: Annotated[Budget, tyro.conf.arg(name="")] = field(default_factory=Budget)


@one_line_errors
def cli() -> None:
    """Entry point of `mf-toys`."""
    args = tyro.cli(Toys, description=__doc__)
    todo = jobs(args)
    scores = [euler_score(name, args.sampling_steps) for name in args.problems]
    try:
        for done in run(todo, workers=args.workers):
            scores.append(done)
            print(_line(done, len(scores) - len(args.problems), len(todo)), file=sys.stderr, flush=True)
    except BaseException:
        if len(scores) > len(args.problems):  # what is trained is not lost
            print(markdown(scores))
        raise
    text = markdown(scores)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    if args.record is not None:
        by_problem = {name: markdown([s for s in scores if s.problem == name]) for name in args.problems}
        record(args.record, text=by_problem, rows=[asdict(s) for s in scores], seeds={"training": args.seeds})


def jobs(args: Toys) -> list[Job]:
    """All trainings, problem by problem; the imported objective comes first, because it may fail."""
    recipes = {}
    if args.objective_import is not None:
        sys.path.insert(0, os.getcwd())
        name, own = imported(args.objective_import)
        if args.head:
            print("--head is not needed any more: the objective declares its head (Needs.head)", file=sys.stderr)
            if not own.objective.needs.head:
                raise ValueError(f"{args.objective_import} must declare needs = Needs(head=True) to train a head")
        recipes[f"{name} (imported)" if name in args.objectives else name] = own
    recipes |= {name: recipe(name) for name in args.objectives}
    if not recipes or not args.problems or not args.seeds:
        raise ValueError("name at least one objective, one problem and one seed")
    for name, chosen in recipes.items():
        if chosen.objective.needs.teacher and args.velocity == "data":
            raise ValueError(f"{name} needs a teacher: use --velocity exact, which stands for a perfect one")
    if args.workers < 1:
        raise ValueError(f"workers must be at least 1, got {args.workers}")
    if not args.sampling_steps or min(args.sampling_steps) < 1:
        raise ValueError(f"sampling_steps must be one or more numbers from 1, got {args.sampling_steps}")
    return [
        Job(
            name=objective,
            recipe=with_fm_fraction(chosen, args.fm_fraction),
            problem=problem(name).name,
            seed=seed,
            budget=args.budget,
            source=args.velocity,
            sampling_steps=args.sampling_steps,
        )
        for name in args.problems
        for objective, chosen in recipes.items()
        for seed in args.seeds
    ]


def _line(done: Score, number: int, total: int) -> str:
    shown = "  ".join(f"{n}: {error:.3f}" for n, error in done.errors.items()) or f"diverged at {done.diverged_at}"
    return f"[{number}/{total}] {done.problem} {done.objective} seed {done.seed}: {shown}"


if __name__ == "__main__":
    cli()
