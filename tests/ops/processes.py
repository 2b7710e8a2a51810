"""What ``test_distributed.py`` runs on two processes of the CPU: ops on DTensors, and small trainings dealt out to both.

``python -m tests.ops.processes RANK FILE [cuda]``: both ranks, 0 and 1, of one FILE that is not there yet are one group, each
with a GPU of its own if so asked. Exits with 1 at the first difference.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import kpt
from kpt.ops import prefer
from tests.ops.calls import served
from tests.tolerances import assert_close

SIZE = 2
DEVICE = "cuda" if sys.argv[3:] == ["cuda"] else "cpu"
KERNELS: Any = "triton" if DEVICE == "cuda" else "numpy"
WHOLE = Replicate()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def largest(x: Any) -> Any:
    """Where each row's largest is: argmax, which DTensor of PyTorch 2.9 cannot deal out."""
    return x.detach().topk(1).indices[:, 0]


# ------------------------------------------------------------------ ops
Way = tuple[Callable[..., Any], list[torch.Tensor], list[Placement], Placement, list[Placement]]
"""An op, its tensors, how they are dealt out, and how its output and its gradients then are."""


def ways() -> Iterator[Way]:
    """Each op in each way to deal it out that needs nothing to be sent."""
    x, weight, bias = randn(4, 6, 8), randn(8, seed=1), randn(8, seed=2)
    partial = torch.distributed.tensor.Partial()
    for dim in (0, 1):
        rows = Shard(dim)
        given = [rows, WHOLE, WHOLE]
        yield (
            lambda x, w, b: kpt.ops.layer_norm(x, (8,), w, b),
            [x, weight, bias],
            given,
            rows,
            [rows, partial, partial],
        )
        yield lambda x, w: kpt.ops.rms_norm(x, (8,), w), [x, weight], given[:2], rows, [rows, partial]

        def of_sum(x: Any, r: Any, w: Any) -> Any:
            y, total = kpt.ops.add_rms_norm(x, r, (8,), w, weight_offset=1.0)
            return y + total

        def of_sum_centred(x: Any, r: Any, w: Any, b: Any) -> Any:
            y, total = kpt.ops.add_layer_norm(x, r, (8,), w, b)
            return y + total

        tensors, made = [x, x + 1, weight, bias], [rows, rows, partial, partial]
        yield of_sum, tensors[:3], [rows, *given[:2]], rows, made[:3]
        yield of_sum_centred, tensors, [rows, *given], rows, made
    w, b = randn(10, 8, seed=3), randn(10, seed=4)
    for activation in ("none", "relu", "gelu", "silu"):

        def linear(x: Any, w: Any, b: Any = None, a: str = activation) -> Any:
            return kpt.ops.linear_act(x, w, b, activation=a)

        for dim in (0, 1):
            rows = Shard(dim)
            yield linear, [x, w, b], [rows, WHOLE, WHOLE], rows, [rows, partial, partial]
        yield linear, [x, w, b], [WHOLE, Shard(0), Shard(0)], Shard(2), [partial, Shard(0), Shard(0)]
    yield kpt.ops.linear_act, [x, w], [Shard(2), Shard(1)], partial, [Shard(2), Shard(1)]
    for reduction, output in (("none", Shard(0)), ("sum", partial)):

        def entropy(x: Any, reduction: Any = reduction) -> Any:
            return kpt.ops.cross_entropy(x, largest(x), reduction=reduction, z_loss=0.1)

        def head(x: Any, w: Any, reduction: Any = reduction) -> Any:
            return kpt.ops.linear_cross_entropy(x, w, largest(x), reduction=reduction, label_smoothing=0.1)

        yield entropy, [randn(4, 8)], [Shard(0)], output, [Shard(0)]
        yield head, [randn(4, 8), randn(10, 8)], [Shard(0), WHOLE], output, [Shard(0), partial]
    q, k = randn(2, 4, 5, 8), randn(2, 2, 7, 8)
    for dim in (0, 1):
        cut: list[Placement] = [Shard(dim)] * 3
        yield lambda q, k, v: kpt.ops.flash_attention(q, k, v, causal=True), [q, k, k + 1], cut, cut[0], cut
        yield lambda q, k, v: kpt.ops.flash_attention(q, k, v, return_lse=True)[1], [q, k, k + 1], cut, cut[0], cut

        def scored(q: Any, k: Any, v: Any, mask: Any, sinks: Any) -> Any:
            return kpt.ops.flash_attention(q, k, v, mask=mask, sinks=sinks)

        given = [Shard(0), WHOLE] if dim == 0 else [WHOLE, Shard(0)]
        made = [Shard(0), partial] if dim == 0 else [partial, Shard(0)]
        beside = [randn(2, 1, 5, 7, seed=5), randn(4, seed=6)]
        yield scored, [q, k, k + 1, *beside], [*cut, *given], cut[0], [*cut, *made]


def check_ops(mesh: DeviceMesh) -> None:
    for number, (op, tensors, placements, output, gradients) in enumerate(ways()):
        whole = [t.clone().requires_grad_() for t in tensors]
        wanted = op(*whole)
        wanted_gradients = torch.autograd.grad(wanted.square().sum(), whole, allow_unused=True)
        dealt = [distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in zip(tensors, placements, strict=True)]
        with prefer(KERNELS):
            got = op(*dealt)
        assert isinstance(got, DTensor), number
        assert got.placements == (output,), (number, got.placements, output)
        assert_close(got.full_tensor(), wanted, "f32", 100)
        dy = (2 * got.redistribute(mesh, [WHOLE if output.is_partial() else output])).detach()
        found = torch.autograd.grad(got, dealt, dy, allow_unused=True)
        for g, w, p in zip(found, wanted_gradients, gradients, strict=True):
            if w is not None:
                assert isinstance(g, DTensor), number
                assert g.placements == (p,), (number, g.placements, p)
                assert_close(g.full_tensor(), w, "f32", 100)


def check_redistribution(mesh: DeviceMesh) -> None:
    """What no way fits is sent first: rows cut along what is summed, one head on two processes."""
    x, q, lengths = randn(4, 8), randn(2, 1, 5, 8), torch.tensor([3, 5], dtype=torch.int32, device=DEVICE)
    cut, heads = (distribute_tensor(t, mesh, [Shard(1)]) for t in (x, q.expand(2, 2, 5, 8).contiguous()))
    one = distribute_tensor(q, mesh, [WHOLE])
    key_lengths = distribute_tensor(lengths, mesh, [WHOLE])
    for implementation in (KERNELS, "reference"):
        with prefer(implementation):
            assert_close(kpt.ops.layer_norm(cut, (8,)).full_tensor(), F.layer_norm(x, (8,)), "f32", 8)
            got = kpt.ops.flash_attention(heads, one, one, key_lengths=key_lengths)
            wanted = kpt.ops.flash_attention(q.expand(2, 2, 5, 8), q, q, key_lengths=lengths)
            assert_close(got.full_tensor(), wanted, "f32", 8)
            for granularity in ("row", "tensor"):
                quantised, scale = kpt.ops.quantize_fp8(distribute_tensor(x, mesh, [Shard(0)]), granularity)
                alone = kpt.ops.quantize_fp8(x, granularity)
                scales = alone[1].mT if alone[1].ndim else alone[1]
                assert_close(scale.full_tensor(), alone[1], "f32")
                b, scale_b = (
                    DTensor.from_local(t.mT if t.ndim else t, mesh, [WHOLE]) for t in alone
                )  # gloo does not send FP8
                product = kpt.ops.fp8_matmul(quantised, b, scale, scale_b, out_dtype=torch.float32)
                wanted = kpt.ops.fp8_matmul(alone[0], alone[0].T, alone[1], scales, out_dtype=torch.float32)
                assert_close(product.full_tensor(), wanted, "f32", 8)


# ------------------------------------------------------------------ trainings
class Block(nn.Module):
    """A norm, attention with as many heads as there are, and an MLP whose linear layer and activation are one op."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(16), nn.LayerNorm(16)
        self.q, self.kv, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.up, self.down = nn.Sequential(nn.Linear(16, 32), nn.GELU()), nn.Linear(32, 16)

    def attend(self, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, kv[..., ::2], kv[..., 1::2]))
        o = kpt.ops.flash_attention(q, k, v, causal=True)
        assert isinstance(o, torch.Tensor)
        return o.transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        x = x + self.o(self.attend(self.q(h), self.kv(h)))
        return x + self.down(self.up(self.second(x)))


def losses(model: nn.Module, x: torch.Tensor, share: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
    """Of four steps on the same rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for _ in range(4):
        loss = model(x).square().mean()
        found.append(float(share(loss.detach())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def averaged(loss: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(loss)
    return loss / SIZE


def check_trainings(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    native, x = Block().to(DEVICE), randn(4, 6, 16)
    with prefer("reference"):
        wanted = losses(copy.deepcopy(native), x, lambda loss: loss)
    ours = copy.deepcopy(native)
    kpt.replace_modules(ours)
    mine = x.chunk(SIZE)[dist.get_rank()]
    before = {op: served(op).get("triton", 0) for op in ("layer_norm", "rms_norm_backward", "linear_act_backward")}
    with prefer("triton"):
        trained = {
            "alone": losses(copy.deepcopy(ours), x, lambda loss: loss),
            "DDP": losses(nn.parallel.DistributedDataParallel(copy.deepcopy(ours)), mine, averaged),
            "FSDP2": losses(fully_shard(copy.deepcopy(ours), mesh=mesh), mine, averaged),
        }
    for found in trained.values():
        assert_close(torch.tensor(found), torch.tensor(wanted), "f32", 1000)
    assert all(served(op)["triton"] > calls for op, calls in before.items())


def check_tensor_parallel(mesh: DeviceMesh) -> None:
    """Norms by rows and an MLP by features, on DTensors throughout: the norms see them as they are.

    The MLP's pair runs as two modules, for the plan watches the linear layer; the op itself is in ``check_ops``.
    """
    torch.manual_seed(0)
    native = nn.Sequential(
        nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU()), nn.Linear(32, 16), nn.RMSNorm(16)
    ).to(DEVICE)
    x = randn(4, 6, 16)
    wanted = losses(copy.deepcopy(native), x, lambda loss: loss)
    for implementation in ("reference", KERNELS):
        ours = copy.deepcopy(native)
        kpt.replace_modules(ours)
        plan = {
            "0": SequenceParallel(), "1.0": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
            "2": RowwiseParallel(output_layouts=Shard(1), use_local_output=False), "3": SequenceParallel(),
        }  # fmt: skip
        model = parallelize_module(ours, mesh, plan)
        dealt = distribute_tensor(x, mesh, [Shard(1)])
        before = served("rms_norm_backward").get(KERNELS, 0)
        with prefer(implementation):
            found = losses(model, dealt, lambda loss: loss.full_tensor())  # type: ignore[attr-defined]
        assert_close(torch.tensor(found), torch.tensor(wanted), "f32", 1000)
        if implementation == KERNELS:
            assert served("rms_norm_backward")[KERNELS] == before + 4


if __name__ == "__main__":
    rank, file = int(sys.argv[1]), sys.argv[2]
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{file}", rank=rank, world_size=SIZE)
    group = init_device_mesh(DEVICE, (SIZE,))
    for check in (check_ops, check_redistribution, check_trainings, check_tensor_parallel):
        check(group)
        print(f"{check.__name__}: ok", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group, and end a process that ends in order: "terminate called"
