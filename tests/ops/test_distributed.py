"""Two processes of the CPU under DDP, FSDP2, tensor parallel and plain DTensors: the same numbers as one process."""

import subprocess
import sys
from pathlib import Path


def test_two_processes_are_as_one(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "tests.ops.processes"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting")],
            cwd=repository,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


WITHOUT_NAMES = """
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import kpt

del type(DTensor._op_dispatcher.sharding_propagator).register_op_strategy
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
x = torch.arange(32.0).reshape(4, 8).sin()
ours, theirs = (distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)]).requires_grad_() for _ in range(2))
for _ in range(2):
    y, wanted = kpt.ops.layer_norm(ours, (8,)), F.layer_norm(theirs, (8,))
    assert isinstance(y, DTensor)
    assert torch.equal(y.full_tensor(), wanted.full_tensor())
    (y * y.detach().cos()).sum().backward()
    (wanted * wanted.detach().cos()).sum().backward()
    assert torch.equal(ours.grad.full_tensor(), theirs.grad.full_tensor())
dist.destroy_process_group()
"""


def test_a_torch_whose_private_names_moved_serves_dtensors_itself(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_NAMES, str(tmp_path / "meeting")]
    ran = subprocess.run(command, cwd=repository, text=True, capture_output=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("DTensors get PyTorch's own operations") == 1
