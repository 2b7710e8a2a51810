"""The fourth and fifth rungs: Google's compiler takes every op, says what it needs, and its code predicts published times."""

from importlib.util import find_spec

import pytest

import kpt_dsl as kd
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt_dsl import build, targets
from kpt_dsl.build import tpu_compiler
from kpt_dsl.build.tpu_bundles import bundles
from kpt_dsl.space import Config, space
from tests.emit_pallas import instances
from tests.language import test_bits, test_bytes, test_functions

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.libtpu
@needs_libtpu
@pytest.mark.parametrize("target", ["tpu-v5e", "tpu-v6e"])
@pytest.mark.parametrize("name", instances.OPS)
def test_first_configs_compile(name: str, target: str) -> None:
    instance, chip = instances.OPS[name], targets.get(target)
    report = build.compile(instance, chip, space(instance, chip).first)
    assert report.vmem_bytes is not None
    assert 0 < report.vmem_bytes <= chip.vmem_bytes
    assert report.cycles
    assert "vst" in report.text("bundles")
    assert f"def {instance.kernel.name}(" in report.text("source")
    assert build.compile(instance, chip, space(instance, chip).first).seconds == 0  # from the cache


@pytest.mark.libtpu
@needs_libtpu
@pytest.mark.parametrize("target", ["tpu-v4", "tpu-v5p", "tpu-tpu7x"])
@pytest.mark.parametrize(
    "name", ["fp8_matmul-f8e4m3", "flash_attention-bf16-causal-masked", "quantize_rows-bf16-f8e4m3"]
)
def test_other_generations_compile(name: str, target: str) -> None:
    instance, chip = instances.OPS[name], targets.get(target)
    assert build.compile(instance, chip, space(instance, chip).first).cycles


@pytest.mark.libtpu
@needs_libtpu
@pytest.mark.parametrize("target", ["tpu-v4", "tpu-v6e"])
def test_functions_bits_and_bytes_compile(target: str) -> None:
    signed = dict.fromkeys(("wide", "total", "negated"), "i32") | {"scale": "f32", "y": "bf16"}
    for dtype in ("i8", "u8"):
        dtypes = signed | dict.fromkeys(("x", "least", "same"), dtype)
        assert kd.compile(test_bytes.computed, target, shapes={"M": 512, "N": 1000}, dtypes=dtypes).cycles
    assert kd.compile(test_bits.bits, target, shapes={"N": 1 << 16}, dtypes="i32").cycles
    assert kd.compile(test_functions.functions, target, shapes={"N": 1 << 16}, dtypes="f32").cycles


@pytest.mark.libtpu
@needs_libtpu
def test_what_does_not_fit_is_refused_with_its_size() -> None:
    instance = instances.norm(layer_norm_fwd, "f32", M=256, N=65536)
    with pytest.raises(kd.CompileError, match=r"(?i)refuses layer_norm_fwd for v4: .*vmem"):
        build.compile(instance, targets.get("tpu-v4"), Config(whole_row=True, block_M=64))


@pytest.mark.libtpu
@needs_libtpu
@pytest.mark.parametrize(
    ("target", "microseconds"),
    [("tpu-v5e", 784), ("tpu-v6e", 137.4e9 / 0.9 / 918e6)],  # jax's own Pallas matmul; nine tenths of the peak
)
def test_the_estimate_of_a_large_product_is_near_what_was_published(target: str, microseconds: float) -> None:
    chip = targets.get(target)
    report = build.compile(
        instances.linear("bf16", "none", 4096, 4096, 4096), chip, Config(block_M=1024, block_N=1024, block_K=512)
    )
    assert report.cycles is not None
    assert report.cycles / chip.clock_hz * 1e6 == pytest.approx(microseconds, rel=0.2)


@pytest.mark.libtpu
@needs_libtpu
def test_steps_that_a_causal_mask_makes_useless_are_not_counted() -> None:
    chip = targets.get("tpu-v6e")
    full, causal = (
        build.compile(
            instances.attention("bf16", causal, False, 4096, 4096, 128, 8), chip, Config(block_M=512, block_N=512)
        ).cycles
        for causal in (False, True)
    )
    assert full is not None
    assert causal is not None
    assert 0.5 < causal / full < 0.75  # half, and the masked tiles along the diagonal


@pytest.mark.libtpu
@needs_libtpu
def test_products_of_one_tile_are_made_during_the_work_of_another() -> None:
    chip, instance = targets.get("tpu-v6e"), instances.attention("bf16", False, False, 2048, 2048, 128, 8)
    alone, several = (
        build.compile(instance, chip, Config(block_M=512, block_N=512, unroll_N=unroll)).cycles for unroll in (1, 4)
    )
    assert alone
    assert several
    assert several < 0.95 * alone


@pytest.mark.libtpu
@needs_libtpu
def test_a_compiler_that_dies_takes_one_job_along() -> None:
    compiler = tpu_compiler.Compiler()
    job = {"name": "f", "text": "import os\nos.abort()", "arch": "v6e", "arguments": []}
    with pytest.raises(kd.CompileError, match="the TPU compiler aborted or did not end on f for v6e"):
        compiler.run(job)
    with pytest.raises(kd.CompileError, match="refuses f for v6e: KeyError"):
        compiler.run(job | {"text": ""})
    compiler.stop()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    version = metadata.version

    def without(package: str) -> str:
        if package == "libtpu":
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(metadata, "version", without)
    with pytest.raises(kd.MissingPackageError, match=r"needs the package 'libtpu': pip install 'kpt-dsl\[libtpu\]'"):
        build.compile(instances.OPS["rms_norm-bf16"], targets.get("tpu-v6e"), Config(whole_row=True, block_M=64))


LISTING = """\
= control target key start
LB: loop body

     0   :  { %s1 = inlined_call_operand.hbm }
   0x1   :  { %2 = sst [smem:[#allocation6]] %s1 }
   0x2 LB: > { %s30 = sadd.s32 1, %s8 }
   0x3   : > { %453 = sbr.rel (%p90) target = $region32 }
   0x4   : > { %10 = sbr.rel (%p91) target = $region3 }
   0x5   : > { %v1 = vld [vmem:[%s1]] }
   0x6   : > { %v2 = vadd.f32 %v1, %v1 }
   0x7 PF: > { %s4 = sadd.s32 1, %s3 } /* Start/End empty region 3 :: Start region 8 */
   0x8   : > { %11 = sbr.rel (!%p92) target = $region4 }
   0x9   : > { %v3 = vst [vmem:[%s1]] %v2 }
   0xa PF: > { %s5 = sadd.s32 1, %s3 } /* Start/End empty region 4 */
   0xb PF: > { %s6 = sadd.s32 1, %s3 } /* Start/End empty region 32 */
   0xc LE: { %99 = vsyncpa [#allocation4], 1 }
"""


def test_bundles_are_counted_by_conditional_part() -> None:
    assert bundles(LISTING, 0) == (10, ())
    assert bundles(LISTING, 2) == (7, (2, 1))
    assert bundles(LISTING, 3) == (10, (0, 0, 0))  # not all of them are in the code: all of it counts on every step
