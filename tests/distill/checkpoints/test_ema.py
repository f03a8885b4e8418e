"""Power-function averages: exponents, clocks, averages dealt out over processes, and any width from snapshots."""

import json
import math
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.integrate import quad
from torch import nn

from distill.checkpoints.ema import PowerEMA, SharedAverages, clock, deal, gamma_from_std, holding, new_weight
from distill.checkpoints.posthoc import (
    combine,
    combined_tensors,
    inner_product,
    read_snapshots,
    reconstruct,
    write_snapshot,
)
from teacher.files.errors import WeightsError

STORED = (0.05, 0.1)


class Point(torch.nn.Module):
    """A module with one trained and one frozen tensor."""

    def __init__(self, size=1):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(size))
        self.fixed = torch.nn.Parameter(torch.full((3,), 7.0), requires_grad=False)


def follow(path, stds, *, corrected, run=None, every=0):
    """Averages of the widths `stds` along the rows of `path` (steps, size), with snapshots into `run`."""
    model = Point(path.shape[1])
    averages = [PowerEMA(model, std, corrected=corrected) for std in stds]
    for s, place in enumerate(path, start=1):
        model.place.data.copy_(place)
        for average in averages:
            average.update(model, s)
            if run is not None and average.std in STORED and s % every == 0:
                write_snapshot(run, average, s)
    return averages


def random_walk(steps, size, seed=0):
    """A learning curve: decay to a place with noise that falls as the square root of time."""
    g = torch.Generator().manual_seed(seed)
    s = torch.arange(1, steps + 1)[:, None]
    noise = torch.randn(steps, size, generator=g).cumsum(0) / math.sqrt(steps)
    return torch.exp(-3.0 * s / steps) * torch.randn(1, size, generator=g) + noise


def test_published_exponents():
    assert gamma_from_std(0.05) == pytest.approx(16.972198602, abs=1e-9)
    assert gamma_from_std(0.10) == pytest.approx(6.937203938, abs=1e-9)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25])
def test_average_has_the_width_it_is_named_after(std):
    """Weights tau^gamma on [0, 1] have relative width sqrt((g + 1) / ((g + 2)^2 (g + 3)))."""
    g = gamma_from_std(std)
    assert math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) == pytest.approx(std, rel=1e-9)


@pytest.mark.parametrize("corrected", [False, True])
def test_average_of_a_ramp(corrected):
    """Averaging theta_s = s over n steps tends to n (gamma + 1) / (gamma + 2)."""
    n = 4000
    (average,) = follow(torch.arange(1.0, n + 1)[:, None], [0.1], corrected=corrected)
    g = gamma_from_std(0.1)
    assert average.shadow["place"].item() == pytest.approx(n * (g + 1) / (g + 2), rel=1e-3)


def test_corrected_decay_is_the_published_formula():
    """beta(s) = [(1 - 1/(s + 1))^(1 + gamma) (1 - 1/(s + 2))^(1 + gamma)]^(1/2); the first update copies."""
    g = gamma_from_std(0.05)
    assert new_weight(1, g, corrected=True) == 1.0
    for s in (2, 3, 10, 300_000):
        beta = math.sqrt((1 - 1 / (s + 1)) ** (1 + g) * (1 - 1 / (s + 2)) ** (1 + g))
        assert 1 - new_weight(s, g, corrected=True) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("corrected", [False, True])
def test_decay_is_the_ratio_of_the_clock(corrected):
    g = gamma_from_std(0.1)
    for s in (2, 7, 1000):
        ratio = clock(s - 1, corrected=corrected) / clock(s, corrected=corrected)
        assert 1 - new_weight(s, g, corrected=corrected) == pytest.approx(ratio ** (g + 1), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b"),
    [((16.97, 300.0), (6.94, 300.0)), ((6.94, 120.0), (16.97, 300.0)), ((3.0, 300.0), (40.0, 20.0)), ((2.5, 9.0),) * 2],
)
def test_inner_product_is_the_integral(a, b):
    def density(tau, gamma, t):
        return (gamma + 1) * tau**gamma / t ** (gamma + 1) if tau <= t else 0.0

    end = min(a[1], b[1])
    integral, _ = quad(lambda tau: density(tau, *a) * density(tau, *b), 0, end, epsabs=0, epsrel=1e-10)
    assert float(inner_product(*map(np.float64, (*a, *b)))) == pytest.approx(integral, rel=1e-8)


def test_inner_products_of_long_runs_and_narrow_widths_do_not_overflow():
    gamma = np.float64(gamma_from_std(0.003))
    assert gamma > 300
    assert np.isfinite(inner_product(gamma, np.float64(3e5), gamma, np.float64(2e5)))


def published_profiles(steps=300_000, every=5000):
    return [
        (gamma_from_std(std), clock(step, corrected=True)) for step in range(every, steps + 1, every) for std in STORED
    ]


def test_stored_profile_comes_back_as_itself():
    profiles = published_profiles()
    for index in (1, 60, len(profiles) - 1):
        made = combine(profiles, profiles[index])
        expected = np.zeros(len(profiles))
        expected[index] = 1.0
        np.testing.assert_allclose(made.weights, expected, atol=1e-6)
        assert made.error < 1e-6


@pytest.mark.parametrize(("std", "bound"), [(0.03, 0.005), (0.07, 0.0005), (0.15, 0.001), (0.20, 0.003)])
def test_published_snapshots_make_other_widths(std, bound):
    """60 pairs of snapshots reach these profiles to a fraction of a percent of their length."""
    made = combine(published_profiles(), (gamma_from_std(std), clock(300_000, corrected=True)))
    assert made.error < bound
    assert made.weights.sum() == pytest.approx(1.0, abs=bound)


def test_a_width_out_of_reach_shows_in_the_error():
    few = [(gamma_from_std(0.1), 1000.0), (gamma_from_std(0.1), 500.0)]
    assert combine(few, (gamma_from_std(0.01), 1000.0)).error > 0.3


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("std", [0.03, 0.075, 0.15])
def test_reconstruction_agrees_with_the_average_kept_all_along(tmp_path, std, corrected):
    path = random_walk(2000, 64)
    direct = follow(path, [*STORED, std], corrected=corrected, run=tmp_path, every=50)[-1].shadow["place"]
    snapshots = read_snapshots(tmp_path)
    made = combine([s.profile for s in snapshots], (gamma_from_std(std), clock(2000, corrected=corrected)))
    place = combined_tensors(snapshots, made.weights)["place"]
    assert float((place - direct).norm() / direct.norm()) < ACCURACY[std]


ACCURACY = {0.03: 5e-4, 0.075: 5e-5, 0.15: 1e-4}
"""Relative to the weights themselves; the last weights alone are off by 0.1 to 0.3."""


def run_folder(folder, path, **options):
    """What training leaves behind, for a toy network."""
    averages = follow(path, STORED, run=folder, **options)
    (folder / "config.json").write_text(json.dumps({"run": {}}))
    save_file({"place": path[-1].contiguous(), "fixed": torch.full((3,), 7.0)}, folder / "model.safetensors")
    return averages


def test_frozen_tensors_are_copied_and_a_stored_average_returns(tmp_path):
    averages = run_folder(tmp_path, random_walk(400, 8), corrected=True, every=40)
    made, combination = reconstruct(tmp_path, 0.05)
    torch.testing.assert_close(made["place"], averages[0].shadow["place"], rtol=1e-5, atol=1e-6)
    assert torch.equal(made["fixed"], torch.full((3,), 7.0))
    assert combination.error < 1e-6
    earlier, _ = reconstruct(tmp_path, 0.05, step=200)
    stored = load_file(tmp_path / "ema_ckpts" / "ema-0.05.0000200.safetensors")
    torch.testing.assert_close(earlier["place"], stored["place"], rtol=1e-5, atol=1e-6)
    wider, combination = reconstruct(tmp_path, 0.2)
    assert combination.weights.sum() != 1.0  # a frozen tensor combined by these would have changed
    assert torch.equal(wider["fixed"], torch.full((3,), 7.0))


def test_snapshots_say_what_they_are(tmp_path):
    run_folder(tmp_path, random_walk(80, 2), corrected=True, every=40)
    assert [(s.std, s.step, s.corrected) for s in read_snapshots(tmp_path)] == [
        (0.05, 40, True), (0.1, 40, True), (0.05, 80, True), (0.1, 80, True),
    ]  # fmt: skip
    assert set(load_file(tmp_path / "ema_ckpts" / "ema-0.05.0000040.safetensors")) == {"place"}


def test_unusable_snapshots_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no snapshots"):
        read_snapshots(tmp_path)
    run_folder(tmp_path, random_walk(80, 2), corrected=False, every=40)
    with pytest.raises(ValueError, match=r"step must lie in 1\.\.80"):
        reconstruct(tmp_path, 0.1, step=81)
    (tmp_path / "ema_ckpts" / "ema-0.05.0000060.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match=r"0000060\.safetensors is not a snapshot"):
        read_snapshots(tmp_path)


class Process:
    """One of several engines in threads: broadcast is the only collective that averages need."""

    def __init__(self, plain, process, processes, board, barrier):
        self.plain, self.process, self.processes, self.board, self.barrier = plain, process, processes, board, barrier
        self.main = process == 0

    def broadcast(self, tensor, source):
        if self.process == source:
            self.board["sent"] = tensor.clone()
        self.barrier.wait()
        if self.process != source:
            tensor.copy_(self.board["sent"])
        self.barrier.wait()
        return tensor


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(2, 1))
    net[1].weight.requires_grad_(False)
    return net


def walk(net, step):
    g = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=g))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_dealt_averages_are_the_whole_ones(processes):
    """Bit for bit, with frozen tensors left out; eight processes are more than there are tensors. A network that takes
    its weights from the averages has the narrowest, whole in every process."""
    reference = network()
    names = [n for n, p in reference.named_parameters() if p.requires_grad]
    whole = [PowerEMA(reference, std) for std in (0.2, 0.05, 0.1)]
    board, barrier, made = {}, threading.Barrier(processes), {}

    networks = [network() for _ in range(processes)]  # here: threads share torch's default generator
    followers = [network() for _ in range(processes)]

    def run(process):
        net = networks[process]
        averages = SharedAverages(
            Process(net, process, processes, board, barrier),
            names,
            (0.2, 0.05, 0.1),
            corrected=False,
            network=followers[process],
        )
        for step in range(1, 6):
            walk(net, step)
            averages.update(step)
        made[process] = [averages.whole(0, everywhere=True), averages.whole(1)]

    threads = [threading.Thread(target=run, args=(p,)) for p in range(processes)]
    for step in range(1, 6):
        walk(reference, step)
        for average in whole:
            average.update(reference, step)
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for process in range(processes):
        first, second = made[process]
        assert set(first) == set(names)
        assert all(torch.equal(first[n], whole[0].shadow[n]) for n in names)
        assert set(second) == (set(names) if process == 0 else set())
        of_network = dict(followers[process].named_parameters())
        assert all(torch.equal(of_network[n], whole[1].shadow[n]) for n in names)
        assert torch.equal(of_network["1.weight"], reference[1].weight)  # what is not trained is as it was
        assert not any(p.requires_grad for p in of_network.values())
    assert all(torch.equal(made[0][1][n], whole[1].shadow[n]) for n in names)


def test_every_tensor_is_dealt_once_and_evenly():
    sizes = {f"p{i}": size for i, size in enumerate([100, 90, 50, 40, 30, 20, 10, 5])}
    hands = deal(sizes, 3)
    assert sorted(n for hand in hands for n in hand) == sorted(sizes)
    held = [sum(sizes[n] for n in hand) for hand in hands]
    assert max(held) - min(held) <= min(sizes[n] for hand in hands for n in hand) + 10
    assert deal(sizes, 3) == hands


def test_averages_come_back_from_files():
    net = network()
    names = [n for n, p in net.named_parameters() if p.requires_grad]
    engine = Process(net, 0, 1, {}, threading.Barrier(1))
    averages = SharedAverages(engine, names, (0.1,), corrected=True)
    for step in (1, 2, 3):
        walk(net, step)
        averages.update(step)
    stored = averages.whole(0)
    follower = network()
    fresh = SharedAverages(engine, names, (0.1,), corrected=True, network=follower)
    fresh.load(lambda name: {"ema-0.1": stored}[name])
    assert all(torch.equal(fresh.whole(0)[n], stored[n]) for n in names)
    assert all(torch.equal(follower.get_parameter(n), stored[n]) for n in names)
    walk(net, 4)
    averages.update(4)
    fresh.update(4)
    assert all(torch.equal(follower.get_parameter(n), tensor) for n, tensor in averages.whole(0).items())


def test_held_weights_are_given_back_whatever_happens():
    net = network()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}

    def inside():
        with holding(net, {"0.weight": torch.zeros(5, 3)}):
            assert net[0].weight.abs().max() == 0
            assert torch.equal(net[0].bias, before["0.bias"])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        inside()
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
