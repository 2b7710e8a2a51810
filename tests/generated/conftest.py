"""``--device cuda`` runs the generated cases on a GPU instead of the interpreters."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where generated cases run")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where cases run; without the option (it is known only when this folder is named on the command line) the CPU."""
    return str(request.config.getoption("--device", default="cpu"))
