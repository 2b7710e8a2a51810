"""What a Pallas kernel gathers: from a block that holds an indexed dim whole, by comparing every place in it with the indices.

A TPU's vector unit has no loads through addresses. Elements are *picked* out of the lines that run along the dim, by a sum of
which one term is not zero; whole lines across it are products of ones and zeros, in the matrix unit. Both are made of an
element's bits, so that neither a negative zero nor another line's infinity comes into it.
"""

from dataclasses import dataclass

from kpt_dsl import ir
from kpt_dsl.dtypes import DType, bf16
from kpt_dsl.emit.pallas.plan import Plan, Side
from kpt_dsl.errors import TargetError
from kpt_dsl.ir import Axis, Expr

HELPERS: dict[str, str] = {
    "picked": '''\
def picked(bits, index, axis):
    """Of each row (axis 1) or column (axis 0) the element at its index."""
    places = lax.broadcasted_iota(jnp.int32, bits.shape, axis)
    return jnp.sum(jnp.where(places == index, bits, 0), axis=axis, keepdims=True)''',
    "lines": '''\
def lines(bits, index, axis, lowest):
    """The rows (axis 0) or columns (axis 1) at the indices, a byte at a time, which products of ones and zeros leave exact."""
    shape = (index.shape[0], bits.shape[0]) if axis == 0 else (bits.shape[1], index.shape[1])
    ones = (lax.broadcasted_iota(jnp.int32, shape, 1 - axis) == index).astype(jnp.float32).astype(jnp.bfloat16)
    found = 0
    for shift in range(lowest, 32, 8):
        part = ((bits >> shift) & 255).astype(jnp.float32).astype(jnp.bfloat16)
        a, b = (ones, part) if axis == 0 else (part, ones)
        product = jnp.dot(a, b, preferred_element_type=jnp.float32)
        found |= product.astype(jnp.int32) << shift
    return found''',
}
"""Functions that generated text may call."""


@dataclass(frozen=True)
class Form:
    """``index``: the tile of indices, which tells of rows (``along`` 0) or of columns (1) of its block; of the block's lines
    along them an element each is ``picked``, else they are whole."""

    index: Expr
    along: int
    picked: bool

    @property
    def side(self) -> Side:
        """How the indices lie: across the lines that they pick from, along those that they put beside each other."""
        return "column" if self.along == (1 if self.picked else 0) else "row"


def held(plan: Plan, node: ir.Read) -> tuple[Axis | Expr, ...]:
    """The index of the block that a load is of, or a gather picks from."""
    if isinstance(node, ir.Load):
        return node.index
    dims = plan.kernel.tensor(node.tensor).dims
    return tuple(Axis(d) if isinstance(i, Expr) and i.type.shape else i for i, d in zip(node.index, dims, strict=True))


def why_not(kernel: ir.Kernel, node: ir.Gather) -> str | None:
    """Why neither sums nor products of tiles of two axes gather this, or None."""
    sides = [i for i in node.index if isinstance(i, Axis) or i.type.shape]
    indices = [i for i in sides if isinstance(i, Expr)]
    if len(sides) < 3 and len(indices) == 1 and len(indices[0].type.shape) == 1:
        return None
    dims = ", ".join(kernel.tensor(node.tensor).dims)
    return (
        f"{kernel.name} gathers from {node.tensor}[{dims}] (line {node.loc.line}) by several tiles of indices, by one of two "
        f"axes, or from three dims at once; a TPU gathers rows, columns or single elements of a tile of two axes: index one "
        f'dim with a vector, and go through others one after the other, kd.parallel("…")'
    )


def form(plan: Plan, node: ir.Gather) -> Form:
    """How a gather is made. Raises TargetError as ``why_not`` says."""
    if (reason := why_not(plan.kernel, node)) is not None:
        raise TargetError(reason)
    sides = [i for i in node.index if isinstance(i, Axis) or i.type.shape]
    (index,) = (i for i in sides if isinstance(i, Expr))
    others = [i for i in sides if isinstance(i, Axis)]
    if others:
        return Form(index, sides.index(index), picked=others[0] == index.type.shape[0])
    whole = Axis(plan.kernel.tensor(node.tensor).dims[node.index.index(index)])
    return Form(index, 1 if plan.stored(whole) == "row" else 0, picked=True)


def text(form: Form, block: str, index: str, dtype: DType) -> str:
    """The bits of what is gathered; those of a float are float32's."""
    whole = f"lax.bitcast_convert_type({block}.astype(jnp.float32), jnp.int32)"
    bits = whole if dtype.is_float else f"{block}.astype(jnp.int32)"
    lowest = 16 if dtype == bf16 else 0
    return f"picked({bits}, {index}, {form.along})" if form.picked else f"lines({bits}, {index}, {form.along}, {lowest})"
