"""Averages dealt out over processes are those of one process."""

import threading

import pytest
import torch
from torch import nn

from distill.checkpoints.ema import PowerEMA, SharedAverages, deal, holding


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
    kept = averages.whole(0)
    follower = network()
    fresh = SharedAverages(engine, names, (0.1,), corrected=True, network=follower)
    fresh.load(lambda name: {"ema-0.1": kept}[name])
    assert all(torch.equal(fresh.whole(0)[n], kept[n]) for n in names)
    assert all(torch.equal(follower.get_parameter(n), kept[n]) for n in names)
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
