"""Imports only point down: kpt -> kpt.ops -> autotune_db -> kpt_dsl; and nothing heavy is imported at import time."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each room, the folder it lies in, and the rooms above it, which it must not know.
ROOMS = {
    "kpt_dsl": (ROOT / "kpt_dsl", ("autotune_db", "kpt")),
    "autotune_db": (ROOT / "autotune_db", ("kpt",)),
    "kpt.ops": (ROOT / "ops", ("kpt.cli", "kpt.jax")),
    "kpt.jax": (ROOT / "kpt" / "jax", ("kpt.cli",)),
}

MACHINES = ("kpt_dsl.emit", "kpt_dsl.build", "kpt_dsl.runtime", "torch", "triton", "jax")

# Inside the language: the IR and its passes know no chip, no generator and no runtime; a generator knows no runtime.
STAGES = {
    "kpt_dsl.ir": ("kpt_dsl.frontend", "kpt_dsl.passes", "kpt_dsl.targets", *MACHINES),
    "kpt_dsl.frontend": ("kpt_dsl.targets", *MACHINES),
    "kpt_dsl.passes": ("kpt_dsl.targets", *MACHINES),
    "kpt_dsl.targets": MACHINES,
    "kpt_dsl.emit": MACHINES[1:],
}

CALLS = ("kpt_dsl.extents", "kpt_dsl.instance", "kpt_dsl.classes", "kpt_dsl.specialisation")

HEAVY = ("triton", "jax", "optuna", "sqlalchemy", "transformers", "matplotlib")


def modules(room: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The name and file of every module of a room."""
    for file in sorted(folder.rglob("*.py")):
        parts = [part for part in file.relative_to(folder).with_suffix("").parts if part != "__init__"]
        yield ".".join([room, *parts]), file


def imported(module: str, file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere, functions included, and the line."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: package.count(".") + 2 - node.level]
                base = ".".join([*parents, *filter(None, [base])])
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("room", ROOMS)
def test_imports_only_point_down(room: str) -> None:
    folder, above = ROOMS[room]
    found = list(modules(room, folder))
    assert found, f"no module in {folder}"
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for module, file in found
        for name, line in imported(module, file)
        if any(within(name, up) for up in above)
        or (room == "kpt.ops" and within(name, "kpt") and not within(name, "kpt.ops") and name != "kpt")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_the_compiler_keep_apart(stage: str) -> None:
    found = [(m, f) for m, f in modules("kpt_dsl", ROOT / "kpt_dsl") if within(m, stage)]
    assert found, f"no module {stage}"
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for module, file in found
        for name, line in imported(module, file)
        if any(within(name, other) for other in STAGES[stage])
    ]
    assert not wrong, "\n".join(wrong)


def test_what_writes_texts_for_gpus_knows_no_extents() -> None:
    """Typing-only imports count. One module reads facts off extents, and writes nothing."""
    writers = ("kpt_dsl.emit.triton", "kpt_dsl.emit.gluon")
    found = dict(modules("kpt_dsl", ROOT / "kpt_dsl"))
    reader = "kpt_dsl.emit.triton.facts"
    assert "kpt_dsl.extents" in {name for name, _ in imported(reader, found[reader])}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for module, file in found.items()
        if any(within(module, writer) for writer in writers) and module != reader
        for name, line in imported(module, file)
        if any(within(name, call) for call in CALLS)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_language_has_no_circle_of_imports() -> None:
    """Typing-only imports and those inside functions count: who cannot be read without the other is one module in two files."""
    files = dict(modules("kpt_dsl", ROOT / "kpt_dsl"))
    graph = {}
    for module, file in files.items():
        names = {name for name, _ in imported(module, file)} & files.keys()
        # Of ``from package import module`` only the module counts.
        graph[module] = {n for n in names if not any(within(other, n) for other in names - {n})}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["kpt", "kpt.ops", "kpt_dsl", "autotune_db", "kpt.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import torch, sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    loaded = run(code).split()
    assert module in loaded
    assert not [name for name in loaded if name.split(".")[0] in HEAVY]


def test_the_language_needs_no_torch() -> None:
    assert run("import kpt_dsl, sys; print('torch' in sys.modules)") == "False"


def test_import_kpt_is_quick() -> None:
    """At most 0.3 s of a processor above ``import torch``, on one that takes 1.5 s for that, and on slower ones in proportion;
    the best of three, since a busy machine only ever adds. Without the garbage collector: a look through torch's objects takes
    0.1 s, and when it falls due is chance. Python keeps what it has compiled, as it does unless told otherwise: to compile
    every file anew takes 0.15 s more."""
    code = """
import gc, sys, time
gc.disable()
began = time.process_time()
import torch
torchs = time.process_time() - began
sys.dont_write_bytecode = False
began = time.process_time()
import kpt, kpt.ops
print((time.process_time() - began) / max(1, torchs / 1.5))
"""
    assert min(float(run(code)) for _ in range(3)) <= 0.3
