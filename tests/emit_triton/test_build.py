"""Compiling generated Triton source for GPUs that are not here."""

import contextlib
import re
import threading
from pathlib import Path

import pytest

from kpt_dsl import build, targets
from kpt_dsl.build import cache
from kpt_dsl.build.triton import _Hush, binary
from kpt_dsl.errors import CompileError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.emit_triton.kernels import gelu, product, softmax
from tests.emit_triton.support import attention_instance, linear_instance

ARCHITECTURES = {
    "sm_80": "nvidia-a100", "sm_86": "nvidia-a10", "sm_89": "nvidia-l40s", "sm_90": "nvidia-h200", "sm_100": "nvidia-b200",
    "sm_120": "nvidia-rtx-5090", "gfx90a": "amd-mi250x", "gfx942": "amd-mi300x", "gfx950": "amd-mi355x",
    "gfx1100": "amd-rx-7900",
}  # fmt: skip
SMALL = dict(block_M=32, block_N=32, block_K=32, num_warps=4, num_stages=2)
WIDE = dict(
    block_M=128,
    block_N=256,
    block_K=64,
    num_warps=8,
    num_stages=3,
    descriptors=True,
    persistent=True,
    group=8,
    epilogue=2,
)


def compiled(instance: Instance, target: str = "nvidia-h200", **knobs: object) -> build.Report:
    return build.compile(instance, targets.get(target), Config(knobs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, marks=() if name in ("sm_90", "gfx942") else pytest.mark.newest, id=name)
        for name, target in ARCHITECTURES.items()
    ],
)
def test_every_architecture(target: str) -> None:
    rows = Instance.of_shapes(softmax, dict(M=37, N=760), dict(x="bf16", out="f32"))
    fp8 = Instance.of_shapes(product, dict(M=64, N=64, K=72), dict(a="f8e4m3", b="f8e5m2", y="f8e4m3"))
    for report in (
        compiled(rows, target, block_M=1, num_warps=4),
        compiled(linear_instance(37, 199, 760, "f16", activation=gelu), target, **SMALL),
        compiled(fp8, target, **SMALL),
        compiled(attention_instance(64, 100, 64, causal=True), target, block_M=32, block_N=32, num_warps=4),
    ):
        assert report.registers and report.registers > 8
        assert report.spills == 0
        assert report.target == target


def test_a_report_comes_back_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    binary.cache_clear()  # another test of this process may have compiled the same
    first = compiled(linear_instance(64, 64, 64), **SMALL)
    again = compiled(linear_instance(128, 192, 256), **SMALL)  # other shapes, equal facts
    assert first.seconds > 0
    assert again.seconds == 0
    assert again.forms == first.forms
    assert "def linear(" in again.text("source")
    assert {"source", "ttgir", "ptx", "cubin"} <= dict(again.forms).keys()


def test_hopper_product_is_asynchronous_and_keeps_tiles_out_of_registers() -> None:
    report = compiled(linear_instance(8192, 14336, 4096, activation=gelu), **WIDE)
    assert (report.spills, report.registers is not None and report.registers <= 224) == (0, True), report
    ptx = report.text("ptx")
    assert "wgmma.mma_async" in ptx and "cp.async.bulk.tensor" in ptx
    assert "ld.shared" not in ptx and "st.shared.v4" not in ptx


def test_a_descriptor_of_rank_four_costs_no_copy() -> None:
    knobs = dict(block_M=128, block_N=128, num_warps=8, num_stages=2, descriptors=True)
    report = compiled(attention_instance(4096, 4096, 128), **knobs)
    ptx = report.text("ptx")
    assert report.spills == 0
    # Queries, keys and values arrive through the copy engine and are multiplied where they lie.
    assert len(re.findall(r"cp\.async\.bulk\.tensor\.4d\.shared", ptx)) >= 3
    assert "ld.shared" not in ptx


def test_too_much_shared_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        CompileError, match=r"takes [\d,]+ bytes of shared memory, and a block on nvidia-h200 has 232,448"
    ):
        compiled(linear_instance(8192, 8192, 8192), **WIDE | {"num_stages": 5, "epilogue": 1})


def test_what_triton_refuses_is_a_compile_error_with_its_reason() -> None:
    with pytest.raises(CompileError, match=r"(?s)Triton does not compile linear for sm_90: .*nonsense"):
        compiled(linear_instance(64, 64, 64, "f32"), **SMALL, precision="nonsense")


def test_what_other_threads_print_while_a_kernel_compiles_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    other = threading.Thread(target=lambda: print("the program", flush=True))
    with contextlib.redirect_stdout(_Hush()):  # type: ignore[type-var]
        print("the compiler", flush=True)
        other.start()
        other.join()
    assert capsys.readouterr().out == "the program\n"
