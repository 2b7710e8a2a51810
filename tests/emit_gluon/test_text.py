"""Generated Gluon text: functions are passed what they read, names follow Triton's version, programs cover the grid once."""

import ast
import symtable
import textwrap

import pytest

from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.emit.gluon import vocabulary
from kpt_dsl.emit.gluon.functions import Function
from kpt_dsl.emit.text import Writer
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.emit_gluon.test_compile import attention, config

H200 = targets.get("nvidia-h200")


def function(text: str, *own: str, shared: frozenset[str] = frozenset()) -> Function:
    body = Writer(depth=1)
    for line in textwrap.dedent(text).strip().split("\n"):
        body.line(line)
    return Function("f", own, body, shared)


def test_what_a_function_reads_and_does_not_make_is_a_parameter() -> None:
    made = function(
        """
        start += 1
        y = x + CONSTANT
        for i in range(low, high):
            total = total + y.at(x, by=step)
            inner = i
        return total, inner, len(y)
        """,
        "consumer",
        "start",
        "total",
        shared=frozenset({"CONSTANT"}),
    )
    assert made.parameters == ["consumer", "start", "total", "x", "low", "high", "step"]
    assert made.arguments("0", "begin", "sum") == ["0", "begin", "sum", "x", "low", "high", "step"]


@pytest.mark.parametrize(
    ("version", "load", "barrier"),
    [
        ((3, 6), "tma.async_copy_global_to_shared", "gl.thread_barrier"),
        ((3, 7), "tma.async_copy_global_to_shared", "gl.barrier"),
        ((3, 8), "tma.async_load", "gl.barrier"),
        ((4, 0), "tma.async_load", "gl.barrier"),
    ],
)
def test_names_follow_the_version(version: tuple[int, int], load: str, barrier: str) -> None:
    names = vocabulary.names(version)
    assert (names["load"], names["barrier"]) == (load, barrier)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
def test_every_name_of_a_function_is_its_own_or_the_modules(overlap: bool, persistent: bool) -> None:
    instance = attention(128, 199, 760, causal=True, window=100)
    module = symtable.symtable(emit(instance, H200, config(instance, overlap=overlap, persistent=persistent)).text, "", "exec")
    known = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    functions = [table for table in module.get_children() if isinstance(table, symtable.Function)]
    assert len(functions) == 6
    for function in functions:
        assert set(function.get_globals()) - known <= {"range", "float"}, function.get_name()


def places(instance: Instance, chosen: Config) -> list[tuple[int, int, int]]:
    """Batch entry, head and first row of each tile of a grid, in order: the text that says so is Python, and is run."""
    source = emit(instance, H200, chosen)
    persistent = bool(chosen["persistent"])
    where = "load_tiles" if persistent else source.name
    body = next(n for n in ast.parse(source.text).body if isinstance(n, ast.FunctionDef) and n.name == where).body
    if persistent:
        body = next(n for n in body if isinstance(n, ast.For)).body
    lines = []
    for stmt in body if persistent else body[1:]:
        lines.append(ast.unparse(stmt))
        if isinstance(stmt, ast.Assign) and isinstance(stmt.targets[0], ast.Name) and stmt.targets[0].id == "b":
            break
    text = "\n".join(lines).replace("gl.cdiv", "cdiv").replace("gl.minimum", "min").replace("gl.where", "where")
    extents, rows = dict(instance.extents.dims), 64 * int(chosen["consumers"])
    scope = {
        **extents, "TILE_M": rows, "GROUP": chosen["group"], "m_tiles": -(-extents["M"] // rows),
        "cdiv": lambda a, b: -(-a // b), "where": lambda c, a, b: a if c else b,
    }  # fmt: skip
    found = []
    for number in range(source.abi.tiles(extents)):
        exec(text, scope | {"program": number, "tile": number}, made := {})
        found.append((made["b"], made["h"], made["m_start"]))
    return found


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("group", [1, 4, 8, 16])
@pytest.mark.parametrize("consumers", [1, 2, 3])
def test_tiles_cover_the_grid_once(group: int, consumers: int, persistent: bool) -> None:
    instance = attention(64, 760, 760, causal=True)
    found = places(instance, config(instance, group=group, consumers=consumers, registers=160, persistent=persistent))
    extents = dict(instance.extents.dims)
    assert len(set(found)) == len(found)
    assert set(found) == {
        (b, h, m)
        for b in range(extents["B"])
        for h in range(extents["H"])
        for m in range(0, extents["M"], 64 * consumers)
    }
    rows = [m for _, _, m in found]
    if not persistent:  # causal tiles of later rows take longer, and go first
        assert rows[:group] == [max(rows)] * group
    assert rows[-group:] == [0] * group


@pytest.mark.parametrize(
    ("heads", "keys", "consumers", "group"), [(64, 4096, 3, 4), (64, 4096, 3, 16), (32, 4096, 2, 8)]
)
def test_persistent_programs_have_equal_shares(heads: int, keys: int, consumers: int, group: int) -> None:
    """Of causal attention, whose tiles take as long as they have keys to see, on the 132 multiprocessors of the chip."""
    instance = attention(64, keys, keys, heads=heads, causal=True)
    order = places(instance, config(instance, group=group, consumers=consumers, registers=160, persistent=True))
    work = [m + 64 * consumers for _, _, m in order]
    shares = [sum(work[p :: H200.cores]) for p in range(H200.cores)]
    assert max(shares) * H200.cores < 1.05 * sum(work)
