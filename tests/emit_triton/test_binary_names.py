"""What a binary is found by on disk: its source, what compiles it, and nothing that takes long to work out."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from triton import knobs
from triton.compiler import compiler

from kpt_dsl import targets
from kpt_dsl.build import cache
from kpt_dsl.build import triton as build
from kpt_dsl.build.triton import _found_quickly, binary
from kpt_dsl.emit import Source, emit
from kpt_dsl.space import Config
from tests.emit_triton.support import linear_instance

H200 = targets.get("nvidia-h200")


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    """Binaries of this test lie in a folder of its own."""
    binary.cache_clear()
    yield
    binary.cache_clear()


def source(**knobs: int) -> Source:
    blocks = dict(block_M=32, block_N=32, block_K=32, num_warps=4, num_stages=2)
    return emit(linear_instance(64, 64, 64), H200, Config(blocks | knobs))


def name_of(one: Source, target: str = "cuda 90", tools: str = "12.8 12.9", options: str = "o", **more: Any) -> str:
    asked = object()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kpt_dsl.build.triton._nvidia_tools", lambda: tools)
        with _found_quickly(asked, one, H200.arch, nullcontext()):
            given = SimpleNamespace(target=target, add_stages=None), SimpleNamespace(hash=lambda: options)
            return str(compiler.get_cache_key(asked, *given, env_vars=more))


def test_names_differ_by_all_that_a_binary_is_made_of() -> None:
    plain = source()
    fewer = replace(plain, abi=replace(plain.abi, options=(("num_warps", 8),)))
    told = replace(plain, abi=replace(plain.abi, arguments=plain.abi.arguments[:-1]))
    names = [
        name_of(plain), name_of(source(num_warps=8)), name_of(source(block_M=64)), name_of(fewer), name_of(told),
        name_of(plain, target="cuda 100"), name_of(plain, tools="12.8 13.0"), name_of(plain, options="p"),
        name_of(plain, ENV="1"),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name_of(plain) == names[0]


@pytest.mark.parametrize("fails", [False, True])
def test_what_starts_a_kernel_is_made_while_it_compiles(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Triton makes a launcher of C for each signature, as 3.6 does; whatever fails there does so again at the launch."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    driver, made = import_module("triton.backends.nvidia.driver"), list[tuple[Any, ...]]()
    waited_for, join = threading.Event(), threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", lambda thread, *given: (waited_for.set(), join(thread, *given)))

    def module(text: str, *_: object) -> None:
        waited_for.wait(60)
        made.append((text, knobs.cache.dir))
        if fails:
            raise RuntimeError("no C compiler")

    for name, value in {"library_dirs": list, "include_dirs": [], "libraries": [], "compile_module_from_src": module}.items():
        monkeypatch.setattr(driver, name, value, raising=False)
    monkeypatch.setattr(driver, "make_launcher", lambda *given: repr(given), raising=False)
    wanted = source()
    binary(wanted, H200.arch, H200.warp_lanes)
    assert not made  # a report is all that was asked for
    binary(replace(wanted, text=wanted.text + "\n"), H200.arch, H200.warp_lanes, 0)
    assert made == [(repr(({}, wanted.abi.signature(), [])), knobs.cache.dir)]  # where the launch looks for it
    binary(wanted, H200.arch, H200.warp_lanes, 0)
    assert len(made) == 1  # it is on the disk
    binary(source(descriptors=True), H200.arch, H200.warp_lanes, 0)
    assert "True" in made[1][0]
    binary(source(num_warps=8), H200.arch, H200.warp_lanes, launched=True)
    assert len(made) == 3  # by another process, which finds it


def test_a_kernel_compiles_where_no_thread_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a process, or at the limit of what a container may start; what starts it is made at the launch then."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    binary.cache_clear()
    driver = import_module("triton.backends.nvidia.driver")
    monkeypatch.setattr(driver, "make_launcher", lambda *_: "", raising=False)
    asked = list[object]()

    def start(thread: threading.Thread) -> None:
        asked.append(thread)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert binary(source(), H200.arch, H200.warp_lanes, 0).kernel
    assert asked


def test_a_new_process_finds_a_binary_without_hashing_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    binary.cache_clear()
    made = binary(source(), H200.arch, H200.warp_lanes)

    def too_long(*_: object) -> str:
        raise AssertionError("hashed")

    binary.cache_clear()
    monkeypatch.setattr("triton.runtime.cache.triton_key", too_long)
    found = binary(source(), H200.arch, H200.warp_lanes)
    assert found.asm["cubin"] == made.asm["cubin"] and found.hash == made.hash


def test_a_binary_that_is_found_asks_no_assembler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask one for its version starts it. What is garbled and made again has the same one as what is new."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    asked: list[str] = []
    real = build.assembler
    monkeypatch.setattr(build, "assembler", lambda arch: asked.append(arch) or real(arch))

    def made() -> Any:
        binary.cache_clear()
        return binary(source(), H200.arch, H200.warp_lanes)

    first = made()
    assert asked == [H200.arch]
    assert made().hash == first.hash and asked == [H200.arch]
    Path(first.metadata_group[f"{first.name}.cubin"]).write_bytes(b"no binary")
    assert made().asm["cubin"] == first.asm["cubin"] and asked == [H200.arch] * 2


def test_of_a_binary_that_is_found_nothing_is_read_but_what_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither kpt's text, by Triton, nor the texts that its compiler made of that."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    first = binary(source(), H200.arch, H200.warp_lanes)
    assert {"source", "ttgir", "llir", "ptx", "cubin"} <= set(first.asm)
    read: list[Source] = []
    monkeypatch.setattr(build, "function", read.append)
    binary.cache_clear()
    found = binary(source(), H200.arch, H200.warp_lanes)
    assert set(found.asm) == {"cubin"} and found.kernel == first.kernel and found.metadata == first.metadata
    assert not read
    theirs = compiler.get_cache_manager(first.hash).get_group(f"{first.name}.json")
    assert theirs is None or len(theirs) > 2  # Triton's own cache is whole again


def test_assemblers_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that the user names."""
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    brought = build._nvidia_tools()
    assert len(brought.split()) == 2
    named = tmp_path / "ptxas"
    named.write_text("#!/bin/sh")
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(named))
    assert build._nvidia_tools().split() == ["9", brought.split()[1]]


def test_what_others_compile_meanwhile_keeps_tritons_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "get_cache_key", lambda src, *_, **__: f"theirs {src}")
    theirs = compiler.get_cache_key
    with _found_quickly(object(), source(), H200.arch, nullcontext()):
        assert compiler.get_cache_key("another", None, None, env_vars={}) == "theirs another"
    assert compiler.get_cache_key is theirs
