"""The bounds of one program's share of a loop: the tiles that touch the indices between two bounds, dealt out in runs.

Shares follow each other, differ by one tile at most, and are empty where there are fewer tiles. Tiles are cut at multiples of
their length, so that all ends but the outer two are.
"""

from collections.abc import Callable

from kpt_dsl import ir
from kpt_dsl.frontend import typing as ty
from kpt_dsl.ir import Expr


def deal(
    tile: ir.Tile, index: ir.Index, count: Expr, low: Expr, high: Expr, named: Callable[[str, Expr], Expr]
) -> tuple[Expr, Expr]:
    """Where the share of one ``index`` out of ``count`` begins and ends, of what lies in [low, high).

    ``named`` gives a scalar a name that ends with a word, and what reads it.
    """
    loc = index.loc
    block = ir.Block(tile.name, type=index.type, loc=loc)
    begins = low != ir.scalar(0)

    def scalar(op: ir.BinaryOp, a: Expr | int, b: Expr | int) -> Expr:
        return ty.binary(op, a, b, loc)

    if not isinstance(high, ir.Size):
        high = named("end", scalar("max", high, 0))
    tiles = scalar("floordiv", scalar("add", high, scalar("sub", block, 1)), block)
    if begins:
        low = named("low", low)
        skipped = named("skipped", scalar("floordiv", low, block))
        tiles = scalar("max", scalar("sub", tiles, skipped), 0)
    tiles = named("tiles", tiles)
    each, over = scalar("floordiv", tiles, count), scalar("mod", tiles, count)

    def edge(i: Expr) -> Expr:
        """Where the i-th share begins: the first ``over`` of them have a tile more."""
        before = scalar("add", scalar("mul", i, each), scalar("min", i, over))
        return scalar("mul", scalar("add", skipped, before) if begins else before, block)

    first = named("first", scalar("max", edge(index), low) if begins else edge(index))
    return first, named("last", scalar("min", edge(scalar("add", index, 1)), high))
