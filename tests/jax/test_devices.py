"""Programs of several devices: mapped, partitioned by XLA, differentiated; with interpreted kernels."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

CHECKS = (
    "shard_map_differentiates", "partitioned_by_rows", "partitioned_by_batch_entries", "gathered_where_columns_are_cut",
    "explicit_axes_are_named", "vmap_of_a_batch", "kernels_of_users",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(repository: Path) -> dict[str, str]:
    """What each check of ``on_devices`` says: four devices that are none need a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.jax.on_devices"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("check", CHECKS)
def test_on_four_devices(found: dict[str, str], check: str) -> None:
    assert found[check] == "ok"
