"""The tile IR as text: what ``format_kernel`` shows and what error messages quote.

The text is for people: types stand where a variable is assigned, each statement has its source line beside it. Nothing
parses it back, and it knows no backend and no config.
"""

from kpt_dsl import ir

_COMMENT_COLUMN = 76

# Binding strength of an operator, weakest first; an operand that binds weaker than its place is put in parentheses.
_COMPARE, _OR, _XOR, _AND, _SHIFT, _ADD, _MULTIPLY, _NEGATE, _ATOM = range(9)

_INFIX: dict[str, tuple[str, int]] = {
    "lt": ("<", _COMPARE), "le": ("<=", _COMPARE), "gt": (">", _COMPARE), "ge": (">=", _COMPARE), "eq": ("==", _COMPARE),
    "ne": ("!=", _COMPARE), "or": ("|", _OR), "xor": ("^", _XOR), "and": ("&", _AND), "shl": ("<<", _SHIFT),
    "shr": (">>", _SHIFT), "add": ("+", _ADD), "sub": ("-", _ADD), "mul": ("*", _MULTIPLY), "div": ("/", _MULTIPLY),
    "floordiv": ("//", _MULTIPLY), "mod": ("%", _MULTIPLY),
}  # fmt: skip


def format_kernel(kernel: ir.Kernel) -> str:
    """A kernel as text: parameters with their types, the grid, the body; one statement a line."""
    out = _Lines()
    out.add(0, f"kernel {kernel.name}({', '.join(_parameters(kernel))})", kernel.loc)
    for name, options in kernel.choices:
        out.add(1, f"choice {name}: {', '.join(map(str, options))}")
    depth = 1
    if kernel.grid:
        out.add(depth, f"parallel {', '.join(map(_loop_over, kernel.grid))}:")
        depth += 1
    _add_body(out, kernel.body, depth)
    return out.text()


def format_expr(expr: ir.Expr) -> str:
    """An expression on one line, in the notation of kernels: ``dot(x[m, k], weight[n, k].T, acc)``."""
    return _expr(expr, _COMPARE)


# ------------------------------------------------------------------ statements
class _Lines:
    """Lines of text under way; a source line is shown once, beside the first statement that comes from it."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._shown: tuple[str, int] | None = None

    def add(self, depth: int, text: str, loc: ir.Loc = ir.NOWHERE) -> None:
        line = "    " * depth + text
        place = (loc.file, loc.line)
        if loc.text.strip() and place != self._shown:
            self._shown = place
            line = f"{line:<{_COMMENT_COLUMN}}  # {loc.line}: {loc.text.strip()}"
        self._lines.append(line)

    def text(self) -> str:
        return "\n".join(self._lines)


def _parameters(kernel: ir.Kernel) -> list[str]:
    tensors = [f"{t.name}: {t.role} {t.dtype}[{', '.join(t.dims)}]" for t in kernel.tensors]
    return tensors + [f"{s.name}: {'positive ' if s.positive else ''}{s.dtype}" for s in kernel.scalars]


def _loop_over(loop: ir.Each | ir.Tile) -> str:
    match loop:
        case ir.Each(name, dim):
            return f"{name} in {dim}"
        case ir.Tile(name, dim, block, groups):
            return f"{name} in tile({dim}, {block}{f', {groups.index} by {groups.tensor}' if groups else ''})"


def _add_body(out: _Lines, body: tuple[ir.Stmt, ...], depth: int) -> None:
    for stmt in body:
        match stmt:
            case ir.Assign(name, value):
                out.add(depth, f"{name}: {value.type} = {format_expr(value)}", stmt.loc)
            case ir.Store(tensor, index, value, masked, add):
                sign = "+=" if add else "="
                out.add(depth, f"{tensor}{_index(index)}{_masked(masked)} {sign} {format_expr(value)}", stmt.loc)
            case ir.For():
                out.add(depth, _loop(stmt), stmt.loc)
                _add_body(out, stmt.body, depth + 1)
            case _:
                raise AssertionError(stmt)


def _loop(loop: ir.For) -> str:
    part = "" if loop.part == "whole" else f"{loop.part} "
    part += "share " if loop.share else "at start " if loop.at_start else ""
    carried = f" carrying {', '.join(loop.carried)}" if loop.carried else ""
    span = f"{format_expr(loop.start)} to {format_expr(loop.stop)}"
    return f"for {part}{_loop_over(loop.over)} from {span}{carried}:"


# ------------------------------------------------------------------ expressions
def _expr(node: ir.Expr, place: int) -> str:
    text, strength = _format(node)
    return f"({text})" if strength < place else text


def _format(node: ir.Expr) -> tuple[str, int]:
    """The text of an expression and how strongly it binds."""
    match node:
        case ir.Const(value):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            return text, _NEGATE if text.startswith("-") else _ATOM
        case ir.Param(name) | ir.Var(name) | ir.Index(name):
            return name, _ATOM
        case ir.Size(dim):
            return f"size({dim})", _ATOM
        case ir.Start(tile):
            return f"{tile}.start", _ATOM
        case ir.Stop(tile):
            return f"{tile}.stop", _ATOM
        case ir.Block(tile):
            return f"{tile}.size", _ATOM
        case ir.Count(tile):
            return f"{tile}.count", _ATOM
        case ir.Before(tile):
            return f"{tile}.before", _ATOM
        case ir.Lanes(axis):
            return f"{axis}.index", _ATOM
        case ir.Valid(axis):
            return f"{axis}.valid", _ATOM
        case ir.Load(tensor, index, masked) | ir.Gather(tensor, index, masked):
            asked = "" if node.when is None else f".when({format_expr(node.when)})"
            return f"{tensor}{_index(index)}{_masked(masked)}{asked}", _ATOM
        case ir.Checked(x):
            return f"checked({format_expr(x)})", _ATOM
        case ir.Unary("neg", x):
            return f"-{_expr(x, _NEGATE)}", _NEGATE
        case ir.Unary("not", x):
            return f"~{_expr(x, _NEGATE)}", _NEGATE
        case ir.Binary(op, a, b) if op in _INFIX:
            return _infix(op, a, b)
        case ir.Full(value):
            return f"full([{', '.join(map(str, node.type.shape))}], {format_expr(value)})", _ATOM
        case ir.Cast(x):
            return f"{node.type.dtype}({format_expr(x)})", _ATOM
        case ir.Expand(x, axis):
            kept = [":"] * (len(node.type.shape) - 1)
            return f"{_expr(x, _ATOM)}[{', '.join([*kept[:axis], 'None', *kept[axis:]])}]", _ATOM
        case ir.Transpose(x):
            return f"{_expr(x, _ATOM)}.T", _ATOM
        case ir.Reduce(op, x, axis):
            return f"{op}({format_expr(x)}, axis={axis})", _ATOM
        case ir.Unary(name, _) | ir.Binary(name, _, _):
            return _call(name, node), _ATOM
        case ir.Where() | ir.Dot():
            return _call(type(node).__name__.lower(), node), _ATOM
    raise AssertionError(node)


def _infix(op: str, a: ir.Expr, b: ir.Expr) -> tuple[str, int]:
    symbol, strength = _INFIX[op]
    # Operators group to the left, and comparisons do not chain.
    left = strength + 1 if strength == _COMPARE else strength
    return f"{_expr(a, left)} {symbol} {_expr(b, strength + 1)}", strength


def _call(name: str, node: ir.Expr) -> str:
    return f"{name}({', '.join(map(format_expr, ir.children(node)))})"


def _index(index: tuple[ir.Axis | ir.Expr, ...]) -> str:
    return f"[{', '.join(_index_entry(i) for i in index)}]"


def _index_entry(entry: ir.Axis | ir.Expr) -> str:
    if isinstance(entry, ir.Axis):
        return entry.tile or ":"
    return format_expr(entry)


def _masked(axes: tuple[ir.Axis, ...]) -> str:
    return f".masked({', '.join(map(str, axes))})" if axes else ""
