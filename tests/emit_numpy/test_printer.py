"""The printed form of the IR: what people read in error messages and in ``print(kernel)``."""

import pytest

import kpt_dsl as kd
from kpt_dsl import ir
from kpt_dsl.dtypes import bool_, f32, i32
from kpt_dsl.instance import Instance
from kpt_dsl.printer import format_expr, format_kernel


@kd.kernel(x="M K", weight="N K", lengths="M", y="M N")
def product(x: kd.In, weight: kd.In, lengths: kd.In, y: kd.Out, scale: kd.Float) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K"), start=m.start, stop=kd.minimum(m.stop, 5)):
            acc = kd.dot(x[m, k], weight[n, k].T, acc)
        y[m, n] = kd.where((n.index[None, :] < lengths[m][:, None]) & (m.index[:, None] >= 0), acc * -scale, -kd.inf)


def test_a_kernel_is_printed_with_types_and_source_lines() -> None:
    instance = Instance.of_shapes(
        product, {"M": 3, "N": 4, "K": 5}, {"x": "bf16", "weight": "bf16", "lengths": "i32", "y": "f16"}
    )
    lines = [line.split("  # ") for line in format_kernel(instance.lower()).splitlines()]
    assert [line[0].rstrip() for line in lines] == [
        "kernel product(x: in bf16[M, K], weight: in bf16[N, K], lengths: in i32[M], y: out f16[M, N], scale: f32)",
        "    parallel m in tile(M, block_M), n in tile(N, block_N):",
        "        acc: f32[m, n] = full([m, n], 0)",
        "        for k in tile(K, block_K) from max(m.start, 0) to min(min(m.stop, 5), size(K)) carrying acc:",
        "            acc: f32[m, n] = dot(x[m, k], weight[n, k].T, acc)",
        "        y[m, n] = f16(where((n.index[None, :] < lengths[m][:, None]) & (m.index[:, None] >= 0), acc * -scale, -inf))",
    ]
    assert lines[2][1].endswith(": acc = kd.zeros([m, n])")


def _i(name: str) -> ir.Expr:
    return ir.Var(name, type=ir.Type(i32))


def _binary(op: ir.BinaryOp, a: ir.Expr, b: ir.Expr) -> ir.Expr:
    return ir.Binary(op, a, b, type=ir.Type(bool_ if op in ("lt", "and", "or") else i32))


def test_parentheses_stand_where_they_change_the_meaning_and_nowhere_else() -> None:
    a, b, c = _i("a"), _i("b"), _i("c")
    assert format_expr(_binary("sub", a, _binary("sub", b, c))) == "a - (b - c)"
    assert format_expr(_binary("sub", _binary("sub", a, b), c)) == "a - b - c"
    assert format_expr(_binary("mul", _binary("add", a, b), c)) == "(a + b) * c"
    assert format_expr(_binary("add", _binary("mul", a, b), c)) == "a * b + c"
    assert format_expr(_binary("floordiv", a, _binary("mod", b, c))) == "a // (b % c)"
    less = _binary("lt", a, b)
    assert format_expr(_binary("and", less, _binary("or", less, less))) == "(a < b) & ((a < b) | (a < b))"
    assert format_expr(_binary("or", a, _binary("and", _binary("shl", b, c), _binary("xor", a, b)))) == "a | b << c & (a ^ b)"
    assert format_expr(ir.Unary("neg", _binary("add", a, b), type=ir.Type(i32))) == "-(a + b)"


@pytest.mark.parametrize("part", ["head", "interior", "tail"])
def test_what_passes_write_is_printed_too(part: str) -> None:
    tile = ir.Tile("n", "N", "block_N")
    axis = tile.axis
    row = ir.Type(f32, (axis,))
    load = ir.Load("x", (axis,), masked=(axis,), type=row)
    valid = ir.Valid(axis, type=ir.Type(bool_, (axis,)))
    zero = ir.Const(0.0, type=ir.Type(f32))
    store = ir.Store("y", (axis,), ir.Where(valid, load, zero, type=row), masked=(axis,))
    loop = ir.For(tile, ir.scalar(0), ir.Size("N", type=ir.Type(i32)), (store,), part=part)  # type: ignore[arg-type]
    tensors = (ir.Tensor("x", ("N",), f32, "in"), ir.Tensor("y", ("N",), f32, "out"))
    text = format_kernel(ir.Kernel("copy", tensors, (), (ir.Each("b", "B"),), (loop,)))
    assert f"for {part} n in tile(N, block_N) from 0 to size(N):" in text
    assert "y[n].masked(n) = where(n.valid, x[n].masked(n), 0)" in text
