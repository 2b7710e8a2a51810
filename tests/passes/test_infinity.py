"""Minus infinity is followed through what softmax does with it, and no further."""

from pathlib import Path

import pytest

from kpt_dsl import ir
from kpt_dsl.errors import InputError
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.passes.padding import guard
from tests.language.snippets import kernel

TEXT = """
@kd.kernel(x="M N", w="N", row="M")
def snippet(x: kd.In, w: kd.In, row: kd.Out, scale: kd.Positive, factor: kd.Float) -> None:
    for m in kd.parallel(kd.tile("M")):
        s = kd.where(kd.tanh(x[m, :]) > 2.0, x[m, :], -kd.inf)
        top = kd.max(s, axis=1)
        shift = kd.where(top == -kd.inf, 0.0, top)
        each = kd.log2(w[:])
        each = kd.where(each == -kd.inf, 0.0, each)
        row[m] = kd.sum(kd.exp2({exponent}), axis=1)
"""



def snippet(folder: Path, exponent: str) -> Kernel:
    return kernel(folder, TEXT.format(exponent=exponent))


@pytest.mark.parametrize(
    ("exponent", "proven"),
    [
        ("s * (scale * 1.5) - shift[:, None]", True),
        ("s * scale - shift[:, None]", True),
        ("s * 0.5 - 1.0", True),
        ("s * factor - shift[:, None]", False),
        ("s * (scale * 0.5) - shift[:, None]", False),  # may round to zero
        ("s * (scale * scale) - shift[:, None]", False),
        ("s * scale - top[:, None]", False),
        ("s * scale - each[None, :]", False),  # a NaN of one lane is not one of all
        ("s * scale + shift[:, None]", False),
    ],
)
def test_what_is_minus_infinity_stays_so(tmp_path: Path, exponent: str, proven: bool) -> None:
    instance = Instance.of_shapes(snippet(tmp_path, exponent), {"M": 37, "N": 199}, dict(x="f32", w="bf16", row="f32"))
    sums = [e for e in ir.every_expr(guard(instance.lower(), lambda axis: True).body) if isinstance(e, ir.Reduce)]
    masked = [isinstance(e.x, ir.Where) for e in sums if e.op == "sum"]
    assert masked == [not proven]


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-40, float("nan")])
def test_a_positive_argument_is_checked(tmp_path: Path, value: float) -> None:
    positive = snippet(tmp_path, "s * scale")
    with pytest.raises(InputError, match=r"scale is .*; it must be above zero, 1.18e-38 or more"):
        positive.bind(None, None, None, value, 1.0)
    assert positive.bind(None, None, None, 1e-3, -1.0)["scale"] == 1e-3
