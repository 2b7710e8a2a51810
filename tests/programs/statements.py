"""Draws statements: assignments, loops with what they carry, additions to outputs, branches on what is known beforehand.

What a loop over tiles carries does not hang on where tiles end: it is summed (or the largest taken) over everything that the
loop visits. Where bounds hang on another tile, a mask makes what lies beyond neutral.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from tests.programs import values as v
from tests.programs.scope import MOST_TENSORS, Loop, Variable
from tests.programs.stores import Stores
from tests.programs.values import Expr

NEUTRAL = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}
STEPS = {"sum": "{a} + {e}", "max": "kd.maximum({a}, {e})", "min": "kd.minimum({a}, {e})"}


class Statements(Stores):
    """``assignment``, ``loop``, ``two_ways`` and ``addition`` each draw one."""

    def axes(self, level: int | None = None) -> list[str]:
        """Tiles that may be axes here, or where ``level`` loops were open."""
        return [loop.name for loop in self.loops[:level] if loop.tiled]

    def shape(self, rank: int, level: int | None = None, must: Sequence[str] = ()) -> tuple[str, ...]:
        """A shape of at most this rank that fits."""
        found = list(must)
        for _ in range(rank - len(found)):
            tiles = [a for a in self.axes(level) if a not in found]
            axis = self.pick(tiles) if tiles and self.upto(2) < 2 else self.some_dim()
            if self.fits((*found, axis)) and (axis not in found or self.may("one dim twice", 30)):
                found.insert(self.upto(len(found)), axis)
        return tuple(found)

    # -------------------------------------------------------------- assignments
    def assignment(self) -> None:
        """A variable, assigned once, in two steps, by two branches, or with another in one statement."""
        shape = self.shape(self.pick([1, 2, 2, 0, 3]))
        kind = self.pick(["float", "float", "float", "int", "bool"])
        x = self.value(shape, kind, self.upto(3, 1), not self.smooth)
        way = self.upto(7)
        if way == 5 and x.kind == "float" and self.may("choice", 50):
            return self.commuted(shape, x)
        if way == 6 and self.may("optional", 60):
            return self.optional(shape, x)
        if way == 7 and self.may("static", 60):
            return self.static_branch(shape, x)
        if x.literal:
            return None
        if way == 4:
            self.pairwise(shape, x)
            return None
        self.assign(x)
        return None

    def assign(self, x: Expr, stem: str = "v", level: int | None = None) -> Variable:
        name = self.fresh(stem)
        self.line(f"{name} = {x.text}")
        variable = Variable(replace(x, text=name), len(self.loops) if level is None else level)
        self.variables.append(variable)
        return variable

    def again(self, variable: Variable, x: Expr) -> None:
        """Another value for a variable; its type must stay."""
        self.line(f"{variable.expr.text} = {x.text}")
        variable.expr = replace(x, text=variable.expr.text)

    def as_f32(self, x: Expr) -> Expr:
        """Of float32, whatever it was: what a variable must be whose type may not change."""
        return v.plus(x, v.number(0.0)) if x.kind != "bool" else v.either(x, v.number(1.0), v.number(0.0))

    def pairwise(self, shape: tuple[str, ...], x: Expr) -> None:
        """Two variables that swap."""
        first = self.assign(self.as_f32(x))
        second = self.assign(self.as_f32(self.value(shape, "float", 1, not self.smooth)))
        a, b = first.expr, second.expr
        if a.shape != b.shape or not v.plus(a, b).sound:
            return
        self.line(f"{a.text}, {b.text} = {b.text}, ({a.text} + {b.text})")
        first.expr, second.expr = replace(b, text=a.text), v.replace(v.plus(a, b), text=b.text)

    def commuted(self, shape: tuple[str, ...], x: Expr) -> None:
        """A choice of the tuner's that changes nothing."""
        y = self.operand(shape, "float", 1, not self.smooth)
        total = v.plus(x, y)
        name = self.fresh("v")
        if not total.sound or total.dtype != "f32":
            return
        with self.branch(f'if kd.choice("way_{name}", True, False):'):
            self.line(f"{name} = {total.text}")
        with self.branch("else:"):
            self.line(f"{name} = ({y.text} + {x.text})")
        self.variables.append(Variable(replace(total, text=name), len(self.loops)))

    def optional(self, shape: tuple[str, ...], x: Expr) -> None:
        """``if bias is not None``."""
        base = self.assign(self.as_f32(x))
        count, known = len(self.tensors), list(self.tensors)
        bias = self.load(shape, "float")
        if bias is None or len(self.tensors) != count + 1 or not v.plus(base.expr, bias).sound:
            return
        tensor = next(t for t in self.tensors if t not in known)
        if not bias.text.startswith(f"{tensor.name}["):  # a table of indices into one that was there
            return
        there = {d for t in known if not t.absent for d in t.dims}
        with self.branch(f"if {tensor.name} is not None:"):
            self.line(f"{base.expr.text} = {base.expr.text} + {bias.text}")
        if there.issuperset(tensor.dims) and self.may("absent", 50):
            self.change(tensor, absent=True)
        else:
            base.expr = replace(v.plus(base.expr, bias), text=base.expr.text)

    def static_branch(self, shape: tuple[str, ...], x: Expr) -> None:
        """A static argument that takes the value True, 1 or 1.0, after calls with the others."""
        base, name = self.assign(self.as_f32(x)), self.fresh("flag")
        text, steps = base.expr.text, [v.number(1.0), v.number(2.0), v.number(3.0)]
        headers = (f"if {name} is True:", f"elif isinstance({name}, float):", "else:")
        for header, step in zip(headers, steps, strict=True):
            with self.branch(header):
                self.line(f"{text} = {text} + {step.text}")
        kinds = self.pick([(True, 1, 1.0), (1, True, 1.0), (1.0, 1, True), (0, False, 0.0)])
        self.statics[name] = kinds[0]
        self.before.extend({name: other} for other in kinds[1:])
        base.expr = replace(v.plus(base.expr, steps[2]), text=text)

    def in_range(self) -> None:
        """A loop over numbers that are known: factors, offsets, and what ``if`` asks."""
        shape = self.shape(self.pick([1, 2, 0]))
        # Drawn before there is what it is added to: one that read that would grow with each turn.
        step = self.as_f32(self.value(shape, "float", 1, not self.smooth))
        base = self.assign(self.as_f32(self.value(shape, "float", 1, not self.smooth)))
        numbers = self.pick([range(3), range(1), range(0), range(1, 6, 2), range(2, -2, -1), range(4, 1)])
        i, text, total = self.fresh("i"), base.expr.text, base.expr
        factor = Expr(i, "i32", (), max((abs(n) for n in numbers), default=0), literal=True)
        term = v.times(step, factor)
        for _ in numbers:
            total = v.plus(v.plus(total, term), v.number(1.0))
        if not (term.sound and total.sound):
            return
        with self.branch(f"for {i} in kd.{numbers}:"):
            self.line(f"{text} = {text} + {term.text}")
            with self.branch(f"if {i} % 2 == 1:"):
                self.line(f"{text} += 1.0")
        base.expr = replace(total, text=text)

    def halves(self) -> None:
        """A tile taken apart along a dim of two, and maybe one put together."""
        pairs = [dim for dim in self.known_dims() if self.extents[dim] == 2]
        dim = self.pick(pairs) if pairs and self.upto(1) else self.new_dim(turns=True) if len(self.extents) < 10 else ""
        if not dim:
            return
        if dim not in self.known_dims():
            self.extents[dim] = 2
            self.new_tensor((dim,), "f32", odd=self.odd)
        shape = self.shape(self.pick([1, 2]))
        if dim in map(self.dim_of, shape) or not shape or not self.fits((*shape, dim)):
            return
        x = self.value((*shape, dim), self.pick(["float", "int"]), 2, not self.smooth)
        first, second = self.fresh("first"), self.fresh("second")
        self.line(f"{first}, {second} = kd.split({x.text})")
        for name in (first, second):
            self.variables.append(Variable(replace(x, text=name, shape=shape), len(self.loops)))
        if self.upto(1):
            a, b = (self.as_f32(self.value(shape, "float", 1, not self.smooth)) for _ in range(2))
            both = v.larger(a, b, "maximum")
            self.assign(replace(both, text=f'kd.join({a.text}, {b.text}, "{dim}")', shape=(*shape, dim)), "pair")

    # -------------------------------------------------------------- loops
    def loop(self, depth: int, around: Sequence[tuple[Variable, str, int]] = ()) -> None:
        """A sequential loop, with what it carries, and maybe another inside it; ``around`` is what loops around it carry."""
        tiled = not self.may("index loop", 35)
        dim = self.some_dim(turns=not tiled)
        if dim not in self.known_dims():
            self.new_tensor((dim,), "f32", odd=self.odd)
        bounds, mask = self.bounds(dim) if self.may("bounds", 50) else ("", None)
        if not tiled and mask is not None:
            bounds, mask = "", None
        name = self.fresh(dim.lower())
        level, shown = len(self.loops), len(self.variables)
        carried = [(*self.carried(level), level) for _ in range(self.upto(2, 1))]
        over = f'kd.tile("{dim}")' if tiled else f'"{dim}"'
        self.line(f"for {name} in kd.sequential({over}{bounds}):")
        self.loops.append(Loop(name, dim, tiled, mask, bool(bounds)))
        self.seen.append((dim, tiled, level))
        for x in carried:
            x[0].final = False
        for _ in range(self.pick([0, 0, 1, 2])):
            self.assignment()
        if depth > 0 and self.may("loop in a loop", 35):
            self.loop(depth - 1, carried)
        for variable, op, at in carried:
            self.update(variable, op, at)
        for variable, op, at in around:
            if self.upto(2) == 2:
                self.update(variable, op, at)
        if self.may("store in a loop", 15):
            self.store()
        if self.lines[-1].lstrip().startswith("for "):
            self.line("pass")
        self.loops.pop()
        del self.variables[shown + len(carried) :]
        for variable, _, _ in carried:
            variable.final = True

    def bounds(self, dim: str) -> tuple[str, tuple[str, str] | None]:
        """``start`` and ``stop`` of a loop as text; a mask where they hang on a tile."""
        extent, tiles = self.extents[dim], self.tiles
        if tiles and self.may("tile bounds", 50):
            m, c = self.pick(tiles).name, self.pick([0, 1, 5])
            way = self.upto(3)
            if way == 0:
                last = f"{m}.stop + {c}" if c else f"{m}.stop"
                if self.upto(1):
                    bound = self.fresh("last")
                    self.line(f"{bound} = {last}")
                    last = bound
                return f", stop={last}", (m, f"{{n}} <= {{m}} + {c}")
            if way == 1:
                return f", start={m}.start - {c}", (m, f"{{n}} >= {{m}} - {c}")
            if way == 2:
                return f", stop=kd.minimum({m}.start + {m}.size, {extent})", (m, "{n} <= {m}")
            return f", start=kd.maximum({m}.start - {c}, 0), stop={m}.stop + {c}", (m, f"kd.abs({{n}} - {{m}}) <= {c}")
        first = self.loaded_bound(extent) if self.may("packed", 30) else None
        if first is not None:  # runs of a length each
            return f", start={first}, stop={first} + {self.pick([1, 5, 0, extent])}", None
        start, stop = (self.one_bound(dim, extent) for _ in range(2))
        way = self.upto(2)
        return [f", stop={stop}", f", start={start}", f", start={start}, stop={stop}"][way], None

    def one_bound(self, dim: str, extent: int) -> str:
        way = self.upto(3)
        if way == 1:
            return self.int_argument(self.pick([0, extent // 2, extent + 5, -2])).text
        loaded = self.loaded_bound(extent) if way >= 2 and self.may("loaded bound", 70) else None
        return loaded or str(self.pick([extent // 2, 1, extent, 0, extent + 3]))

    def loaded_bound(self, extent: int) -> str | None:
        """One for each index of a loop around, where there is one."""
        indices = [loop for loop in self.indices if self.extents[loop.dim]]
        if not indices or len(self.tensors) >= 6:
            return None
        loop = self.pick(indices)
        return f"{self.new_tensor((loop.dim,), 'i32', fill='length', most=extent).name}[{loop.name}]"

    def carried(self, level: int) -> tuple[Variable, str]:
        """What a loop will carry, as it is before it, and how it is made."""
        op = self.pick(["sum", "sum", "max", "min", "dot", "turn", "count"])
        if op == "count":
            text = "kd.full([], 0, kd.i32)"
            return self.assign(Expr(text, "i32"), "seen", level), op
        shape = self.shape(2 if op == "dot" else self.pick([1, 1, 0, 2]), level)
        if op == "dot" and (len(shape) < 2 or self.dim_of(shape[0]) == self.dim_of(shape[1])):
            op = "sum"
        for axis in shape:
            if not self.is_tile(axis) and axis not in self.known_dims():
                self.new_tensor((axis,), "f32", odd=self.odd)
        start = NEUTRAL.get(op, 0.0)
        filled = f"kd.full({self.sides(shape)}, {v.number(start).text})"
        text = filled if start else f"kd.zeros({self.sides(shape)})"
        return self.assign(replace(v.number(start), text=text, shape=shape, literal=False), "acc", level), op

    def update(self, variable: Variable, op: str, level: int) -> None:
        """One turn: what the loops since ``level`` visit, folded into a variable."""
        inside = self.loops[level:]
        tiles = [loop.name for loop in inside if loop.tiled]
        turns = 1
        for loop in inside:
            turns *= 1 if loop.tiled else max(1, self.extents[loop.dim])
        acc = variable.expr
        if op == "count":
            return self.counted(variable, tiles, turns)
        if op == "turn" and not tiles:
            return self.in_turn(variable, turns)
        alone = op == "dot" and len(tiles) == 1 and self.dim_of(tiles[0]) not in map(self.dim_of, acc.shape)
        if alone and not any(loop.mask for loop in inside) and self.may("product", 90):
            return self.add_product(variable, tiles[0], turns)
        op = op if op in NEUTRAL else "sum"
        found = self.over_tiles(acc.shape, tiles, inside, op)
        if found is None:
            return None
        if op == "sum" and not tiles and not v.plus(v.times(found, v.number(turns)), acc).sound:
            found = self.clamped(found)
        total = v.plus(v.times(found, v.number(turns)), acc) if op == "sum" else v.larger(acc, found, "maximum")
        if not total.sound:
            return None
        self.line(f"{acc.text} = {STEPS[op].format(a=acc.text, e=found.text)}")
        variable.expr = replace(total, text=acc.text, shape=acc.shape)
        return None

    def counted(self, variable: Variable, tiles: list[str], turns: int) -> None:
        """How many elements a loop visits: the one thing that may be said of a tile's width."""
        name = variable.expr.text
        if len(tiles) != 1 or variable.expr.most or any(loop.mask for loop in self.loops):
            return
        n = tiles[0]
        if turns == 1 and self.upto(1):
            self.line(f"{name} = kd.maximum({name}, {n}.before + {n}.count)")
        else:
            self.line(f"{name} += {n}.count")
        variable.expr = replace(variable.expr, most=float(self.count(n) * turns))

    def over_tiles(self, shape: tuple[str, ...], tiles: list[str], inside: list[Loop], op: str) -> Expr | None:
        """An expression reduced along all of these tiles, masked where their bounds ask for it."""
        whole = list(shape)
        for tile in tiles:
            whole.insert(self.upto(len(whole)), tile)
        twice = len({self.dim_of(a) for a in whole}) < len(whole)
        if not self.fits(whole) or (twice and "one dim twice" in self.without):
            return None
        x = self.as_f32(self.value(whole, "float", self.upto(3), not self.smooth))
        x = self.with_unread(x, len(self.loops))
        for loop in inside:
            if loop.mask is not None:
                m, condition = loop.mask
                if m not in whole:
                    return None
                x = v.either(Expr(self.mask_text(tuple(whole), loop.name, m, condition), "bool", tuple(whole)), x,
                             v.number(NEUTRAL[op]))  # fmt: skip
        for tile in reversed(tiles):
            at = x.shape.index(tile)
            count = self.count(tile)
            x = v.reduced(x, op, at, count, at if self.upto(3) else at - len(x.shape))
        return x if x.sound else None

    def mask_text(self, shape: tuple[str, ...], n: str, m: str, condition: str) -> str:
        """A condition on the indices of two tiles, of the rank of a shape."""
        places = {}
        for key, axis in (("n", n), ("m", m)):
            at = shape.index(axis)
            kept = ", ".join(":" if i == at else "None" for i in range(len(shape)))
            places[key] = f"{axis}.index[{kept}]" if len(shape) > 1 else f"{axis}.index"
        return f"({condition.format(**places)})"

    def in_turn(self, variable: Variable, turns: int) -> None:
        """A recurrence, which goes index by index. Not of what is only nearly right: a comparison may turn on it."""
        acc = variable.expr
        if self.smooth:
            return
        e = self.value(acc.shape, "float", 2, True)
        e = self.clamped(self.with_unread(e, len(self.loops)))
        way = self.upto(2)
        if not e.exact:
            return
        if way == 0:
            text, most = f"{e.text} - {acc.text}", acc.most + e.most * turns
        elif way == 1:
            text, most = f"kd.where({acc.text} < {e.text}, {e.text}, {acc.text} - 1.0)", acc.most + e.most + turns
        else:
            condition = self.value(acc.shape, "bool", 1, True)
            text, most = f"kd.where({condition.text}, {v.plus(e, v.number(0.0)).text}, {acc.text})", acc.most + e.most
        total = Expr(text, "f32", acc.shape, most, min(acc.grain, e.grain), odd=acc.odd or e.odd)
        if total.sound:
            self.line(f"{acc.text} = {text}")
            variable.expr = replace(total, text=acc.text)

    def add_product(self, variable: Variable, tile: str, turns: int) -> None:
        acc, dtype = variable.expr, self.float_type()
        a, b = self.factor((acc.shape[0], tile), dtype, 2), self.factor((tile, acc.shape[1]), dtype, 1)
        found = v.product(a, b, acc, self.count(tile) * turns)
        if found is not None and found.sound:
            self.line(f"{acc.text} = {found.text}")
            variable.expr = replace(found, text=acc.text)

    def two_ways(self) -> None:
        """A row whole, or in tiles: the choice that the tuner is given most."""
        dim = self.some_dim()
        shape = self.shape(1)
        tile = self.fresh(dim.lower())
        if dim in map(self.dim_of, shape) or not self.fits((*shape, dim)) or not self.may("choice", 60):
            return
        if dim not in self.known_dims():
            self.new_tensor((dim,), "f32")
        for axis in shape:
            if not self.is_tile(axis) and axis not in self.known_dims():
                self.new_tensor((axis,), "f32")
        at, name = self.upto(len(shape)), self.fresh("row")
        self.loops.append(Loop(tile, dim, True))
        x = self.as_f32(self.load((*shape[:at], tile, *shape[at:]), "float") or v.number(1.0))
        self.loops.pop()
        if x.literal or len(x.shape) != len(shape) + 1:
            return
        total = v.reduced(x, "sum", at, self.extents[dim], at)
        if not total.sound:
            return
        self.seen.append((dim, True, len(self.loops)))
        with self.branch(f'if kd.choice("whole_{name}", True, False):'):
            whole = re.sub(rf"(?<=[ \[]){tile}(?=[,\]])", ":", total.text)
            self.line(f"{name} = {whole}")
        with self.branch("else:"):
            self.line(f"{name} = kd.zeros({self.sides(shape)})")
            with self.branch(f'for {tile} in kd.sequential(kd.tile("{dim}")):'):
                self.line(f"{name} += {total.text}")
        self.variables.append(Variable(replace(total, text=name), len(self.loops)))

    def dealt(self) -> None:
        """A loop that deals tiles out among the programs along an index. Whose an element is hangs on their length, what is
        stored for it does not: nothing in it reads that index, or a variable, which may hang on it."""
        indices = [loop for loop in self.loops[: self.grid] if not loop.tiled]
        if not indices or len(self.loops) > self.grid or len(self.tensors) >= MOST_TENSORS:
            return
        mine = self.pick(indices)
        others = [loop for loop in self.loops if loop is not mine]
        dim = self.some_dim(but=[loop.dim for loop in self.loops])
        if dim not in self.known_dims():
            self.new_tensor((dim,), "f32", odd=self.odd)
        name, loops, variables, branches = self.fresh(dim.lower()), self.loops, self.variables, self.branches
        self.loops, self.variables, self.branches = others, [], branches + 1
        start, stop = (f", {key}={self.one_bound(dim, self.extents[dim])}" for key in ("start", "stop"))
        bounds = self.pick([stop, start + stop, start, ""])
        self.line(f'for {name} in kd.sequential(kd.tile("{dim}"){bounds}, share={mine.name}):')
        self.loops = [*others, Loop(name, dim, True, None, True)]
        self.seen.append((dim, True, self.grid))
        shape = tuple(loop.name for loop in self.loops if loop.tiled)
        if self.fits(shape):
            self.put(tuple(loop.dim for loop in self.loops), ", ".join(loop.name for loop in self.loops), shape, "float")
        else:
            self.line("pass")
        self.loops, self.variables, self.branches = loops, variables, branches

    def addition(self) -> None:
        """``out[...] += value`` to a place that several programs share."""
        grid = self.loops[: self.grid]
        kept = [loop for loop in grid if self.upto(1)]
        shape = tuple(loop.name for loop in kept if loop.tiled)
        tiles = [loop.name for loop in grid if loop.tiled and loop not in kept]
        dims = [loop.dim for loop in kept]
        extra: list[str] = []
        if not dims or self.upto(2) == 2:
            dim = self.some_dim(but=[loop.dim for loop in self.loops])
            if self.fits((*shape, *tiles, dim)):
                extra = [dim]
        if not (dims or extra) or not self.fits((*shape, *extra, *tiles)) or len(set(dims)) < len(dims):
            return
        places = {loop.name: loop.name for loop in kept}
        for i, loop in enumerate(kept):
            if loop.tiled and self.extents[loop.dim] and self.may("gather", 60):
                other = self.some_dim(but=[*dims, *extra])
                if other not in (*dims, *extra) and self.extents[other]:
                    places[loop.name], _ = self.index_tile((loop.name,), other, guarded=False)
                    dims[i] = other
        x = self.over_tiles((*shape, *extra), tiles, [], "sum")
        turns = 1
        for loop in grid:
            apart = loop in kept and places[loop.name] == loop.name
            turns *= self.extents[loop.dim] if not apart and (loop in kept or not loop.tiled) else 1
        if x is None or not v.times(x, v.number(turns)).sound or x.kind != "float":
            return
        entries = ", ".join([*places.values(), *(":" for _ in extra)])
        off = x.off * turns + (turns * x.most * v.EPS_F32 if x.off else 0.0)
        out = self.new_tensor((*dims, *extra), "f32", role="out", added=True, off=off)
        self.line(f"{out.name}[{entries}] += {x.text}")
