"""No value depends on how a dim is cut into tiles: that is the config's choice, and a text means one thing whatever it is.

Where a tile starts and stops, and how many lanes it has, may steer loops; followed through variables, it must not become an
index, a factor or anything that is stored. Nor may a loop over tiles count its own turns. ``.index``, ``.count`` and
``.before`` are about elements.
"""

from dataclasses import dataclass

from kpt_dsl import ir
from kpt_dsl.frontend.source import fail
from kpt_dsl.ir import Expr, Loc

_WORD: dict[type[Expr], str] = {ir.Start: "start", ir.Stop: "stop", ir.Block: "size"}


@dataclass(frozen=True)
class _Use:
    """Where a value depends on ``bound``, itself or through a variable."""

    bound: Expr
    loc: Loc


def check_tiling(kernel: ir.Kernel) -> None:
    """Raises KernelError where a value depends on the width of tiles."""
    _Bounds().block(kernel.body)
    for loop in ir.tile_loops(kernel.body):
        _check_turns(loop)


class _Bounds:
    """Follows the bounds of tiles through scalars."""

    def __init__(self) -> None:
        self.uses: dict[str, _Use] = {}
        """Of variables, at this point."""

    def block(self, body: tuple[ir.Stmt, ...]) -> None:
        for stmt in body:
            match stmt:
                case ir.Assign(name=name, value=value):
                    use = self.check(value)
                    self.uses.pop(name, None)
                    if use is not None:
                        self.uses[name] = use
                case ir.Store(index=index, value=value):
                    for entry in (*(i for i in index if isinstance(i, Expr)), value):
                        self.refuse(self.check(entry))
                case ir.For(start=start, stop=stop, body=inner):
                    self.check(start)
                    self.check(stop)
                    self.loop(inner)

    def loop(self, body: tuple[ir.Stmt, ...]) -> None:
        """A later turn may find what an earlier one assigned."""
        before = -1
        while len(self.uses) > before:
            outside = dict(self.uses)
            before = len(outside)
            self.block(body)
            self.uses = outside | self.uses

    def check(self, e: Expr) -> _Use | None:
        """The bound that a scalar depends on, if any; refused where a tile does, or the place of an element."""
        match e:
            case ir.Count() | ir.Before():
                return None
            case ir.Start() | ir.Stop() | ir.Block():
                return _Use(e, e.loc)
            case ir.Var(name=name):
                known = self.uses.get(name)
                return known and _Use(known.bound, e.loc)
        found: _Use | None = None
        for child in ir.children(e):
            use = self.check(child)
            if isinstance(e, ir.Load) or e.type.shape:
                self.refuse(use)
            found = found or use
        return found

    @staticmethod
    def refuse(use: _Use | None) -> None:
        if use is None:
            return
        bound = use.bound
        assert isinstance(bound, ir.Start | ir.Stop | ir.Block)
        tile, through = bound.tile, "" if use.loc == bound.loc else f" (it comes from line {bound.loc.line})"
        fail(
            use.loc,
            f"{tile}.{_WORD[type(bound)]} as a value{through}: it depends on how wide tiles are, which the config chooses",
            f"it may bound loops only; {tile}.index holds the indices, {tile}.count how many elements there are and "
            f'{tile}.before how many came before; for one index after the other: for {tile} in kd.sequential("…")',
        )


# ------------------------------------------------------------------ turns that count themselves
_TILE = "<tile>"
"""Among the variables that a value is made of, stands for what is in the tile; no variable can have this name."""

_IDEMPOTENT = ("max", "min", "maxnum", "minnum", "and", "or")


def _check_turns(loop: ir.For) -> None:
    """Refuses a carried variable that changes with every turn, whatever is in the tile: its last value would count tiles."""
    made = _made(loop)
    for name in loop.carried:
        behind = made.get(name, set())
        while (more := behind.union(*(made.get(n, set()) for n in behind))) != behind:
            behind = more
        if name in behind and _TILE not in behind:
            tile = loop.tile
            stmt = next(s for s in ir.statements(loop.body) if isinstance(s, ir.Assign) and s.name == name)
            fail(
                stmt.loc,
                f"{name} changes with every tile of {tile.dim}, whatever is in it: how many there are is the config's choice",
                f"{tile.name}.count and {tile.name}.before count elements; "
                f'for one index after the other: for {tile.name} in kd.sequential("{tile.dim}")',
            )


def _made(loop: ir.For) -> dict[str, set[str]]:
    """What each variable is made of after one turn: variables as they were before it, and what is in the tile."""
    inside = {loop.tile.name} | {s.over.name for s in ir.statements(loop.body) if isinstance(s, ir.For)}
    made: dict[str, set[str]] = {}
    for stmt in ir.statements(loop.body):
        if not isinstance(stmt, ir.Assign):
            continue
        found: set[str] = set()
        for e in ir.walk(stmt.value):
            if isinstance(e, ir.Var):
                found |= made.get(e.name, {e.name})
            if not inside.isdisjoint(_places(e)):
                found.add(_TILE)
        if _settles(stmt):
            found.discard(stmt.name)
        # What an inner loop assigns, it may not assign at all.
        made[stmt.name] = found if stmt in loop.body else found | made.get(stmt.name, {stmt.name})
    return made


def _places(e: Expr) -> set[str | None]:
    """The loop variables that an expression itself depends on."""
    found: set[str | None] = {axis.tile for axis in e.type.shape}
    match e:
        case ir.Index(name=name):
            found.add(name)
        case ir.Count(tile=tile) | ir.Before(tile=tile) | ir.Start(tile=tile) | ir.Stop(tile=tile):
            found.add(tile)
    return found


def _settles(stmt: ir.Assign) -> bool:
    """Whether a variable becomes the larger or the smaller of itself and something: a second time changes nothing."""
    value = stmt.value
    if not isinstance(value, ir.Binary) or value.op not in _IDEMPOTENT:
        return isinstance(value, ir.Var) and value.name == stmt.name
    return any(isinstance(x, ir.Var) and x.name == stmt.name for x in (value.a, value.b))
