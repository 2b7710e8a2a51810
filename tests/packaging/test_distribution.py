"""What is shipped: wheel and sdist hold every module and data file, and the wheel works where the sources are not."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest


def tracked(root: Path) -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listing.split("\0") if name and (root / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist, built from a copy of the tracked files, so that nothing left by an earlier build gets in."""
    root = Path(__file__).parents[2]
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked(root):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((root / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(out), str(source)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def shipped_as(name: str) -> str:
    return f"kpt/{name}" if name.startswith("ops/") else name


def test_the_wheel_holds_every_module_and_data_file(built: tuple[Path, Path], repository: Path) -> None:
    inside = set(zipfile.ZipFile(built[0]).namelist())
    rooms = ("kpt/", "ops/", "autotune_db/", "kpt_dsl/")
    expected = {shipped_as(name) for name in tracked(repository) if name.startswith(rooms) and not name.endswith(".md")}
    assert expected - inside == set()
    assert {"kpt/py.typed", "kpt/ops/py.typed", "kpt_dsl/py.typed", "autotune_db/py.typed"} <= inside
    assert "autotune_db/devices/nvidia-h200.json" in inside


def test_the_wheel_holds_nothing_else(built: tuple[Path, Path]) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(built[0]).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kpt", "kpt_dsl", "autotune_db"}


def test_the_sdist_builds_the_same_packages(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "ops/__init__.py", "kpt_dsl/ir.py"} <= names


def test_the_wheel_works_without_the_sources(built: tuple[Path, Path], tmp_path: Path) -> None:
    zipfile.ZipFile(built[0]).extractall(tmp_path / "site")
    code = (
        "import kpt, kpt.ops, kpt_dsl, autotune_db, torch\n"
        "x = torch.randn(3, 37)\n"
        "with kpt.ops.prefer('numpy'):\n"
        "    y = kpt.ops.rms_norm(x, (37,))\n"
        "assert torch.allclose(y, torch.nn.functional.rms_norm(x, (37,)), atol=1e-5)\n"
        "print(kpt.ops.__file__)"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{code}"
    command = [sys.executable, "-I", "-c", script]  # -I: neither the current folder nor PYTHONPATH
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path))
