"""Factors of a product's result moved into one of its operands, for machines on which a product takes less time than what is
done with its result.

In a loop, ``dot(a, b) * c`` becomes ``dot(a * c, b)`` where ``a`` is made before the loop and whatever is made of the product
is made of c times it: instead of an operation for each element of the product there is one rounding of ``a``, in bfloat16.
Only where a maximum is taken of it, as a softmax does: all results are those of a rounded ``a`` then, and go together. A
kernel that compares the product with what another made, as attention's gradients do, would see the rounding as an error of
exponents. In float32, of which all digits count, nothing is moved.
"""

from dataclasses import dataclass, field, replace

from kpt_dsl import ir
from kpt_dsl.dtypes import bf16, f32
from kpt_dsl.ir import Expr, Type
from kpt_dsl.passes import fold
from kpt_dsl.passes.infinity import is_positive


def into_operands(kernel: ir.Kernel) -> ir.Kernel:
    """``kernel`` with the factor of one product of each loop, where there is one to move, in an operand."""
    names = {s.name for s in ir.statements(kernel.body) if isinstance(s, ir.Assign)}
    scales = {s.name for s in kernel.scalars if s.positive}
    done: list[ir.Stmt] = []
    for at, stmt in enumerate(kernel.body):
        if isinstance(stmt, ir.For):
            outside = ir.every_expr((*kernel.body[:at], *kernel.body[at + 1 :]))
            lasting = {*stmt.carried, *(e.name for e in outside if isinstance(e, ir.Var))}
            done += _moved(stmt, lasting, scales, names)
        else:
            done.append(stmt)
    return replace(kernel, body=tuple(done))


def _moved(loop: ir.For, lasting: set[str], scales: set[str], names: set[str]) -> list[ir.Stmt]:
    """A loop, and before it what is new. ``lasting``: variables that are read outside it or in its next turn."""
    inside = {s.name for s in ir.statements(loop.body) if isinstance(s, ir.Assign)}
    for at, stmt in enumerate(loop.body):
        match stmt:
            case ir.Assign(name=result, value=ir.Dot(a=a, b=b, acc=None) as product):
                sides = (x.x if isinstance(x, ir.Transpose) else x for x in (a, b))
                made = [x for x in sides if isinstance(x, ir.Var) and x.name not in inside and x.type.dtype == bf16]
            case _:
                continue
        uses = _Uses({result})
        rest = tuple(map(uses.statement, loop.body[at + 1 :]))
        factor = uses.factor
        if not made or factor is None or not uses.peak or uses.others or uses.ever & lasting:
            continue
        if not is_positive(factor, scales):
            continue
        scaled = replace(made[0], name=_free(f"{made[0].name}_scaled", names))
        wide = Type(f32, scaled.type.shape)
        times = ir.Binary("mul", ir.Cast(made[0], type=wide), factor, type=wide, loc=factor.loc)
        new = replace(stmt, value=fold.rebuild(product, {made[0]: scaled}))
        first = ir.Assign(scaled.name, ir.Cast(times, type=scaled.type), loc=factor.loc)
        return [first, replace(loop, body=(*loop.body[:at], new, *rest))]
    return [loop]


def _free(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name


@dataclass
class _Uses:
    """Rewrites what is made of a product as if that had its factor already.

    ``held`` are the variables that hold the product, or what has the factor if the product does; ``others``: something is made
    of it without the factor, or with another; ``peak``: a maximum is taken of it, so the factor must be positive.
    """

    held: set[str]
    factor: Expr | None = None
    others: bool = False
    peak: bool = False
    ever: set[str] = field(default_factory=set)

    def statement(self, stmt: ir.Stmt) -> ir.Stmt:
        self.ever |= self.held
        if not isinstance(stmt, ir.Assign):
            new = {e: self.expr(e) for inner in ir.statements((stmt,)) for e in ir.expressions(inner)}
            return fold.rebuild_statement(stmt, new)
        scaled = self.scaled(stmt.value)
        value = self.expr(stmt.value) if scaled is None else scaled
        (self.held.discard if scaled is None else self.held.add)(stmt.name)
        return replace(stmt, value=value)

    def expr(self, node: Expr) -> Expr:
        """What is not to get the factor, with multiples of the product in it that have it."""
        match node:
            case ir.Var(name=name):
                self.others |= name in self.held
            case ir.Binary("mul", x, factor) if not factor.type.shape and (scaled := self.scaled(x)) is not None:
                constant = all(isinstance(e, ir.Param | ir.Const | ir.Binary) for e in ir.walk(factor))
                self.others |= not constant or self.factor not in (None, factor)
                self.factor = factor
                return scaled
        return ir.with_children(node, tuple(map(self.expr, ir.children(node))))

    def scaled(self, node: Expr) -> Expr | None:
        """What gets the factor as the product does; None of anything else."""
        match node:
            case ir.Var(name=name) if name in self.held:
                return node
            case ir.Reduce("max" | "maxnum", x) if (inner := self.scaled(x)) is not None:
                self.peak = True
                return replace(node, x=inner)
            case ir.Where(cond, a, ir.Const(value=value)) if value == -float("inf") and (inner := self.scaled(a)) is not None:
                return replace(node, cond=self.expr(cond), a=inner)
        return None
