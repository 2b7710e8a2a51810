"""What all tests share: hypothesis profiles, a cache and a database of their own, seeds, where generated code runs."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

# Before NumPy and PyTorch start: tensors are tiny, every core has a worker of its own, and threads that wait for others spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # in this process: its own start slower than what they compile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    derandomize=True,  # the same cases on every run: a red CI is reproducible
    deadline=None,  # the first case of a kernel pays for its compilation
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("explore", parent=settings.get_profile("ci"), derandomize=False, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, and so all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)


PROGRAMS_SEED = "KPT_PROGRAMS_SEED"
"""The variable that makes drawn programs those of an earlier run; workers inherit it."""


def pytest_configure() -> None:
    os.environ.setdefault(PROGRAMS_SEED, str(secrets.randbelow(1 << 31)))


def pytest_report_header() -> str:
    return f"drawn programs: {PROGRAMS_SEED}={os.environ[PROGRAMS_SEED]}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where cases of generated code run")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where cases of generated code run: in interpreters on the CPU, or on a GPU."""
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def fresh_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither see nor touch the cache and the database of whoever runs them."""
    folder = tmp_path_factory.mktemp("kpt")
    patch = pytest.MonkeyPatch()
    patch.setenv("KPT_DB", str(folder / "configs.db"))
    patch.setenv("KPT_CACHE_DIR", str(folder / "cache"))
    patch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    yield
    patch.undo()


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same on every run."""
    return np.random.default_rng(20)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent
