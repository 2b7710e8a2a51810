"""``--device cuda`` runs the generated cases on a GPU instead of the interpreters."""

import os

import pytest

# Each case is compiled once and run once: XLA's optimisations take longer than they save.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where generated cases run")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where cases run; without the option (it is known only when this folder is named on the command line) the CPU."""
    return str(request.config.getoption("--device", default="cpu"))
