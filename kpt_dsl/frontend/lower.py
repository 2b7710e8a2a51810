"""The front end's statements: a kernel's syntax tree, read once for one specialisation, becomes tile IR.

Whatever is known before the kernel runs (static arguments, absent optional ones, module constants) is evaluated here, so an
``if`` on it leaves no trace; everything else becomes typed IR. Loops and variables are handled here, expressions in
``expressions``.
"""

import ast
import inspect
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from kpt_dsl import ir, language
from kpt_dsl.dtypes import f32, i32
from kpt_dsl.frontend import typing as ty
from kpt_dsl.frontend.expressions import Expressions
from kpt_dsl.frontend.indexing import TileRef, describe, is_made_of_tiles
from kpt_dsl.frontend.names import Local
from kpt_dsl.frontend.outside import Values
from kpt_dsl.frontend.races import check_races
from kpt_dsl.frontend.shares import deal
from kpt_dsl.frontend.source import Source, fail
from kpt_dsl.frontend.tiling import check_tiling
from kpt_dsl.ir import Expr, Loc


@dataclass(frozen=True)
class Given:
    """What a kernel is read with: its parameters as IR or static values, all known dims, the choices taken, what its names
    from outside mean, and which tensors and scalars are None, with their dims."""

    name: str
    source: Source
    tensors: tuple[ir.Tensor, ...]
    scalars: tuple[ir.Scalar, ...]
    statics: Mapping[str, Any]
    dims: frozenset[str]
    choices: Mapping[str, Any]
    outside: Values
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def lower(given: Given) -> ir.Kernel:
    """The tile IR of one specialisation. Raises KernelError where the text is not a kernel."""
    return _Lowering(given).kernel()


@dataclass
class _Loop:
    """A loop being read: the variables that existed before it, and which of them it assigns."""

    outside: frozenset[str]
    carried: list[str] = field(default_factory=list)


class _Return(Exception):
    """Unwinds an inlined helper at its return statement."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Lowering(Expressions):
    """State of one pass over a kernel: its variables and loops, and the statements made so far."""

    def __init__(self, given: Given) -> None:
        values: dict[str, Any] = dict(given.statics)
        values |= {t.name: t for t in given.tensors}
        values |= {s.name: ir.Param(s.name, type=ir.Type(s.dtype)) for s in given.scalars}
        absent = {name: name for name in given.absent}
        super().__init__(given.source, Local(values, {}, "", absent), given.dims, given.choices, given.outside)
        self.given = given
        self.without_extents = given.absent
        self.types: dict[str, ir.Type] = {}
        self.block: list[ir.Stmt] = []
        self.loops: list[_Loop] = []
        self.added: dict[str, bool] = {}
        self.grid: tuple[ir.Each | ir.Tile, ...] = ()
        self.inlining = 0
        self.turns = 1  # of the loops over kd.range that are being read

    def kernel(self) -> ir.Kernel:
        tree = self.source.tree
        self.statements(tree.body)
        if not self.grid:
            fail(self.source.loc(tree), f"kernel {self.given.name} has no parallel loop",
                 "its work goes into `for ... in kd.parallel(...)`, one program an iteration")  # fmt: skip
        kernel = ir.Kernel(
            self.given.name, self.given.tensors, self.given.scalars, self.grid, tuple(self.block),
            tuple(self.options.items()), loc=self.source.loc(tree),
        )  # fmt: skip
        check_tiling(kernel)
        check_races(kernel)
        return kernel

    # -------------------------------------------------------------- statements
    def statements(self, body: list[ast.stmt]) -> None:
        for index, node in enumerate(body):
            loc = self.source.loc(node)
            if self.grid and not self.loops and not self.inlining:
                fail(loc, "a statement after the parallel loop", "a kernel ends with its parallel loop; move this into it")
            match node:
                case ast.Expr(value=ast.Constant(value=str())) if index == 0:
                    pass
                case ast.Pass():
                    pass
                case ast.Assign(targets=[target], value=value):
                    self.assign(target, self.expr(value), loc)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self.assign(target, self.expr(value), loc)
                case ast.AugAssign(target=ast.Name() as target, op=op, value=value):
                    read = ast.copy_location(ast.Name(target.id, ast.Load()), target)
                    both = ast.copy_location(ast.BinOp(read, op, value), node)
                    self.assign(target, self.expr(both), loc)
                case ast.AugAssign(
                    target=ast.Subscript(value=ast.Name(id=name), slice=where), op=ast.Add(), value=value
                ):
                    self.store(name, where, self.expr(value), loc, add=True)
                case ast.AugAssign():
                    fail(
                        loc,
                        "a tensor can only be added to in place",
                        "out[...] += value; programs run in any order, so else load, compute, then store once",
                    )
                case ast.If(test=test, body=yes, orelse=no):
                    self.statements(yes if self.static_condition(test) else no)
                case ast.For():
                    self.loop(node, loc)
                case ast.Return(value=value) if self.inlining:
                    raise _Return(None if value is None else self.expr(value))
                case ast.Return():
                    fail(loc, "a kernel returns nothing", "store results into its kd.Out arguments")
                case ast.Expr(value=ast.Call()):
                    fail(loc, "this value is not used", "assign it, or store it: out[m, :] = value")
                case _:
                    fail(loc, f"{_words(node)} cannot be used in a kernel",
                         "a kernel is made of assignments, stores, `for` over kd.parallel / kd.sequential / kd.range, and `if` "
                         "on static values")  # fmt: skip

    def static_condition(self, test: ast.expr) -> bool:
        value = self.expr(test)
        if isinstance(value, Expr):
            fail(self.source.loc(test), f"`if` needs a value known before the kernel runs, but this is {value.type}",
                 "use kd.where(condition, a, b) for values, or a kd.Static argument")  # fmt: skip
        return bool(value)

    # -------------------------------------------------------------- assignment
    def assign(self, target: ast.expr, value: Any, loc: Loc) -> None:
        match target:
            case ast.Name(id=name):
                self.bind(name, value, loc)
            case ast.Tuple(elts=names):
                if not isinstance(value, tuple) or len(value) != len(names):
                    fail(loc, f"{len(names)} names on the left, but the right side is {describe(value)}",
                         "a helper that returns several values ends with `return a, b`")  # fmt: skip
                old = [self.local.values.get(n.id) for n in ast.walk(target) if isinstance(n, ast.Name)]
                held = self.held(value, loc, {x.name for x in old if isinstance(x, ir.Var | ir.Tensor)})
                for one, v in zip(names, held, strict=True):
                    self.assign(one, v, loc)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                self.store(name, index, value, loc)
            case _:
                fail(loc, f"{_words(target)} cannot be assigned to", "assign to a name, or store to a kd.Out argument")

    def held(self, value: Any, loc: Loc, changing: Set[str]) -> Any:
        """What is read after an assignment to these variables and tensors, as it is before: computed first, if that differs."""
        if isinstance(value, tuple | list):
            return type(value)([self.held(v, loc, changing) for v in value]) if is_made_of_tiles(value) else value
        read = [x for x in ir.walk(value) if isinstance(x, ir.Var | ir.Read)] if isinstance(value, Expr) else []
        stored = changing - self.types.keys()
        if any(stored if isinstance(x, ir.Read) else x.name in changing for x in read):
            return self.emit(self.fresh("held"), value, loc)
        return value

    def bind(self, name: str, value: Any, loc: Loc) -> None:
        old = self.local.values.get(name)
        self.local.ended.pop(name, None)
        carried_from_outside = bool(self.loops) and name in self.loops[-1].outside
        if isinstance(old, ir.Tensor):
            fail(loc, f"{name} is a tensor argument and cannot be given another value", f"store to it: {name}[...] = value")
        if not isinstance(value, Expr):
            if carried_from_outside and old != value:
                fail(loc, f"{name} changes inside the loop, but is {describe(value)}, not a tile or scalar",
                     "values that a loop carries start as kd.zeros(...) or kd.full(...)")  # fmt: skip
            self.local.values[name] = self.held(value, loc, self.types.keys() | {t.name for t in self.given.tensors})
            return
        if carried_from_outside and not isinstance(old, ir.Var):
            fail(loc, f"{name} is {describe(old)} before the loop and {value.type} in it",
                 f"start it with kd.zeros(...) or kd.full(...) of type {value.type}")  # fmt: skip
        if isinstance(old, ir.Var):
            if old.type == value.type:
                self.emit(old.name, value, loc)
                self.local.values[name] = ir.Var(old.name, type=value.type, loc=loc)
                if carried_from_outside and old.name not in self.loops[-1].carried:
                    self.loops[-1].carried.append(old.name)
                return
            if carried_from_outside:
                fail(loc, f"{name} is {old.type} before the loop and {value.type} after one turn of it",
                     f"a carried value keeps its type: start it as {value.type}, or use .to(kd.{old.type.dtype})")  # fmt: skip
        self.local.values[name] = self.emit(self.fresh(self.local.prefix + name), value, loc)

    def fresh(self, name: str) -> str:
        """A variable name that no other variable, argument or tile has."""
        taken = (
            self.types.keys() | self.tiles | {t.name for t in self.given.tensors} | {s.name for s in self.given.scalars}
        )
        candidate, count = name, 1
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        return candidate

    def variable(self, name: str, value: Expr) -> ir.Var:
        """A variable that no other has the name of, to be assigned a value such as this one."""
        unique = self.fresh(name)
        self.types[unique] = value.type
        return ir.Var(unique, type=value.type, loc=value.loc)

    def named(self, name: str, value: Expr, loc: Loc) -> ir.Var:
        """What has a value that is read several times."""
        return value if isinstance(value, ir.Var) else self.emit(self.fresh(self.local.prefix + name), value, loc)

    def emit(self, name: str, value: Expr, loc: Loc) -> ir.Var:
        self.types[name] = value.type
        self.block.append(ir.Assign(name, value, loc=loc))
        return ir.Var(name, type=value.type, loc=loc)

    def store(self, name: str, index: ast.expr, value: Any, loc: Loc, add: bool = False) -> None:
        tensor = self.name(name, loc)
        self.present(tensor, loc)
        if not isinstance(tensor, ir.Tensor):
            fail(loc, f"{name} is {describe(tensor)}; only kd.Out arguments can be stored to",
                 "tiles are values: assign a new one with kd.where(...)")  # fmt: skip
        if tensor.role != "out":
            fail(loc, f"{name} is declared kd.In, so it cannot be stored to", f"declare it {name}: kd.Out")
        if not self.grid:
            fail(loc, "a store outside the parallel loop", "move it into `for ... in kd.parallel(...)`")
        if add and tensor.dtype != f32:
            fail(loc, f"{name} holds {tensor.dtype}; only a float32 output can be added to",
                 f"pass a float32 tensor for {name}, and round it in a kernel of its own")  # fmt: skip
        if self.added.setdefault(name, add) != add:
            fail(loc, f"{name} is stored to and added to in one kernel",
                 "programs run in any order, so chance would tell what remains: clear it before the kernel runs")  # fmt: skip
        where, shape = self.index(tensor, index)
        if not add and any(isinstance(i, Expr) and i.type.shape for i in where):
            fail(loc, f"{name} is stored to at places that a tile of indices names; of two that are equal, chance would "
                 "tell which value remains", f"add to a cleared float32 output, {name}[…] += value, or go through indices one "
                 'after the other: for m in kd.parallel("M")')  # fmt: skip
        if not isinstance(value, Expr):
            if not isinstance(value, int | float):
                fail(loc, f"{describe(value)} cannot be stored", "store a tile, a scalar or a number")
            value = ty.constant(value, None, loc)
        if value.type.shape and value.type.shape != shape:
            want = f"[{', '.join(map(str, shape))}]"
            fail(loc, f"{name}[...] takes a value of shape {want}, but got {value.type}",
                 "index with the tiles that the value runs over, in its order")  # fmt: skip
        value = ty.cast(value, tensor.dtype, loc)
        if shape and not value.type.shape:
            value = ir.Full(value, type=ir.Type(tensor.dtype, shape), loc=loc)
        self.block.append(ir.Store(name, where, value, add=add, loc=loc))

    # -------------------------------------------------------------- loops
    def loop(self, node: ast.For, loc: Loc) -> None:
        call = node.iter
        fn = self.expr(call.func) if isinstance(call, ast.Call) else None
        if node.orelse:
            fail(loc, "a loop's `else` cannot be used in a kernel", "move it behind the loop")
        if fn is language.parallel and isinstance(call, ast.Call):
            self.parallel(node, call, loc)
        elif fn is language.sequential and isinstance(call, ast.Call):
            self.sequential(node, call, loc)
        elif fn is language.range and isinstance(call, ast.Call):
            self.written_out(node, call, loc)
        else:
            fail(self.source.loc(call), "a kernel loops over kd.parallel(...), kd.sequential(...) or kd.range(...) only",
                 'for tiles of a dim: for n in kd.sequential(kd.tile("N")); for its indices: kd.sequential("N"); '
                 "over numbers that are known: kd.range(4)")  # fmt: skip

    def parallel(self, node: ast.For, call: ast.Call, loc: Loc) -> None:
        if self.grid or self.loops or self.inlining:
            fail(loc, "kd.parallel inside another loop", "a kernel has one parallel loop, outermost; use kd.sequential here")
        if not call.args or call.keywords:
            fail(
                loc,
                "kd.parallel takes dims: names for single indices, kd.tile(name) for tiles",
                'kd.parallel("B", kd.tile("M"))',
            )
        targets = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
        if len(targets) != len(call.args):
            fail(loc, f"{len(targets)} loop variables for {len(call.args)} dims", "name one variable for each dim")
        grid: list[ir.Each | ir.Tile] = []
        for target, arg in zip(targets, call.args, strict=True):
            name = self.loop_variable(target)
            dim = self.expr(arg)
            if isinstance(dim, str):
                self.check_dim(dim, self.source.loc(arg))
                grid.append(self.new_index(name, dim, loc))
            elif isinstance(dim, TileRef) and dim.tile is None:
                grid.append(self.new_tile(name, dim.dim, dim.starts))
            else:
                fail(self.source.loc(arg), f"kd.parallel takes dim names and kd.tile(name), not {describe(dim)}",
                     'kd.parallel("B", kd.tile("M"))')  # fmt: skip
        self.grid = tuple(grid)
        self.loops.append(_Loop(frozenset()))
        self.statements(node.body)
        self.loops.pop()

    def sequential(self, node: ast.For, call: ast.Call, loc: Loc) -> None:
        if not self.grid:
            fail(loc, "kd.sequential outside the parallel loop", 'wrap it: for m in kd.parallel(kd.tile("M")): ...')
        name = self.loop_variable(node.target)
        arguments = self.arguments(call, language.sequential)
        given = arguments["over"]
        tiled = isinstance(given, TileRef) and given.tile is None
        if tiled and given.starts is not None:
            fail(loc, "starts of a sequential loop", "groups are dealt out by kd.parallel; for one of them, start=…, stop=…")
        if not tiled and not isinstance(given, str):
            fail(self.source.loc(call), f"kd.sequential takes kd.tile(name), or a dim's name, not {describe(given)}",
                 'kd.sequential(kd.tile("N")) for tiles, kd.sequential("N") for one index after the other')  # fmt: skip
        dim = given.dim if tiled else self.check_dim(given, self.source.loc(call))
        before = dict(self.local.values)
        bounds = [self.bound(arguments, key, dim, loc) for key in ("start", "stop")]
        over = self.new_tile(name, dim) if tiled else self.new_index(name, dim, loc)
        low, high = self.clamped(bounds[0], bounds[1], dim, loc)
        share: ir.Share | None = None
        if (index := arguments.get("share")) is not None:
            share, (low, high) = self.share(index, over, low, high, loc)
        self.begins[over.name] = low if isinstance(low, ir.Const) else self.variable(f"{over.name}_begin", low)
        outer, self.block = self.block, []
        self.loops.append(_Loop(frozenset(before)))
        self.statements(node.body)
        body, self.block = tuple(self.block), outer
        loop = self.loops.pop()
        for known in list(self.local.values):
            if known not in before:
                self.local.ended[known] = loc
                del self.local.values[known]
        if self.loops:
            inherited = [v for v in loop.carried if v in {x.name for k, x in before.items()
                         if isinstance(x, ir.Var) and k in self.loops[-1].outside}]  # fmt: skip
            self.loops[-1].carried += [v for v in inherited if v not in self.loops[-1].carried]
        begin = self.begins[over.name]
        if isinstance(begin, ir.Var) and begin in ir.every_expr(body):
            low = self.emit(begin.name, low, loc)
        self.block.append(ir.For(over, low, high, body, tuple(loop.carried), share=share, loc=loc))

    def written_out(self, node: ast.For, call: ast.Call, loc: Loc) -> None:
        """A loop over numbers that are known: its body once for each."""
        where, given = self.source.loc(call), self.arguments(call, language.range)
        for bound in given.values():
            if not isinstance(bound, int) or isinstance(bound, bool):
                fail(where, f"kd.range of {describe(bound)}: it takes whole numbers that are known before the kernel runs",
                     'literals and kd.Static arguments; for all indices of a dim: for n in kd.sequential("N")')  # fmt: skip
        numbers, name = self.python(range, *given.values(), loc=where), self.loop_variable(node.target)
        around, self.turns = self.turns, self.turns * max(1, len(numbers))
        if self.turns > language.MOST_TURNS:
            fail(where, f"{self.turns} turns of loops over kd.range, each a copy of the body: {language.MOST_TURNS} at most",
                 'a loop that is not written out: for n in kd.sequential("N")')  # fmt: skip
        try:
            for number in numbers:
                self.local.values[name] = number
                self.statements(node.body)
        finally:  # a helper may return in the middle
            self.turns = around
        self.local.values.pop(name, None)
        self.local.ended[name] = loc

    def bound(self, arguments: dict[str, Any], key: str, dim: str, loc: Loc) -> Expr:
        """The ``start`` or ``stop`` that a loop was given, else that of the whole dim."""
        bound = arguments.get(key, 0 if key == "start" else None)
        if bound is None:
            bound = ir.Size(dim, type=ir.Type(i32), loc=loc)
        if isinstance(bound, int) and not isinstance(bound, bool):
            bound = ir.scalar(bound, loc)
        if not isinstance(bound, Expr) or bound.type != ir.Type(i32):
            fail(loc, f"{key} must be a whole-number scalar of type i32, but is {describe(bound)}",
                 "m.start, m.stop, kd.size(dim), first[m].to(kd.i32) …")  # fmt: skip
        return bound

    def share(
        self, index: Any, over: ir.Tile | ir.Each, low: Expr, high: Expr, loc: Loc
    ) -> tuple[ir.Share, tuple[Expr, Expr]]:
        """One program's share of what lies in [low, high), and its bounds."""
        if not isinstance(over, ir.Tile):
            fail(loc, "share deals out tiles, not single indices",
                 f'write kd.sequential(kd.tile("{over.dim}"), share=…)')  # fmt: skip
        dims = {g.name: g.dim for g in self.grid if isinstance(g, ir.Each)}
        if not isinstance(index, ir.Index) or index.name not in dims:
            fail(loc, f"share must be the index of an untiled parallel loop, but is {describe(index)}",
                 f'for p in kd.parallel("P"): … kd.sequential(kd.tile("{over.dim}"), share=p)')  # fmt: skip

        def named(word: str, value: Expr) -> Expr:
            return self.emit(self.fresh(f"{over.name}_{word}"), value, loc)

        what: Literal["dim", "beginning", "part"]
        what = "part" if low != ir.scalar(0) else "dim" if isinstance(high, ir.Size) else "beginning"
        count = ir.Size(dims[index.name], type=index.type, loc=loc)
        return ir.Share(index.name, what), deal(over, index, count, low, high, named)

    def clamped(self, start: Expr, stop: Expr, dim: str, loc: Loc) -> tuple[Expr, Expr]:
        """Bounds between which nothing is outside of the dim, whatever was computed for them; a start may lie behind it."""
        whole = ir.Size(dim, type=ir.Type(i32), loc=loc)
        low = start if isinstance(start, ir.Const) and start.value >= 0 else ty.binary("max", start, 0, loc)
        high = stop if stop == whole else ty.binary("min", stop, whole, loc)
        return low, high

    def loop_variable(self, target: ast.expr) -> str:
        if not isinstance(target, ast.Name):
            fail(self.source.loc(target), f"{_words(target)} as a loop variable", "name one variable")
        if target.id in self.local.values:
            fail(self.source.loc(target), f"{target.id} already has a meaning here",
                 "give the loop variable a name of its own")  # fmt: skip
        return target.id

    def new_index(self, name: str, dim: str, loc: Loc) -> ir.Each:
        unique = self.fresh(name)
        self.tiles.add(unique)
        self.local.ended.pop(name, None)
        self.local.values[name] = ir.Index(unique, type=ir.Type(i32), loc=loc)
        return ir.Each(unique, dim)

    def new_tile(self, name: str, dim: str, starts: ir.Tensor | None = None) -> ir.Tile:
        unique = self.fresh(name)
        self.tiles.add(unique)
        groups = None
        if starts is not None:
            groups = ir.Groups(starts.name, starts.dims[0], self.fresh(f"{unique}_group"))
            self.tiles.add(groups.index)
        tile = ir.Tile(unique, dim, f"block_{dim}", groups)
        self.local.ended.pop(name, None)
        self.local.values[name] = TileRef(dim, tile)
        return tile

    # -------------------------------------------------------------- helpers
    def inline(self, helper: Any, node: ast.Call) -> Any:
        """A @kd.function call: its body read in a scope of its own, its value handed back."""
        loc = self.source.loc(node)
        if self.inlining > 20:
            fail(loc, f"{helper.name} calls itself", "helpers are inlined, so they cannot recurse")
        parameters = inspect.signature(helper.source.fn).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        bound = defaults | self.arguments(node, helper.source.fn)
        prefix = f"{self.local.prefix}{helper.name}_"
        held = {}
        for name, value in bound.items():
            kept = isinstance(value, ir.Var) and name not in helper.source.assigned
            simple = kept or not isinstance(value, Expr) or isinstance(value, ir.Const | ir.Param | ir.Size | ir.Index)
            held[name] = value if simple else self.emit(self.fresh(prefix + name), value, loc)
        saved = self.source, self.local
        given = inspect.signature(helper.source.fn).bind(*node.args, **{str(k.arg): k.value for k in node.keywords})
        absent = {
            name: self.local.absent[argument.id]
            for name, argument in given.arguments.items()
            if isinstance(argument, ast.Name) and argument.id in self.local.absent
        }
        self.source, self.local = helper.source, Local(held, {}, prefix, absent)
        self.inlining += 1
        loops, self.loops = self.loops, [_Loop(frozenset())] if self.loops else []
        try:
            self.statements(helper.source.tree.body)
        except _Return as done:
            return done.value
        finally:
            self.inlining -= 1
            self.loops = loops
            self.source, self.local = saved
        fail(loc, f"{helper.name} returns nothing", "end it with `return value`")


def _words(node: ast.AST) -> str:
    """What a person calls a piece of syntax."""
    names = {"While": "a while loop", "With": "a with block", "Try": "try / except", "ListComp": "a list comprehension",
             "Lambda": "a lambda", "FunctionDef": "a nested function", "ClassDef": "a class", "Import": "an import",
             "ImportFrom": "an import", "Break": "break", "Continue": "continue", "Delete": "del", "Assert": "assert",
             "Raise": "raise", "Global": "global", "Nonlocal": "nonlocal", "Match": "match", "Starred": "a starred name",
             "Dict": "a dict", "List": "a list", "Attribute": "an attribute", "JoinedStr": "an f-string",
             "NamedExpr": "an assignment inside an expression", "Assign": "a chained assignment"}  # fmt: skip
    return names.get(
        type(node).__name__, f"`{ast.unparse(node)}`" if isinstance(node, ast.expr) else type(node).__name__
    )
