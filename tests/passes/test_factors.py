"""A product's factor goes into an operand where everything that is made of the product has it, and nowhere else."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.passes.factors import into_operands
from kpt_dsl.printer import format_kernel
from tests.language.snippets import kernel
from tests.tolerances import assert_close

TEXT = """
@kd.kernel(q="M D", k="N D", row="M", last="M")
def snippet(q: kd.In, k: kd.In, row: kd.Out, last: kd.Out, scale: kd.Positive, factor: kd.Float) -> None:
    for m in kd.parallel(kd.tile("M")):
        query = q[m, :]
        top, total = kd.full([m], -kd.inf), kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            s = kd.dot({product})
            {use}
        row[m] = top
        last[m] = total
"""

PRODUCT = "query, k[n, :].T"
TOTAL = "total = total + kd.sum(kd.abs(s * {c}), axis=1)"
MASK = "s = kd.where(n.index[None, :] > 3, s, -kd.inf)\n            "
TOP = "top = kd.maximum(top, kd.max(s, axis=1) * {c})"


def snippet(folder: Path, use: str, c: str, product: str = PRODUCT) -> Kernel:
    return kernel(folder, TEXT.format(product=product, use=use.format(c=c)))


def moved(folder: Path, use: str, c: str, product: str = PRODUCT, dtype: str = "bf16") -> list[str]:
    """The lines in which something is multiplied, after the pass."""
    dims, dtypes = {"M": 64, "N": 256, "D": 32}, {"q": dtype, "k": dtype, "row": "f32", "last": "f32"}
    lowered = Instance.of_shapes(snippet(folder, use, c, product), dims, dtypes).lower()
    lines = format_kernel(into_operands(lowered)).splitlines()
    return [line.split("#")[0].strip() for line in lines if " * " in line.split("#")[0]]


@pytest.mark.parametrize(
    ("use", "c"),
    [
        (TOP, "scale"),
        (TOP, "(scale * 1.5)"),
        (MASK + TOP, "scale"),
        (MASK + TOP + "\n            " + TOTAL, "(scale * 1.5)"),
        (TOP + "\n            s = kd.exp(s * {c})\n            top = kd.maximum(top, kd.max(s, axis=1))", "scale"),
    ],
)
def test_a_factor_moves(use: str, c: str, tmp_path: Path) -> None:
    (line,) = moved(tmp_path, use, c)
    assert line.startswith("query_scaled: bf16[m, D] = bf16(f32(query) * ")


@pytest.mark.parametrize(
    ("use", "c", "why"),
    [
        (TOTAL, "scale", "no maximum: what it is compared with may come of what is not rounded"),
        (TOP, "factor", "a maximum, and the factor may be negative"),
        (TOP, "(scale * 0.5)", "it may round to zero, and a maximum be minus infinity"),
        (MASK + TOP, "factor", "a mask, and the factor may be negative"),
        ("total = total + kd.sum(s * scale, axis=1)\n            " + TOP, "(scale * 2.0)", "two factors"),
        (TOTAL + "\n            top = kd.maximum(top, kd.max(s, axis=1))", "scale", "a use without it"),
        (TOTAL + "\n            top = kd.maximum(top, kd.max(s * 2.0, axis=1))", "scale", "another factor"),
        ("s = kd.where(n.index[None, :] > 3, s, 0.5)\n            " + TOP, "scale", "a number that it does not have"),
        (TOP, "kd.where(factor > 0.5, 1.0, 2.0)", "no constant"),
        ("top = kd.max(s, axis=1)\n            " + TOTAL, "scale", "what is read behind the loop would have it"),
    ],
)
def test_a_factor_stays(use: str, c: str, why: str, tmp_path: Path) -> None:
    assert not any("query_scaled" in line for line in moved(tmp_path, use, c)), why


def test_float32_keeps_its_digits(tmp_path: Path) -> None:
    assert not any("query_scaled" in line for line in moved(tmp_path, TOP, "scale", dtype="f32"))


def test_an_operand_of_the_loop_stays_as_it_is(tmp_path: Path) -> None:
    assert not any("scaled" in line for line in moved(tmp_path, TOP, "scale", "q[m, :], k[n, :].T"))
    assert any("query_scaled" in line for line in moved(tmp_path, TOP, "scale", "query, k[n, :].T"))


def test_it_goes_into_whichever_operand_lasts(tmp_path: Path) -> None:
    use = "top = kd.maximum(top, kd.max(s, axis=0) * {c})"
    assert any("query_scaled" in line for line in moved(tmp_path, use, "scale", "k[n, :], query.T"))


def test_what_was_moved_gives_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("jax")
    use = MASK + TOP + "\n            " + "total = total + kd.sum(kd.exp(s * {c}), axis=1)"
    found = snippet(tmp_path, use, "(scale * 1.5)")
    q, k = (rng.standard_normal(shape).astype(np.float32).astype(ml_dtypes.bfloat16) for shape in ((70, 40), (300, 40)))
    row, last = np.zeros(70, np.float32), np.zeros(70, np.float32)
    found(q, k, row, last, 0.1, 0.0, backend="pallas")
    s = (q.astype(np.float64) @ k.astype(np.float64).T * 0.15)[:, 4:]
    assert_close(row, s.max(1), "bf16", 40)
    assert_close(last, np.exp(s).sum(1), "bf16", 300)
