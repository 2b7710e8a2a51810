"""The assembler that machine code for Hopper comes from, and what an older one got wrong."""

from pathlib import Path

import pytest

import kpt.ops  # noqa: F401
from kpt.ops import registry
from kpt_dsl import targets
from kpt_dsl.build.triton import _nvidia_tools, assembler, binary
from kpt_dsl.emit import emit
from kpt_dsl.space import Config, space
from tests.emit_triton.sass import lost_addresses

H200 = targets.get("nvidia-h200")
LOSING = Config({"block_N": 64, "block_M": 32, "num_warps": 4, "num_stages": 3, "group": 4, "descriptors": True})
"""With it the assembler of CUDA 12.8 lost three of 48 addresses in dk and dv of attention, where lengths are ragged."""


@pytest.mark.parametrize("length", [100, 128])
def test_products_read_their_own_operands(length: int, tmp_path: Path) -> None:
    dims = {"B": 64, "H": 16, "G": 16, "M": length, "N": length, "D": 64}
    adding = registry.get("flash_attention_backward").instances(dims, "bf16", causal=True)[4]
    assert dict(adding.specialisation.dtypes)["dq_sum"] == "f32"
    compiled = binary(emit(adding, H200, LOSING), H200.arch, H200.warp_lanes)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    assert lost_addresses(cubin) == []


def test_hopper_has_the_newer_assembler_and_others_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    nvidia = triton.knobs.nvidia
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    before = nvidia.ptxas.path
    with assembler("sm_90"):
        assert tuple(map(int, nvidia.ptxas.version.split("."))) >= (12, 9)
    for arch in ("sm_80", "sm_100", "gfx942"):
        with assembler(arch):
            assert nvidia.ptxas.path == before
    assert nvidia.ptxas.path == before


def test_an_assembler_that_the_user_names_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    named = triton.knobs.nvidia.ptxas_blackwell.path
    monkeypatch.setenv("TRITON_PTXAS_PATH", named)
    with assembler("sm_90"):
        assert triton.knobs.nvidia.ptxas.path == named


def test_the_one_that_inductor_names_is_nobodys_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It sets the variable to PyTorch's own as soon as it has compiled anything."""
    import torch
    import triton

    own = tmp_path / "bin" / "ptxas"
    own.parent.mkdir()
    own.write_text(f'#!/bin/sh\nexec {triton.knobs.nvidia.ptxas.path} "$@"\n')
    own.chmod(0o755)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(own))
    monkeypatch.setattr("kpt_dsl.build.triton._version", lambda tool: (tool.path == str(own),))
    for arch in ("sm_90", "sm_80"):
        with assembler(arch):
            assert triton.knobs.nvidia.ptxas.path != str(own)
    assert triton.knobs.nvidia.ptxas.path == str(own)
    named = _nvidia_tools()
    monkeypatch.delenv("TRITON_PTXAS_PATH")
    assert named == _nvidia_tools()


def test_a_binary_has_one_name_whichever_assembler_triton_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.nvidia import compiler

    dims = {"M": 40, "N": 96}
    (instance,) = registry.get("rms_norm").instances(dims, "bf16")
    found = []
    for said in ("ptxas of one", "ptxas of another"):
        monkeypatch.setattr(compiler, "get_ptxas_version", lambda *_, said=said: said)
        binary.cache_clear()
        source = emit(instance, H200, Config(space(instance, H200).first))
        found.append(binary(source, H200.arch, H200.warp_lanes).hash)
    assert found[0] == found[1]


def test_a_triton_that_brings_one_assembler_uses_that(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    def missing(_: object) -> None:
        raise RuntimeError("Cannot find ptxas-blackwell")

    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    monkeypatch.setattr("kpt_dsl.build.triton._version", missing)
    before = triton.knobs.nvidia.ptxas.path
    with assembler("sm_90"):
        assert triton.knobs.nvidia.ptxas.path == before
