"""Checkpointed and compiled blocks: the same gradients, for less memory, under the same names, also under DDP."""

import copy
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distill.engines import choose_engine
from distill.loop.session import blocks_of, prepare_blocks
from meanflow import ForwardAD
from teacher.network.mmaudio import MMAudio
from teacher.network.velocity import student_velocity
from tests.distill import reference
from tests.distill.processes import launch
from tests.distill.reference import FRAMES, OPTIM, loss, sounds

ROWS = 4


def network(**changes: int) -> MMAudio:
    """Blocks of every kind: joint, the last joint one, fused; all weights off zero."""
    torch.manual_seed(0)
    net = MMAudio(replace(reference.NETWORK, **({"joint_depth": 2, "fused_depth": 3} | changes)))
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return net


def gradients(net: MMAudio, *, bfloat16: bool = False, backward_inside: bool = False) -> dict[str, Tensor]:
    """Of MeanFlow's loss, which takes a derivative on the same network first."""
    net.zero_grad()
    autocast = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
    with autocast:
        value = loss(net, net, sounds(1, ROWS))
        if backward_inside:
            value.backward()
    if not backward_inside:
        value.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def calls(net: MMAudio) -> Counter[int]:
    """How often each block is entered from now on."""
    seen: Counter[int] = Counter()
    for index, block in enumerate(blocks_of(net)):
        block.register_forward_pre_hook(lambda module, args, index=index: seen.update([index]))
    return seen


@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward in autocast"])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_checkpointed_gradients_are_the_same_to_the_bit(bfloat16, backward_inside):
    """The same operations on the same numbers, only later."""
    net = network()
    expected = gradients(net, bfloat16=bfloat16, backward_inside=backward_inside)
    prepare_blocks(net, checkpoint=True, compile=False)
    found = gradients(net, bfloat16=bfloat16, backward_inside=backward_inside)
    assert found.keys() == expected.keys()
    assert len(found) == sum(p.requires_grad for p in net.parameters())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpointed_gradients_of_a_velocity_head():
    net = network(velocity_head=1)
    batch = sounds(1, ROWS)

    def made() -> list[Tensor]:
        net.zero_grad()
        u, v = net(batch.x_t, 1 - batch.t, batch.conditions, batch.t - batch.r)
        (u.square().mean() + v.square().mean()).backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    expected = made()
    prepare_blocks(net, checkpoint=True, compile=False)
    seen = calls(net)
    assert all(torch.equal(a, b) for a, b in zip(made(), expected, strict=True))
    assert dict(seen) == dict.fromkeys(range(6), 2)


def test_blocks_run_twice_where_a_graph_is_recorded_and_nowhere_else():
    net = network()
    prepare_blocks(net, checkpoint=True, compile=False)
    batch = sounds(1, ROWS)
    encoded = net.encode_conditions(batch.conditions, FRAMES)
    seen = calls(net)
    ForwardAD()(lambda x, r, t: student_velocity(net, x, r, t, encoded), batch.x_t, batch.r, batch.t, batch.v)
    assert dict(seen) == dict.fromkeys(range(5), 1)
    seen.clear()
    with torch.no_grad():
        student_velocity(net, batch.x_t, batch.r, batch.t, encoded)
    assert dict(seen) == dict.fromkeys(range(5), 1)
    seen.clear()
    student_velocity(net, batch.x_t, batch.r, batch.t, encoded).square().mean().backward()
    assert dict(seen) == dict.fromkeys(range(5), 2)


def saved_bytes(net: MMAudio) -> int:
    """What a forward pass keeps for the backward pass, weights aside; memory that is kept twice counts once."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no later tensor gets its address
        return tensor

    batch = sounds(1, ROWS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = net(batch.x_t, 1 - batch.t, batch.conditions, batch.t - batch.r)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del value
    return total


@pytest.mark.parametrize("kind", ["joint", "fused"])
def test_a_checkpointed_block_keeps_its_inputs_and_nothing_else(kind):
    """Float32 streams of width h = 16 over ROWS rows: a fused block takes sound (10 frames), a joint one also the
    picture (4) and the text (77 tokens). Modulation and positions are kept once for all blocks. Without checkpointing
    a fused block keeps at least its modulation (6 h a frame), queries, keys and values (3 h), attended (h), the MLP's
    two inner signals and their product (3 * 45, the next multiple of 15 above 8/3 h) and five streams between them.
    """
    deeper = {"joint_depth": 3} if kind == "joint" else {"fused_depth": 4}
    grown = {}
    for checkpoint in (False, True):
        nets = network(), network(**deeper)
        for net in nets:
            prepare_blocks(net, checkpoint=checkpoint, compile=False)
        grown[checkpoint] = saved_bytes(nets[1]) - saved_bytes(nets[0])
    h, tokens = 16, FRAMES + (4 + 77 if kind == "joint" else 0)
    assert grown[True] == ROWS * tokens * h * 4
    assert grown[False] > ROWS * tokens * (15 * h + 3 * 45) * 4
    assert grown[False] > 20 * grown[True]


def test_names_stay_and_copies_are_complete():
    """Names, values and the switch in a copy; a compiled block's copy runs as written and can be compiled again."""
    net = network()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    prepare_blocks(net, checkpoint=True, compile=True)
    twin = copy.deepcopy(net)
    for one in (net, twin):
        assert one.state_dict().keys() == before.keys()
        assert [name for name, _ in one.named_parameters()] == list(before)
        assert one.checkpoint_blocks
    assert all(block._compiled_call_impl is not None for block in blocks_of(net))
    assert all(block._compiled_call_impl is None for block in blocks_of(twin))
    assert not MMAudio.checkpoint_blocks  # the class is as it was, and so is every other network
    prepare_blocks(net, checkpoint=False, compile=False)
    assert not net.checkpoint_blocks
    assert all(block._compiled_call_impl is None for block in blocks_of(net))


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler on a CPU"
)


def compiled_gradients(checkpoint: bool) -> int:
    """Compiled against as written, twice; how many graphs that took."""
    from torch._dynamo.utils import counters

    net = network(joint_depth=1, fused_depth=2)
    plain = copy.deepcopy(net)
    prepare_blocks(net, checkpoint=checkpoint, compile=True)
    for _ in range(2):
        expected, found = gradients(plain), gradients(net)
        for name, grad in expected.items():
            assert (found[name] - grad).norm() <= 1e-5 * grad.norm(), name
    assert not counters["graph_break"], counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpointed"])
def test_compiled_gradients_agree(checkpoint):
    """To 1e-5, with the derivative on the same network before; one graph for joint blocks and one for fused ones.

    In a process of its own, in which shape annotations are not checked, since those checks cannot be traced.
    """
    target = "tests.distill.loop.test_session:compiled_gradients"
    assert launch(target, {"checkpoint": checkpoint}, count=None) == [2]


def traced_graphs() -> dict[str, int]:
    """Graphs made so far after each use of a network, by tracing alone."""
    from torch._dynamo.utils import counters

    inductor = nn.Module.compile
    nn.Module.compile = lambda module: inductor(module, backend="eager")  # type: ignore[method-assign,assignment]
    net = network()
    prepare_blocks(net, checkpoint=False, compile=True)
    gradients(net)
    graphs = {"with a graph": counters["stats"]["unique_graphs"]}
    with torch.no_grad():
        for rows in (ROWS, 2 * ROWS, 3 * ROWS, 5 * ROWS, 7 * ROWS):
            batch = sounds(2, rows)
            net(batch.x_t, 1 - batch.t, batch.conditions, batch.t - batch.r)
            graphs[f"{rows} rows"] = counters["stats"]["unique_graphs"]
        with torch.autocast("cpu", torch.bfloat16):
            net(batch.x_t, 1 - batch.t, batch.conditions, batch.t - batch.r)
            graphs["autocast"] = counters["stats"]["unique_graphs"]
    gradients(net, bfloat16=True)
    graphs["all"] = counters["stats"]["unique_graphs"]
    assert not counters["graph_break"], counters["graph_break"]
    return graphs


@pytest.mark.slow
def test_blocks_of_a_kind_share_a_compilation_and_none_is_refused():
    """Five blocks of three kinds: joint, the last joint one, fused. Each kind is traced once for gradients, once for
    one size without, once for all further sizes, and twice under autocast. The joint ones' ten versions are above
    torch's limit of eight, beyond which they would silently run as written."""
    (graphs,) = launch("tests.distill.loop.test_session:traced_graphs", count=None)
    assert graphs["with a graph"] == 3
    assert graphs[f"{ROWS} rows"] == 6
    assert graphs[f"{2 * ROWS} rows"] == graphs[f"{7 * ROWS} rows"] == 9
    assert graphs["autocast"] == 12
    assert graphs["all"] == 15


def ddp_gradients() -> dict[str, float]:
    """Two steps under DDP: how far from the gradients of the whole batch, and from those without checkpointing."""
    engine = choose_engine(timeout_s=600.0)
    assert engine.name == "DDP"
    found: dict[bool, list[Tensor]] = {}
    for checkpoint in (False, True):
        net = network()
        prepare_blocks(net, checkpoint=checkpoint, compile=False)
        engine.prepare(net, OPTIM, micro_batch=ROWS // 2, accumulation=1)
        found[checkpoint] = []
        for seed in range(2):  # the second forward is the one at which DDP's buckets are made anew
            with engine.micro(last=True):
                piece = sounds(seed, ROWS).pieces(2)[engine.process]
                engine.backward(loss(engine.model, engine.plain, piece))
            found[checkpoint].append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
            net.zero_grad()
    alone = network()
    error = 0.0
    for seed in range(2):
        wanted = reference.Reference(alone).gradient(sounds(seed, ROWS))[1].values()
        whole = torch.cat([grad.flatten() for grad in wanted])
        error = max(error, float((found[True][seed] - whole).norm() / whole.norm()))
    apart = max(float((a - b).abs().max()) for a, b in zip(found[True], found[False], strict=True))
    return {"error": error, "apart": apart}


def test_checkpointed_blocks_under_ddp():
    """Against one process: float32 sums of two halves in another order."""
    for measured in launch("tests.distill.loop.test_session:ddp_gradients"):
        assert measured["error"] < 1e-6
        assert measured["apart"] == 0.0
