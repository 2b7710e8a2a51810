"""Generated code of every op against float64 on more than 300 ugly cases an op: as NumPy, and in the interpreters of Triton
and Pallas.

The cases are the same on every run; ``HYPOTHESIS_PROFILE=explore`` draws others, many more.
``python -m pytest tests/generated --device cuda`` runs them on a GPU.
"""

from collections.abc import Callable

import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.generated.backends import check, check_exactly
from tests.generated.case import Case
from tests.generated.cases import OPS

DRAWN = 30
"""Cases that one test draws."""

TESTS = {"numpy": 7, "triton": 3, "pallas": 1}
"""Tests of each op on a backend, by what a case takes: with the cases of every run, about 360 an op. ``make soak`` draws
thousands."""


def each(cases: SearchStrategy[Case], run: Callable[[Case], None], number: int) -> None:
    """Run drawn cases; ``number`` tells draws apart. A failure is reported as drawn: shrinking would run hundreds more."""

    profile = settings()

    @settings(max_examples=DRAWN if profile.derandomize else profile.max_examples, phases=[Phase.generate])
    @given(cases)
    def each_case(case: Case) -> None:
        run(case)

    (seed(number)(each_case) if profile.derandomize else each_case)()


def _drawn() -> list[tuple[str, str, int]]:
    return [(op, backend, number + 1) for op in OPS for backend, count in TESTS.items() for number in range(count)]


@pytest.fixture
def on(device: str, request: pytest.FixtureRequest) -> str:
    """The device, where the backend of the test runs on it."""
    backend = request.getfixturevalue("backend")
    if device == "cuda" and backend != "triton":
        pytest.skip(f"{backend} does not run on CUDA devices")
    return device


@pytest.mark.parametrize(("op", "backend", "number"), _drawn())
def test_drawn_cases(op: str, backend: str, number: int, on: str) -> None:
    each(OPS[op].drawn, lambda case: check(case, backend, on), number)


@pytest.mark.parametrize("backend", TESTS)
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{op}-{i}") for op, c in OPS.items() for i, case in enumerate(c.always)]
)
def test_cases_of_every_run(case: Case, backend: str, on: str) -> None:
    check(case, backend, on)


@pytest.mark.parametrize("op", OPS)
def test_the_float64_mode_is_the_reference(op: str) -> None:
    for case in OPS[op].always:
        check_exactly(case)
    each(OPS[op].drawn, check_exactly, number=0)
