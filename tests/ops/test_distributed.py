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
