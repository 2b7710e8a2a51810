"""Replaced modules under FSDP2, on a mesh of one process: every implementation trains as PyTorch's own does."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import kpt
from tests.ops.calls import served
from tests.ops.test_replace_proof import OnePlus
from tests.tolerances import assert_close

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(20))


@pytest.fixture
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def block() -> nn.Module:
    mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    return nn.Sequential(nn.LayerNorm(16), nn.RMSNorm(16), mlp, OnePlus(16))


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("implementation", ["reference", "numpy", "triton"])
def test_fsdp_frees_what_every_implementation_read(implementation: str) -> None:
    torch.manual_seed(20)
    plain = nn.Sequential(block(), block())
    sharded = copy.deepcopy(plain)
    kpt.replace_modules(sharded)
    mesh = init_device_mesh("cpu", (1,))
    for part in (*sharded, sharded):
        fully_shard(part, mesh=mesh)
    before = served("layer_norm").get(implementation, 0)
    losses = []
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with kpt.ops.prefer(implementation):
            for _ in range(2):
                loss = model(X).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        losses.append(loss.detach())
    assert_close(losses[1], losses[0], "f32", 64)
    assert served("layer_norm")[implementation] - before == 4


@pytest.mark.usefixtures("_alone")
def test_what_is_sharded_already() -> None:
    """A sharded parameter does not matter to a proof; a class that PyTorch changed for sharding stays as it is."""
    mesh = init_device_mesh("cpu", (1,))
    inside, alone = nn.Sequential(OnePlus(16)), OnePlus(16)
    expected = alone(X)
    for module in (inside, alone):
        fully_shard(module, mesh=mesh)
    report = kpt.replace_modules(nn.ModuleDict({"inside": inside, "alone": alone}))
    assert [c.path for c in report.changes] == ["inside.0"]
    assert "changed to FSDPOnePlus by PyTorch" in report.skipped[0].reason
    assert_close(inside(X), expected, "f32", 16)
    assert torch.equal(alone(X), expected)
