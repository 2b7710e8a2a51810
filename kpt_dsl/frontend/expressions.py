"""The front end's expressions: names, operators, indexing and calls, evaluated where static and typed where not.

An expression's value is tile IR (``ir.Expr``), a tensor argument, a tile, or a plain Python value known in advance.
"""

import ast
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

from kpt_dsl import arithmetic, ir, language
from kpt_dsl.dtypes import DType, bool_, f32, i32
from kpt_dsl.frontend import typing as ty
from kpt_dsl.frontend.indexing import Indices, TileRef, describe, is_made_of_tiles
from kpt_dsl.frontend.names import WORDS, Local
from kpt_dsl.frontend.outside import Helper, Values
from kpt_dsl.frontend.source import Source, fail
from kpt_dsl.ir import Expr, Loc
from kpt_dsl.values import told_apart

_BINARY: dict[type[ast.operator], tuple[ir.BinaryOp, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", operator.add), ast.Sub: ("sub", operator.sub), ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv), ast.FloorDiv: ("floordiv", operator.floordiv), ast.Mod: ("mod", operator.mod),
    ast.BitAnd: ("and", operator.and_), ast.BitOr: ("or", operator.or_), ast.BitXor: ("xor", operator.xor),
    ast.LShift: ("shl", operator.lshift), ast.RShift: ("shr", operator.rshift),
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], tuple[ir.BinaryOp | None, Callable[[Any, Any], Any]]] = {
    ast.Lt: ("lt", operator.lt), ast.LtE: ("le", operator.le), ast.Gt: ("gt", operator.gt), ast.GtE: ("ge", operator.ge),
    ast.Eq: ("eq", operator.eq), ast.NotEq: ("ne", operator.ne), ast.Is: (None, operator.is_),
    ast.IsNot: (None, operator.is_not), ast.In: (None, lambda a, b: a in b), ast.NotIn: (None, lambda a, b: a not in b),
}  # fmt: skip
_UNARY_FUNCTIONS: dict[Any, ir.UnaryOp] = {
    language.exp: "exp", language.exp2: "exp2", language.log: "log", language.log2: "log2", language.sqrt: "sqrt",
    language.rsqrt: "rsqrt", language.tanh: "tanh", language.erf: "erf", language.ndtr: "ndtr",
    language.sigmoid: "sigmoid",
    language.abs: "abs", language.floor: "floor", language.round: "round", language.sin: "sin", language.cos: "cos",
}  # fmt: skip
_BINARY_FUNCTIONS: dict[Any, ir.BinaryOp] = {language.maximum: "max", language.minimum: "min"}
_REDUCTIONS: dict[Any, ir.ReduceOp] = {language.sum: "sum", language.max: "max", language.min: "min"}
_NAN_DROPPED: dict[Any, Literal["maxnum", "minnum"]] = {
    language.maximum: "maxnum", language.max: "maxnum", language.minimum: "minnum", language.min: "minnum",
}  # fmt: skip
_PLACES: dict[Any, Literal["max", "min"]] = {language.argmax: "max", language.argmin: "min"}
_ELEMENTWISE = {*_UNARY_FUNCTIONS, *_BINARY_FUNCTIONS, language.where}
"""Functions of which an element of the result is made of those at the same place only."""
_TILE_PARTS = ("index", "count", "before", "start", "stop", "size", "group")


class Expressions(Indices):
    """Evaluates expressions in a scope; ``options`` collects the algorithm choices met."""

    def __init__(
        self, source: Source, local: Local, dims: frozenset[str], choices: Mapping[str, Any], outside: Values
    ) -> None:
        super().__init__(source, local, dims, outside)
        self.choices = choices
        self.options: dict[str, tuple[object, ...]] = {}
        self.tiles: set[str] = set()
        self.begins: dict[str, Expr] = {}
        """The first index that each tile's loop visits."""

    def named(self, name: str, value: Expr, loc: Loc) -> ir.Var:
        raise AssertionError("statements know how to assign")

    def inline(self, helper: Helper, node: ast.Call) -> Any:
        raise AssertionError("statements know how to inline")

    def expr(self, node: ast.expr) -> Any:
        loc = self.source.loc(node)
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.name(name, loc)
            case ast.Tuple(elts=elts):
                return tuple(self.expr(e) for e in elts)
            case ast.List(elts=elts):
                return [self.expr(e) for e in elts]
            case ast.Attribute(value=base, attr=attr):
                inner = self.expr(base)
                return (
                    self.of_module(inner, node, loc)
                    if isinstance(inner, ModuleType)
                    else self.attribute(inner, attr, loc)
                )
            case ast.UnaryOp(op=op, operand=operand):
                return self.unary(op, self.expr(operand), loc)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(op, self.expr(left), self.expr(right), loc)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self.compare(op, self.expr(left), self.expr(right), loc)
            case ast.Compare():
                fail(loc, "a chained comparison", "write (a < b) & (b < c)")
            case ast.BoolOp(op=op, values=values):
                return self.boolean(op, values, loc)
            case ast.IfExp(test=test, body=yes, orelse=no):
                condition = self.expr(test)
                if isinstance(condition, Expr):
                    fail(loc, f"`a if c else b` needs a static c, but it is {condition.type}", "use kd.where(c, a, b)")
                return self.expr(yes if condition else no)
            case ast.Subscript(value=base, slice=index):
                return self.subscript(self.expr(base), index, loc)
            case ast.Call():
                return self.call(node, loc)
        fail(loc, f"`{ast.unparse(node)}` cannot be used in a kernel",
             "see docs/language.md for what expressions may hold")  # fmt: skip

    def attribute(self, base: Any, attr: str, loc: Loc) -> Any:
        if isinstance(base, TileRef) and base.tile is not None:
            name, scalar = base.tile.name, ir.Type(i32)
            match attr:
                case "index":
                    return ir.Lanes(base.tile.axis, type=ir.Type(i32, (base.tile.axis,)), loc=loc)
                case "count" | "before" if name not in self.begins:
                    what = f"{name}.{attr} of a parallel loop's tile"
                    fail(loc, f"{what}: it depends on how wide tiles are, which the config chooses",
                         f"tiles of kd.sequential have it, to merge; {name}.index holds the indices")  # fmt: skip
                case "count":
                    return ir.Count(name, type=scalar, loc=loc)
                case "before":
                    return ir.Before(name, self.begins[name], type=scalar, loc=loc)
                case "start":
                    return ir.Start(name, type=scalar, loc=loc)
                case "stop":
                    return ir.Stop(name, type=scalar, loc=loc)
                case "size":
                    return ir.Block(name, type=scalar, loc=loc)
                case "group" if base.tile.groups is not None:
                    return ir.Index(base.tile.groups.index, type=scalar, loc=loc)
                case "group":
                    fail(loc, f"{name}.group of a tile that has none",
                         f'kd.parallel(kd.tile("{base.dim}", starts=cu)) goes through the tiles of groups')  # fmt: skip
            fail(loc, f"a tile has no .{attr}", f"it has {', '.join('.' + p for p in _TILE_PARTS)}")
        if isinstance(base, ir.Tensor) and attr == "dtype":
            return base.dtype
        if isinstance(base, Expr):
            if attr == "T":
                return ty.transpose(base, loc)
            if attr == "to":
                return _Method(base)
            fail(loc, f"a value has no .{attr}",
                 "it has .T and .to(dtype); functions are kd.exp(x), kd.sum(x, axis=1) …")  # fmt: skip
        fail(loc, f".{attr} of {describe(base)}",
             f"values have .T and .to(dtype), tiles have {', '.join('.' + p for p in _TILE_PARTS)}")  # fmt: skip

    # -------------------------------------------------------------- operators
    def unary(self, op: ast.unaryop, x: Any, loc: Loc) -> Any:
        if not isinstance(x, Expr):
            self.no_reference(x, loc)
            table: dict[type[ast.unaryop], Callable[[Any], Any]] = {
                ast.USub: operator.neg,
                ast.UAdd: operator.pos,
                ast.Not: operator.not_,
                ast.Invert: operator.invert,
            }
            return self.python(table[type(op)], x, loc=loc)
        match op:
            case ast.USub():
                return ty.unary("neg", x, loc)
            case ast.Invert():
                return ty.unary("not", x, loc)
            case ast.UAdd():
                return x
        fail(loc, f"`not` of {describe(x)}", "use ~condition")

    def binary(self, op: ast.operator, a: Any, b: Any, loc: Loc) -> Any:
        if not isinstance(a, Expr) and not isinstance(b, Expr):
            self.no_reference(a, loc)
            self.no_reference(b, loc)
            fn = operator.pow if isinstance(op, ast.Pow) else _BINARY.get(type(op), (None, None))[1]
            if fn is None:
                fail(loc, "this operator cannot be used in a kernel", "kernels have + - * / // % & | ^ << >> and **2")
            return self.python(fn, a, b, loc=loc)
        if isinstance(op, ast.Pow):
            if b == 2 and isinstance(a, ir.Var | ir.Param):
                return ty.binary("mul", a, a, loc)
            fail(loc, f"{describe(a)} ** {describe(b)}",
                 "a variable can be squared (x ** 2); else use kd.exp2(kd.log2(x) * y)")  # fmt: skip
        if type(op) not in _BINARY:
            fail(loc, "this operator cannot be used in a kernel", "kernels have + - * / // % & | ^ << >> and **2")
        return ty.binary(_BINARY[type(op)][0], self.operand(a, loc), self.operand(b, loc), loc)

    def compare(self, op: ast.cmpop, a: Any, b: Any, loc: Loc) -> Any:
        name, fn = _COMPARE[type(op)]
        if isinstance(a, Helper) and isinstance(b, Helper) and isinstance(op, ast.Is | ast.IsNot):
            return (a == b) == isinstance(op, ast.Is)  # one that was defined again with the same text is the same
        if isinstance(op, ast.In | ast.NotIn) and is_made_of_tiles([a, b]):
            fail(loc, f"{describe(a)} in {describe(b)}", "ask (x == a) | (x == b)")
        if name is None or not (isinstance(a, Expr) or isinstance(b, Expr)):
            return self.python(fn, a, b, loc=loc)
        return ty.binary(name, self.operand(a, loc), self.operand(b, loc), loc)

    def boolean(self, op: ast.boolop, values: list[ast.expr], loc: Loc) -> Any:
        result: Any = None
        for node in values:
            result = self.expr(node)
            if isinstance(result, Expr):
                fail(loc, f"`and` / `or` need static values, but got {result.type}", "use (a) & (b) or (a) | (b)")
            if bool(result) != isinstance(op, ast.And):
                break
        return result

    def operand(self, x: Any, loc: Loc) -> Expr | arithmetic.Number:
        """An operand of arithmetic: an expression or a Python number."""
        if isinstance(x, Expr | int | float):
            return x
        self.present(x, loc)
        self.no_reference(x, loc)
        fail(loc, f"arithmetic with {describe(x)}", "use numbers and tiles")

    @staticmethod
    def no_reference(x: Any, loc: Loc) -> None:
        """Tensors and tile variables name things; neither is a value."""
        if isinstance(x, ir.Tensor):
            tiles = ", ".join(":" for _ in x.dims)
            fail(loc, f"arithmetic with {describe(x)}", f"load a tile of it first: {x.name}[{tiles}]")
        if isinstance(x, TileRef) and x.tile is not None:
            fail(loc, f"arithmetic with {describe(x)}", f"write {x.tile.name}.index for its indices")

    @staticmethod
    def python(fn: Callable[..., Any], *args: Any, loc: Loc) -> Any:
        try:
            return fn(*args)
        except Exception as error:
            fail(loc, f"{type(error).__name__}: {error}",
                 "this part is known before the kernel runs, and Python refused it")  # fmt: skip

    # -------------------------------------------------------------- indexing
    def subscript(self, base: Any, node: ast.expr, loc: Loc) -> Any:
        self.present(base, loc)
        if isinstance(base, ir.Tensor):
            if base.role == "out":
                fail(loc, f"{base.name} is declared kd.Out, so it cannot be loaded", "keep the value in a variable")
            index, shape = self.index(base, node)
            kind = ir.Type(base.dtype, shape)
            if any(isinstance(i, Expr) and i.type.shape for i in index):
                return ir.Gather(base.name, index, when=self.taken(shape, loc), type=kind, loc=loc)
            when = self.taken((), loc) if any(isinstance(i, Expr) for i in index) else None
            return ir.Load(base.name, index, when=when, type=kind, loc=loc)
        if isinstance(base, Expr):
            return ty.expand(base, tuple(self.slices(node)), loc)
        return self.python(operator.getitem, base, self.expr(node), loc=loc)

    # -------------------------------------------------------------- calls
    def arguments(self, node: ast.Call, fn: Callable[..., Any]) -> dict[str, Any]:
        """A call's arguments by the parameter names of ``fn``."""
        loc = self.source.loc(node)
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            fail(loc, "* and ** in a call", "write the arguments out")
        read = self.branches(node) if fn is language.where else self.expr
        with self.asking(self.asked if fn in _ELEMENTWISE else self.asked_of_all):
            positional = [read(a) for a in node.args]
            named = {cast(str, k.arg): read(k.value) for k in node.keywords}
        try:
            return dict(inspect.signature(fn).bind(*positional, **named).arguments)
        except TypeError as error:
            signature = f"{fn.__name__}{inspect.signature(fn)}"
            fail(loc, f"{fn.__name__}: {error}", f"its signature is {signature}")

    def branches(self, node: ast.Call) -> Callable[[ast.expr], Any]:
        """How the arguments of a kd.where are read: what is loaded in a branch by an index is loaded only where that branch is
        taken; where the condition is a tile, what is gathered."""
        named = {k.arg: k.value for k in node.keywords}
        first, *_ = [*node.args[:1], *([named["cond"]] if "cond" in named else []), None]
        condition = None if first is None else self.expr(first)

        def read(argument: ast.expr) -> Any:
            if argument is first:
                return condition
            if not isinstance(condition, Expr) or condition.type.dtype != bool_:
                return self.expr(argument)
            second = argument is named.get("b") or argument in node.args[2:]
            mine = ty.unary("not", condition, self.source.loc(argument)) if second else condition
            with self.asking((*self.asked, mine)):
                return self.expr(argument)

        return read

    def call(self, node: ast.Call, loc: Loc) -> Any:
        fn = self.expr(node.func)
        if isinstance(fn, Helper):
            with self.asking(self.asked_of_all):
                return self.inline(fn, node)
        if isinstance(fn, _Method):
            to = self.expr(node.args[0]) if len(node.args) == 1 and not node.keywords else None
            if not isinstance(to, DType):
                fail(loc, ".to takes one dtype", "kd.f32, kd.bf16, kd.f16, kd.f8e4m3, kd.f8e5m2, kd.i8, kd.u8, kd.i32, kd.i64")
            return ty.cast(fn.value, to, loc)
        if getattr(fn, "__module__", None) == language.__name__:
            return self.builtin(fn, self.arguments(node, fn) if fn is not language.choice and fn is not language.parallel
                                else {"args": tuple(self.expr(a) for a in node.args)}, loc)  # fmt: skip
        values = [self.expr(a) for a in node.args]
        if callable(fn) and not node.keywords and (fn is len or not is_made_of_tiles(values)):
            return self.python(fn, *values, loc=loc)
        name = ast.unparse(node.func)
        word = f"kd.{name}" if name in WORDS else "kd's own functions"
        fail(loc, f"{name} is a Python function and cannot take tiles", f"if {name} is yours, decorate it with "
             f"@kd.function to inline it; else use {word}")  # fmt: skip

    def builtin(self, fn: Any, given: dict[str, Any], loc: Loc) -> Any:
        if fn in _UNARY_FUNCTIONS:
            return ty.unary(_UNARY_FUNCTIONS[fn], self.operand(given["x"], loc), loc)
        if fn in _BINARY_FUNCTIONS:
            a, b = self.operand(given["a"], loc), self.operand(given["b"], loc)
            drop_nan = self.drops_nan(given, loc)
            if not isinstance(a, Expr) and not isinstance(b, Expr):
                return arithmetic.larger(a, b) if fn is language.maximum else arithmetic.smaller(a, b)
            return ty.binary(_NAN_DROPPED[fn] if drop_nan else _BINARY_FUNCTIONS[fn], a, b, loc)
        if fn in _REDUCTIONS:
            op = _NAN_DROPPED[fn] if self.drops_nan(given, loc) else _REDUCTIONS[fn]
            return ty.reduce(op, self.value(given["x"], loc), given["axis"], loc)
        if fn in _PLACES:
            x = self.value(given["x"], loc)
            x = self.named(f"{fn.__name__}_of", ty.cast(x, f32, loc) if x.type.dtype.is_float else x, loc)
            return ty.place(_PLACES[fn], x, given["axis"], loc)
        if fn is language.split:
            return ty.split(self.named("split_of", self.value(given["x"], loc), loc), loc)
        if fn is language.join:
            a, b = self.value(given["a"], loc), self.value(given["b"], loc)
            return ty.join(a, b, self.check_dim(given["dim"], loc), loc)
        if fn is language.dot:
            acc = given.get("acc")
            return ty.dot(self.value(given["a"], loc), self.value(given["b"], loc),
                          None if acc is None else self.value(acc, loc), loc)  # fmt: skip
        if fn is language.where:
            if not isinstance(given["cond"], Expr):
                return given["a"] if given["cond"] else given["b"]
            return ty.where(given["cond"], self.operand(given["a"], loc), self.operand(given["b"], loc), loc)
        if fn in (language.zeros, language.full):
            return self.filled(given, loc)
        if fn is language.size:
            return ir.Size(self.check_dim(given["dim"], loc), type=ir.Type(i32), loc=loc)
        if fn is language.index:
            axis = ir.Axis(self.check_dim(given["dim"], loc))
            return ir.Lanes(axis, type=ir.Type(i32, (axis,)), loc=loc)
        if fn is language.group:
            parts = [ir.Size(self.check_dim(given[k], loc), type=ir.Type(i32), loc=loc) for k in ("dim", "of")]
            return ty.binary("floordiv", parts[0], parts[1], loc)
        if fn is language.tile:
            return TileRef(self.check_dim(given["dim"], loc), starts=self.starts(given.get("starts"), loc))
        if fn is language.choice:
            return self.choose(given["args"], loc)
        fail(loc, f"kd.{getattr(fn, '__name__', fn)} cannot stand here",
             "kd.parallel and kd.sequential head a `for` loop")  # fmt: skip

    @staticmethod
    def starts(given: Any, loc: Loc) -> ir.Tensor | None:
        """The tensor that says where groups begin."""
        if given is None or (isinstance(given, ir.Tensor) and (given.role, given.dtype, len(given.dims)) == ("in", i32, 1)):
            return given
        fail(loc, f"starts is {describe(given)}{f' of {given.dtype}' if isinstance(given, ir.Tensor) else ''}",
             "it takes a kd.In tensor of int32, of one dim: where each group begins, and where the last one ends")  # fmt: skip

    @staticmethod
    def drops_nan(given: dict[str, Any], loc: Loc) -> bool:
        """Whether a maximum or minimum was said to be free to drop a NaN."""
        said = given.get("drop_nan", False)
        if not isinstance(said, bool):
            fail(loc, f"drop_nan is {describe(said)}", "it is True or False, known before the kernel runs")
        return said

    def value(self, x: Any, loc: Loc) -> Expr:
        """An operand that must be a tile or a scalar of the kernel."""
        number = self.operand(x, loc)
        return number if isinstance(number, Expr) else ty.constant(number, None, loc)

    def filled(self, given: dict[str, Any], loc: Loc) -> Expr:
        """kd.zeros and kd.full."""
        dtype = given.get("dtype") or f32
        if not isinstance(given["shape"], list | tuple) or not isinstance(dtype, DType):
            fail(loc, "a shape is a list of tiles and dim names, a dtype one of kd.f32, kd.bf16 …",
                 'kd.zeros([m, "D"])')  # fmt: skip
        shape: list[ir.Axis] = []
        for entry in given["shape"]:
            if isinstance(entry, TileRef) and entry.tile is not None:
                shape.append(entry.tile.axis)
            else:
                shape.append(ir.Axis(self.check_dim(entry, loc)))
        fill = self.operand(given.get("value", 0), loc)
        scalar = ty.cast(fill, dtype, loc) if isinstance(fill, Expr) else ty.constant(fill, dtype, loc)
        if scalar.type.shape:
            fail(loc, f"kd.full takes a scalar to fill with, but got {scalar.type}",
                 "broadcast with arithmetic instead")  # fmt: skip
        return ir.Full(scalar, type=ir.Type(dtype, tuple(shape)), loc=loc) if shape else scalar

    def choose(self, args: tuple[Any, ...], loc: Loc) -> Any:
        if len(args) < 3 or not isinstance(args[0], str) or not all(isinstance(a, bool | int | str) for a in args[1:]):
            fail(loc, "kd.choice takes a name and at least two options", 'kd.choice("whole_row", True, False)')
        name, options = args[0], tuple(args[1:])
        if self.options.setdefault(name, options) != options:
            fail(loc, f"choice {name!r} has other options elsewhere in this kernel", "give it a name of its own")
        if len(set(options)) != len(options):
            fail(loc, f"two options of choice {name!r} are equal: {', '.join(map(repr, options))}",
                 "give each another value")  # fmt: skip
        taken = self.choices.get(name, options[0])
        if told_apart(taken) not in map(told_apart, options):
            fail(loc, f"choice {name!r} cannot be {taken!r}", f"its options are {', '.join(map(repr, options))}")
        return taken


@dataclass(frozen=True)
class _Method:
    """``value.to``, waiting for its argument."""

    value: Expr
