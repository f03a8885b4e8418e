"""The toy bench: exact answers score zero, training is a function of the seed, and every objective takes part."""

import sys
import typing
from dataclasses import replace

import pytest
import torch

from meanflow import GaussianFlow, MeanFlow, Needs, Objective, interpolate, velocity
from meanflow.toys import (
    PROBLEMS,
    RECIPES,
    Budget,
    Job,
    Problem,
    Recipe,
    Reference,
    Score,
    ToyConfig,
    ToyNetwork,
    euler_score,
    flow_errors,
    imported,
    markdown,
    problem,
    recipe,
    reference,
    run,
    score,
    train,
    velocity_error,
    verdict,
    with_fm_fraction,
)
from meanflow.toys.recipes import times
from scripts.toys import cli

SMALL = Budget(steps=3, batch_size=16, network=ToyConfig(width=16, depth=2, time_width=8))


class Own:
    """An objective from outside: MeanFlow under another name."""

    needs = Needs(derivative="exact")

    def __call__(self, calls, x_t, r, t, v, *, progress=1.0):
        return MeanFlow()(calls, x_t, r, t, v, progress=progress)


OWN = Own()


def _job(name="MeanFlow", where="gaussian-64d", **changes):
    job = Job(
        name=name, recipe=recipe(name), problem=where, seed=0, budget=SMALL, source="data", sampling_steps=(1, 2, 4)
    )
    return replace(job, **changes)


def _score(objective, errors, seed=0, **changes):
    score = Score(objective=objective, problem="p", seed=seed, errors=errors, velocity_error=0.1, seconds_per_step=0.01)
    return replace(score, **changes)


def test_rotated_closed_forms_move_data_to_noise_and_back():
    """Samples of the 64-d Gaussian have the covariance Q diag(s^2) Q^T: 20,000 draws err by about s_max^2 / 141 an
    entry, 0.044, four times that at the most of 4,096 entries."""
    toy = problem("gaussian-64d")
    x = toy.sample(20_000, generator=torch.Generator().manual_seed(3)).flatten(1).double()
    expected = toy.rotation @ torch.diag(toy.base.s.flatten() ** 2) @ toy.rotation.T
    assert (torch.cov(x.T) - expected).abs().max() < 0.18
    assert (expected - torch.diag(expected.diag())).abs().max() > 0.5  # correlated indeed

    e = torch.randn(8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    zero, one = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    torch.testing.assert_close(toy.flow(toy.flow(e, zero, one), one, zero), e)


def test_velocity_of_a_problem_is_the_mean_of_e_minus_x():
    """E[(e - x - v(x_t, t)) x_t^T] = 0; 50,000 rows of at most 2.5 x 2.5 give 6.25 / 224 = 0.03, four times that."""
    toy, g = problem("gaussian-64d"), torch.Generator().manual_seed(5)
    x = toy.sample(50_000, generator=g)
    e, t = torch.randn(x.shape, generator=g), torch.full((len(x),), 0.4)
    x_t = interpolate(x, e, t)
    scatter = (velocity(x, e) - toy.v(x_t, t)).flatten(1)
    assert (scatter.T @ x_t.flatten(1) / len(x)).abs().max() < 0.12


@pytest.mark.parametrize(("name", "points", "counts"), [("gaussian-64d", 64, (1, 2, 4, 8)), ("mixture-2d", 8, (1, 2))])
def test_exact_average_velocity_scores_zero_at_every_step_count(name, points, counts):
    """Float32 states: each of 8 steps rounds the velocity, its product and the state, numbers of up to 4, to half a
    last bit of them, 2.4e-7, and the mixture's quadrature, which is slow, stops at 1e-7: 8 * 3 * 2.4e-7 at most."""
    toy = problem(name)
    at = reference(name, points)
    assert max(flow_errors(toy.u, at, counts).values()) < 6e-6
    assert velocity_error(toy.v, at) < 1e-6


def test_standing_still_scores_one():
    at = reference("gaussian-64d")
    errors = flow_errors(lambda x_t, r, t: torch.zeros_like(x_t), at, (1, 4))
    assert errors == pytest.approx({1: 1.0, 4: 1.0})


def test_euler_steps_of_the_exact_velocity_gain_with_their_number():
    """Order 1: twice the steps leave about half the error once they are small."""
    errors = euler_score("gaussian-64d", (16, 32)).errors
    assert 1.7 < errors[16] / errors[32] < 2.3


def test_network_starts_with_no_sense_of_the_interval(generator):
    net = ToyNetwork(ToyConfig(), 8, 8)
    x_t, t = torch.randn(5, 8, 8, generator=generator), torch.rand(5, generator=generator)
    assert torch.equal(net(x_t, t * 0.3, t).u, net(x_t, t, t).u)
    torch.nn.init.normal_(net.interval.weight)
    before = net(x_t, t, t).u
    assert not torch.allclose(net(x_t, t * 0.3, t).u, before)
    torch.nn.init.normal_(net.interval.weight)
    assert torch.equal(net(x_t, t, t).u, before)  # whatever the weights, t = r does not see them


def test_every_objective_has_a_recipe_and_runs():
    """Three steps of each on the 64-d Gaussian move the weights and end in finite errors."""
    members = {type(r.objective) for r in RECIPES.values()}
    assert members == set(typing.get_args(Objective))
    for name in RECIPES:
        for source in ("exact",) if recipe(name).objective.needs.teacher else ("data", "exact"):
            result = score(_job(name, source=source))
            assert result.diverged_at is None
            assert all(0 < error < 10 for error in result.errors.values())
            assert set(result.errors) == ({1} if name == "ConsistencyTraining" else {1, 2, 4})


def test_training_reduces_the_one_step_error_of_meanflow():
    """A 2-D Gaussian, 200 steps of 128 rows: the error falls to less than half (0.93 to 0.25 when this was written)."""
    base = GaussianFlow(mu=torch.tensor([[0.8, -0.5]]).double(), s=torch.tensor([[0.3, 1.2]]).double())
    toy = Problem(name="two", base=base, frames=1, channels=2)
    e = torch.randn(512, 1, 2, generator=torch.Generator().manual_seed(1))
    x = toy.flow(e, torch.zeros(512), torch.ones(512))
    at = Reference(e=e, x=x, x_t=e, t=torch.ones(512), v=e)  # only e and x are read

    def error(steps):
        budget = Budget(steps=steps, batch_size=128, lr=1e-2, network=ToyConfig(width=32, depth=2, time_width=16))
        net = train(recipe("MeanFlow"), toy, budget, seed=0).net
        return flow_errors(lambda x_t, r, t: net(x_t, r, t).u, at, (1,))[1]

    before, after = error(1), error(200)
    assert before > 0.5
    assert after < before / 2


def test_scores_are_a_function_of_the_seed():
    same, again, other = (score(_job(seed=seed)) for seed in (0, 0, 1))
    assert same.errors == again.errors
    assert same.errors != other.errors


def test_objectives_meet_the_same_data_and_noise_and_seeds_others():
    def draws(seed, fm_fraction):
        seen = []

        class Listening(Own):
            def __call__(self, calls, x_t, r, t, v, *, progress=1.0):
                seen.append(v)
                return super().__call__(calls, x_t, r, t, v, progress=progress)

        train(Recipe(objective=Listening(), times=times(fm_fraction)), problem("gaussian-64d"), SMALL, seed=seed)
        return torch.stack(seen)

    first = draws(0, 0.5)
    assert torch.equal(first, draws(0, 0.25))
    assert not torch.isclose(first, draws(1, 0.5)).any()
    assert not torch.isclose(first[0], first[1]).any()


@pytest.mark.slow
def test_workers_change_nothing():
    """Slow for the two processes that import torch."""
    jobs = [_job(seed=0), _job("SplitMeanFlow", seed=1)]
    alone, together = list(run(jobs)), list(run(jobs, workers=2))
    assert [s.errors for s in alone] == [s.errors for s in together]


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        list(run([], workers=0))


def test_warm_start_begins_at_the_flow_matching_network():
    """After a warm start of 5 steps, one step of AdamW moves no weight by more than its rate: 2e-3, the first of a
    short training. The head's last layer then is within the same distance of a copy of the network's."""
    toy = problem("gaussian-64d")
    flow = train(recipe("PlainFlowMatching"), toy, replace(SMALL, steps=5), seed=0).net
    warm = train(recipe("ImprovedMeanFlow-head"), toy, replace(SMALL, steps=1, warm_start=5), seed=0).net
    cold = train(recipe("ImprovedMeanFlow-head"), toy, replace(SMALL, steps=1), seed=0).net
    assert (warm.enter.weight - flow.enter.weight).abs().max() <= 2.1e-3
    assert (warm.head_leave.weight - flow.leave.weight).abs().max() <= 2.1e-3
    assert (cold.head_leave.weight - flow.leave.weight).abs().max() > 0.05


def test_own_objective_by_import_path():
    for attribute in ("Own", "OWN"):
        name, own = imported(f"{__name__}:{attribute}")
        assert name == attribute
        assert score(_job(recipe=own)).errors == score(_job()).errors


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no colon", "module:name"),
        ("no_such_module:X", "no module"),
        (f"{__name__}:Missing", "has no 'Missing'"),
        (f"{__name__}:SMALL", "cannot be called"),
        (f"{__name__}:_job", "declares no `needs`"),
        ("meanflow:GaussianFlow", "needs arguments"),
    ],
)
def test_wrong_import_paths_are_named(path, message):
    with pytest.raises(ValueError, match=message):
        imported(path)


def test_wrong_names_and_numbers_are_refused():
    with pytest.raises(ValueError, match="objective must be one of"):
        recipe("MeanFlo")
    with pytest.raises(ValueError, match="problem must be one of"):
        problem("mixture")
    for field, value in (("steps", 0), ("lr", 0.0), ("ema_std", 0.5), ("slow_decay", 1.0), ("warm_start", -1)):
        with pytest.raises(ValueError, match=field):
            Budget(**{field: value})
    with pytest.raises(ValueError, match="orthogonal"):
        replace(problem("gaussian-64d"), rotation=2 * torch.eye(64, dtype=torch.float64))


def test_share_of_flow_matching_rows_can_be_set_where_u_is_learnt():
    assert with_fm_fraction(recipe("MeanFlow"), 0.25).times == times(0.25)
    assert with_fm_fraction(recipe("PlainFlowMatching"), 0.25) == recipe("PlainFlowMatching")
    assert with_fm_fraction(recipe("MeanFlow"), None) == recipe("MeanFlow")


def test_a_training_that_diverges_says_so():
    class Broken(Own):
        def __call__(self, calls, x_t, r, t, v, *, progress=1.0):
            residual = super().__call__(calls, x_t, r, t, v)
            return residual._replace(delta=residual.delta * (float("nan") if progress > 0.5 else 1.0))

    result = score(_job(recipe=replace(recipe("MeanFlow"), objective=Broken())))
    assert (result.diverged_at, result.errors, result.velocity_error) == (2, {}, None)
    assert "(1 of 1 seeds diverged)" in markdown([result])
    assert verdict([result]) == "Nothing finished, so nothing wins."


def test_verdict_follows_from_the_numbers():
    scores = [_score("A", {1: a1, 4: 0.1}, seed) for seed, a1 in enumerate((0.29, 0.31))]
    scores += [_score("B", {1: b1, 4: 0.3}, seed) for seed, b1 in enumerate((0.24, 0.26))]
    scores += [_score("C", {1: c1}, seed) for seed, c1 in enumerate((0.25, 0.27))]
    text = verdict(scores)
    assert "At 1 step B has the smallest error (within the spread: C)." in text  # 0.26 - 0.25 <= 2 x 0.014
    assert "At 4 steps A has the smallest error." in text
    assert "The best at one step that also takes four, B, errs 0.83 times as much in one." in text
    table = markdown(scores)
    assert "| A | 0.300 ± 0.014 | **0.100** |" in table
    assert "| C | 0.260 ± 0.014 | – |" in table


def test_one_command_trains_an_own_objective_and_prints_the_table(monkeypatch, capsys, tmp_path):
    (tmp_path / "toy_method.py").write_text("from meanflow import MeanFlow\n\nMINE = MeanFlow()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    size = ["--steps", "2", "--batch-size", "8", "--network.width", "8", "--network.depth", "1"]
    where = ["--problems", "gaussian-64d", "--seeds", "0", "--out", "a/table.md"]
    monkeypatch.setattr(sys, "argv", ["toys", "--objectives", "--objective-import", "toy_method:MINE", *where, *size])
    cli()
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "a/table.md").read_text()
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")] == [
        "objective", "exact v, Euler", "MINE"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objectives", "MeanFlo"], "objective must be one of"),
        (["--objectives"], "name at least one objective"),
        (["--problems", "mixture"], "problem must be one of"),
        (["--sampling-steps", "0"], "sampling_steps must be"),
        (["--workers", "0"], "workers must be at least 1"),
    ],
)
def test_wrong_commands_end_in_one_line(monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["toys", *flags])
    with pytest.raises(SystemExit) as left:
        cli()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_problems_have_unit_scale():
    """Mean square near 1 per coordinate, as normalised latents have; 4,096 draws."""
    for name in PROBLEMS:
        x = problem(name).sample(4096, generator=torch.Generator().manual_seed(0))
        assert 0.8 < x.pow(2).mean() < 1.25
