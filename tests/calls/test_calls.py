"""Three minutes of drawn calls, others on every run: their first number is printed, and makes them again."""

import time
import warnings

import pytest

from tests.calls.__main__ import CPU, GPU
from tests.calls.draw import draw
from tests.calls.judge import trouble

SECONDS = 150
"""Of the three minutes, what imports and compilers leave."""


@pytest.mark.timeout(400)
def test_drawn_calls_are_right(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = int(time.time()) % 10**8 * 10
    with capsys.disabled():
        print(f"\ndrawn calls from number {first} on: python -m tests.calls --first {first} --device {device}")
    end = time.monotonic() + SECONDS
    wrong, number = [], first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while time.monotonic() < end and len(wrong) < 5:
            call = draw(number, device, CPU if device == "cpu" else GPU)
            if (found := trouble(call)) is not None:
                wrong.append(f"{number}: {call}\n    {found}")
            number += 1
    assert number > first + 20
    assert not wrong, "\n".join([f"{len(wrong)} of {number - first}:", *wrong])
