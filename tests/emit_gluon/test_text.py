"""Generated Gluon text: functions are passed what they read, names follow Triton's version, programs cover the grid once."""

import ast
import textwrap

import pytest

from kpt_dsl import targets
from kpt_dsl.emit import emit, gluon_names
from kpt_dsl.emit.gluon_functions import Function
from kpt_dsl.emit.text import Writer
from tests.emit_gluon.test_compile import attention, config

H200 = targets.get("nvidia-h200")


def function(text: str, *own: str, shared: frozenset[str] = frozenset()) -> Function:
    body = Writer(depth=1)
    for line in textwrap.dedent(text).strip().split("\n"):
        body.line(line)
    return Function("f", own, body, shared)


def test_what_a_function_reads_before_it_has_it_is_a_parameter() -> None:
    made = function(
        """
        start += 1
        y = x + CONSTANT
        for i in range(low, high):
            total = total + y
            inner = i
        return total, inner
        """,
        "consumer: gl.constexpr",
        shared=frozenset({"CONSTANT"}),
    )
    assert made.parameters == ["consumer", "start", "x", "low", "high", "total"]
    assert made.arguments("0") == ["0", "start", "x", "low", "high", "total"]


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
    names = gluon_names.names(version)
    assert (names["load"], names["barrier"]) == (load, barrier)


@pytest.mark.parametrize("overlap", [True, False])
def test_every_name_of_a_module_is_defined(overlap: bool) -> None:
    problem = attention(128, 199, 760, causal=True, window=100)
    tree = ast.parse(emit(problem, H200, config(problem, overlap=overlap)).text)
    made = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    made |= {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    made |= {a.asname or a.name for i in ast.walk(tree) if isinstance(i, ast.ImportFrom) for a in i.names}
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert read - made <= {"range", "float"}


@pytest.mark.parametrize("group", [1, 4, 8, 16])
@pytest.mark.parametrize("consumers", [1, 2, 3])
def test_programs_cover_the_grid_once(group: int, consumers: int) -> None:
    """The text that tells a program where it stands is Python: run for every program, it names each tile once."""
    problem = attention(64, 760, 760, causal=True)
    source = emit(problem, H200, config(problem, group=group, consumers=consumers, registers=160))
    entry = next(n for n in ast.parse(source.text).body if isinstance(n, ast.FunctionDef) and n.name == source.name)
    lines = []
    for stmt in entry.body[1:]:
        lines.append(ast.unparse(stmt))
        if isinstance(stmt, ast.Assign) and isinstance(stmt.targets[0], ast.Name) and stmt.targets[0].id == "b":
            break
    body = "\n".join(lines).replace("gl.cdiv", "cdiv").replace("gl.minimum", "min")
    extents = dict(problem.dims)
    rows = 64 * consumers
    places = []
    for program in range(source.abi.tiles(extents)):
        scope = {**extents, "program": program, "TILE_M": rows, "GROUP": group, "cdiv": lambda a, b: -(-a // b)}
        exec(body, scope)
        places.append((scope["b"], scope["h"], scope["m_start"]))
    assert len(set(places)) == len(places)
    assert set(places) == {
        (b, h, m) for b in range(extents["B"]) for h in range(extents["H"]) for m in range(0, extents["M"], rows)
    }
    longest = max(m for _, _, m in places)
    assert [m for _, _, m in places[:group]] == [longest] * group  # causal programs of later rows do more, and go first
