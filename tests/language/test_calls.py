"""Calls that do not fit: each gets an error that names the argument, says what it was and what is accepted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kpt_dsl as kd
from tests.language.snippets import kernel

X, B = torch.rand(4, 8) + 1, torch.rand(8)


@kd.function
def plus(a: kd.Value, b: kd.In) -> kd.Value:
    return a + b[:][None, :]


@kd.kernel(x="M N", bias="N", extra="N", out="M N", unused="N")
def biased(
    x: kd.In, bias: kd.In, extra: kd.In, out: kd.Out, scale: kd.Float, how: kd.Static = "plain", unused: kd.In = None,  # type: ignore[assignment]
) -> None:  # fmt: skip
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        if how == "bias":
            row = row + bias[:][None, :]
        if how == "helper":
            row = plus(row, bias)
        if extra is not None:
            row = row + extra[:][None, :]
        out[m, :] = row * scale


Y = torch.empty(4, 8)


WRONG: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "list": (lambda: biased([1.0], B, None, Y, 1.0), ["biased: x is [1.0], but must be a tensor with dims (M, N)"]),
    "input is None": (lambda: biased(None, B, None, Y, 1.0), ["argument x is None, but is used here", "^^^^^^^", "pass x;"]),
    "output is None": (lambda: biased(X, B, None, None, 1.0), ["argument out is None", "out[m, :] = row * scale", "pass out;"]),
    "all are None": (lambda: biased(None, B, None, None, 1.0), ["argument x is None", "how long dim M is", 'kd.tile("M")']),
    "bias is None": (lambda: biased(X, None, None, Y, 1.0, "bias"), ["argument bias is None", "if bias is not None"]),
    "bias is None in a helper": (
        lambda: biased(X, None, None, Y, 1.0, "helper"), ["argument bias is None", "return a + b[:][None, :]", "pass bias;"]
    ),
    "scalar is None": (lambda: biased(X, B, None, Y, None), ["argument scale is None", "row * scale", "pass scale;"]),
    "too few": (lambda: biased(X, B, None, Y), ["biased: missing a required argument: 'scale'", "its arguments are x, bias,"]),
    "too many": (lambda: biased(X, B, None, Y, 1.0, "plain", None, 3), ["biased: too many positional arguments"]),
    "misspelt": (lambda: biased(X, B, None, Y, scael=1.0), ["biased: there is no argument 'scael'", "did you mean scale?"]),
    "misspelt option": (lambda: biased(X, B, None, Y, 1.0, confg={}), ["there is no argument 'confg'", "did you mean config?"]),
    "twice": (lambda: biased(X, B, None, Y, 1.0, x=X), ["multiple values for argument 'x'"]),
    "backend cuda": (
        lambda: biased(X, B, None, Y, 1.0, backend="cuda"),
        ["backend is 'cuda'; accepted are triton, pallas, numpy", "CUDA and ROCm tensors run by triton"],
    ),
    "backend that is no name": (lambda: biased(X, B, None, Y, 1.0, backend=["numpy"]), ["backend is ['numpy']; it is"]),
    "static list": (lambda: biased(X, B, None, Y, 1.0, [1]), ["static how is [1]; accepted are bool, int, float, str"]),
    "static function of Python": (lambda: biased(X, B, None, Y, 1.0, len), ["static how is <built-in", "@kd.function"]),
    "source": (lambda: kd.source(biased, how="bias", bias=None), ["argument bias is None, but is used here"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_explained(name: str) -> None:
    call, parts = WRONG[name]
    for _ in range(2):
        with pytest.raises(kd.InputError) as caught:
            call()
        assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_what_the_text_does_not_use_may_be_absent() -> None:
    y = torch.empty(4, 8)
    biased(X, None, None, y, 2.0)
    torch.testing.assert_close(y, X * 2)
    biased(X, B, B, y, scale=2.0, how="helper")
    torch.testing.assert_close(y, (X + B + B) * 2)


def test_arguments_may_be_given_by_position_and_by_name() -> None:
    given = biased.bind(X, B, None, X, 1.0, "plain", None)
    assert given == biased.bind(X, B, None, X, 1.0) == biased.bind(out=X, x=X, scale=1.0, bias=B, extra=None)
    assert list(given) == list(biased.signature.parameters)


FUTURE = '''
def make():
    import kpt_dsl as kd
    factor = 2.0
    @kd.kernel(x="N", y="N")
    def snippet(x: kd.In, y: "kd.Out") -> None:
        """Documented
from the first column on.
        """
# so is this remark
        for n in kd.parallel(kd.tile("N")):

            y[n] = x[n] * factor
    return snippet

snippet = make()
'''


def test_kinds_may_be_strings_inside_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.language.snippets.HEADER", "from __future__ import annotations\n")
    found, y = kernel(tmp_path, FUTURE), torch.empty(8)
    found(B, y)
    torch.testing.assert_close(y, B * 2)


def test_a_file_that_has_changed_since_it_was_imported(tmp_path: Path) -> None:
    text = '@kd.kernel(x="N")\ndef snippet(x: kd.Out):\n    for n in kd.parallel(kd.tile("N")):\n        x[n] = 1.0\n'
    found = kernel(tmp_path, text)
    file = Path(found.source.file)
    file.write_text(file.read_text().replace("def snippet", "def another"))
    with pytest.raises(
        kd.KernelError, match="here stands another, not snippet: the file has changed since it was imported"
    ):
        kd.kernel(x="N")(found.fn)


def test_helpers_that_python_makes_are_read(tmp_path: Path) -> None:
    text = """
def by(factor):
    @kd.function
    def scaled(x):
        return x * factor
    return scaled

@kd.kernel(x="N", y="N")
def snippet(x: kd.In, y: kd.Out):
    for n in kd.parallel(kd.tile("N")):
        y[n] = by(3.0)(x[n])
"""
    y = torch.empty(8)
    kernel(tmp_path, text)(B, y)
    torch.testing.assert_close(y, B * 3)
