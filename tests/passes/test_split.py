"""Mask splitting: for any shape, block and mask, the three loops visit each tile once, the interior holds exactly the tiles
that need no mask, and the edges keep all of theirs."""

import math
from dataclasses import dataclass
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from kpt.ops.flash_attention.backward_kernels import flash_attention_dkdv
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt_dsl import ir
from kpt_dsl.dtypes import bool_
from kpt_dsl.instance import Instance
from kpt_dsl.passes import bounds, fold, padding, split


@dataclass(frozen=True)
class Scene:
    """Numbers for every scalar that loop bounds may hold."""

    sizes: dict[str, int]
    blocks: dict[str, int]
    starts: dict[str, int]
    params: dict[str, int]
    length: int

    def value(self, x: ir.Expr, variables: dict[str, int]) -> int:
        match x:
            case ir.Const(value=value):
                return int(value)
            case ir.Size(dim=dim):
                return self.sizes[dim]
            case ir.Block(tile=tile):
                return self.blocks[tile]
            case ir.Start(tile=tile):
                return self.starts[tile]
            case ir.Stop(tile=tile):
                return min(self.starts[tile] + self.blocks[tile], self.sizes[tile.upper()])
            case ir.Index():
                return 0
            case ir.Param(name=name):
                return self.params[name]
            case ir.Var(name=name):
                return variables[name]
            case ir.Load(tensor="key_lengths"):
                return self.length
            case ir.Where(cond=cond, a=a, b=b):
                return self.value(a if self.value(cond, variables) else b, variables)
            case ir.Binary(op=op, a=a, b=b):
                left, right = self.value(a, variables), self.value(b, variables)
                table = {"add": left + right, "sub": left - right, "mul": left * right, "min": min(left, right),
                         "max": max(left, right), "floordiv": left // right if right else 0, "lt": left < right}  # fmt: skip
                return table[op]
        raise AssertionError(x)

    def loops(self, kernel: ir.Kernel) -> list[tuple[str, int, int]]:
        """(part, start, stop) of each top-level loop, in order."""
        variables: dict[str, int] = {}
        found = []
        for stmt in kernel.body:
            if isinstance(stmt, ir.Assign) and stmt.value.type == ir.Type(ir.i32):
                variables[stmt.name] = self.value(stmt.value, variables)
            elif isinstance(stmt, ir.For):
                found.append((stmt.part, self.value(stmt.start, variables), self.value(stmt.stop, variables)))
        return found


def tiles(start: int, stop: int, block: int) -> list[int]:
    return list(range(start // block * block, stop, block)) if start < stop else []


@cache
def attention(causal: bool, window: bool, lengths: bool) -> ir.Kernel:
    dtypes = {"q": "f32", "k": "f32", "v": "f32", "key_lengths": "i32" if lengths else None, "o": "f32", "lse": "f32"}
    statics = {"causal": causal} if window else {"causal": causal, "window": None}
    instance = Instance.of_shapes(flash_attention_fwd, dict(B=1, H=1, G=1, M=8, N=8, D=16, E=16), dtypes, statics)
    return split.split_masks(padding.guard(instance.lower(), lambda axis: axis.tile is not None))


@settings(max_examples=400)
@given(
    st.booleans(), st.none() | st.integers(1, 50), st.none() | st.integers(0, 90), st.integers(1, 70), st.integers(1, 90),
    st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(0, 10),
)  # fmt: skip
def test_attention_loops(
    causal: bool, window: int | None, length: int | None, m: int, n: int, block_m: int, block_n: int, at: int
) -> None:
    m0 = at % math.ceil(m / block_m) * block_m
    scene = Scene(
        {"M": m, "N": n, "H": 1, "G": 1}, {"m": block_m, "n": block_n}, {"m": m0}, {"window": window or 0}, length or 0
    )
    loops = scene.loops(attention(causal, window is not None, length is not None))
    keys = n if length is None else min(n, length)
    rows = range(m0, min(m0 + block_m, m))

    def seen(i: int, j: int) -> bool:
        p = i + n - m
        inside = window is None or (p - window < j and (causal or j < p + window))
        return j < keys and inside and (not causal or j <= p)

    visited = [t for _, start, stop in loops for t in tiles(start, stop, block_n)]
    assert visited == sorted(set(visited)), "each tile at most once, in order"
    needed = {j // block_n * block_n for i in rows for j in range(n) if seen(i, j)}
    assert needed <= set(visited), "every tile with a visible key is visited"
    clear = [t for part, start, stop in loops if part == "interior" for t in tiles(start, stop, block_n)]
    full = [t for t in visited if all(seen(i, j) for i in rows for j in range(t, t + block_n))]
    assert clear == full, "the interior is exactly the tiles that are visible in every lane"
    for part, start, stop in loops:
        if part != "head" and start < stop:
            assert start % block_n == 0


@cache
def gradients(causal: bool, window: bool, lengths: bool, ragged: bool) -> ir.Kernel:
    """Queries are walked in tiles, keys are dealt out: the loop's tile is along the columns, and its start is computed."""
    given = flash_attention_dkdv.tensors.keys() - flash_attention_dkdv.defaults
    dtypes: dict[str, str | None] = dict.fromkeys(given, "f32")
    dtypes |= {"key_lengths": "i32" if lengths else None, "dq_sum": None}
    statics = {"causal": causal} if window else {"causal": causal, "window": None}
    instance = Instance.of_shapes(flash_attention_dkdv, dict(B=1, H=1, G=1, M=8, N=8, D=16, E=16), dtypes, statics)

    def padded(axis: ir.Axis) -> bool:
        return axis.tile == "n" or (axis.tile == "m" and ragged)

    return split.split_masks(padding.guard(bounds.settle(instance.lower()), padded), padded)


@settings(max_examples=400)
@given(
    st.booleans(), st.none() | st.integers(1, 50), st.none() | st.integers(-5, 90), st.integers(1, 70), st.integers(1, 90),
    st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(0, 10), st.booleans(),
)  # fmt: skip
def test_loops_of_attention_gradients(
    causal: bool,
    window: int | None,
    length: int | None,
    m: int,
    n: int,
    block_m: int,
    block_n: int,
    at: int,
    tidy: bool,
) -> None:
    m = m * block_m if tidy else m
    n0 = at % math.ceil(n / block_n) * block_n
    scene = Scene(
        {"M": m, "N": n, "H": 1, "G": 1}, {"m": block_m, "n": block_n}, {"n": n0}, {"window": window or 0}, length or 0
    )
    loops = scene.loops(gradients(causal, window is not None, length is not None, m % block_m != 0))
    columns = range(n0, min(n0 + block_n, n))

    def seen(i: int, j: int) -> bool:
        p = i + n - m
        inside = window is None or (p - window < j and (causal or j < p + window))
        return inside and (not causal or j <= p)

    visited = [t for _, start, stop in loops for t in tiles(start, stop, block_m)]
    assert visited == sorted(set(visited)), "each tile at most once, in order"
    there = length is None or n0 < length
    needed = {i // block_m * block_m for i in range(m) for j in columns if there and seen(i, j)}
    assert needed <= set(visited), "every tile with a query that sees a key of these is visited"
    assert there or not visited, "nothing is visited for keys beyond the length"
    clear = [t for part, start, stop in loops if part == "interior" for t in tiles(start, stop, block_m)]
    full = [t for t in visited if t + block_m <= m and all(seen(i, j) for i in range(t, t + block_m) for j in columns)]
    assert clear == full, "the interior is exactly the tiles in which every query sees every key"
    for part, start, stop in loops:
        if part != "head" and start < stop:
            assert start % block_m == 0
    if m % block_m == 0 and window is None:
        assert "tail" not in [part for part, _, _ in loops], (
            "no tile is cut short, and no mask ends before the last one"
        )


@given(st.integers(0, 300), st.sampled_from([16, 32, 64]))
def test_ragged_reduction(k: int, block: int) -> None:
    dtypes = {"x": "bf16", "weight": "bf16", "bias": None, "y": "bf16"}
    instance = Instance.of_shapes(linear_act_fwd, dict(M=8, N=8, K=8), dtypes, {"activation": ACTIVATIONS["relu"]})
    kernel = split.split_masks(padding.guard(instance.lower(), lambda axis: axis.tile is not None))
    loops = Scene({"K": k, "M": 8, "N": 8}, {"k": block}, {}, {}, 0).loops(kernel)
    assert loops == [("interior", 0, k // block * block), ("tail", k // block * block, k)]


def test_the_interior_has_no_masks_left() -> None:
    kernel = attention(True, True, True)
    parts = {s.part: s for s in kernel.body if isinstance(s, ir.For)}
    assert set(parts) == {"head", "interior", "tail"}

    def masks(loop: ir.For) -> int:
        nodes = list(ir.every_expr(loop.body))
        loads = sum(bool(x.masked) for x in nodes if isinstance(x, ir.Load))
        compared = sum(isinstance(x, ir.Valid | ir.Lanes) for x in nodes)
        return loads + compared

    assert masks(parts["interior"]) == 0
    assert masks(parts["head"]) == masks(parts["tail"]) > 0


def test_a_loop_without_padding_stays_one() -> None:
    dtypes = {"x": "bf16", "weight": "bf16", "bias": None, "y": "bf16"}
    instance = Instance.of_shapes(linear_act_fwd, dict(M=8, N=8, K=8), dtypes, {"activation": ACTIVATIONS["relu"]})
    kernel = split.split_masks(padding.guard(instance.lower(), lambda axis: False))
    assert [s.part for s in kernel.body if isinstance(s, ir.For)] == ["interior"]


def test_conditions_that_are_known_keep_their_shape() -> None:
    kind = ir.Type(bool_, (ir.Axis("N"),))
    other = ir.Valid(ir.Axis("N"), type=kind)
    known = {value: fold.truth(value, other) for value in (True, False)}

    def made(op: str, value: bool) -> ir.Expr:
        return fold.resolve(ir.Binary(op, known[value], other, type=kind))  # type: ignore[arg-type]

    assert (made("and", True), made("or", False)) == (other, other)
    assert (made("and", False), made("or", True)) == (known[False], known[True])
    assert fold.resolve(ir.Unary("not", known[True], type=kind)) == known[False]
    wide = ir.Type(bool_, (ir.UNIT, ir.Axis("N")))
    assert fold.resolve(ir.Expand(known[True], 0, type=wide)).type == wide
