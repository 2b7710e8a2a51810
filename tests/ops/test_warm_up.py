"""What a program will call, compiled before it does; tests/classes/test_known_launches.py has that it then prepares nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kpt
from autotune_db.ahead import compile_ahead
from kpt.ops import Call, warm_up
from kpt.ops.registry import get
from kpt_dsl import configs, targets
from kpt_dsl.build import cache
from kpt_dsl.build import triton as build
from kpt_dsl.classes import samples
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from tests.autotune_db.kernels import softmax

H200 = targets.get("nvidia-h200")


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    """Binaries of these tests lie in folders of their own."""
    build.binary.cache_clear()
    yield
    build.binary.cache_clear()


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


NORM = Call("rms_norm", (meta(700, 64), (64,), meta(64), None, 0.0))


def test_all_texts_of_a_class_are_on_disk_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    told: list[tuple[int, int]] = []
    wrong = Call("rms_norm", (meta(700, 64), (65,), None, None, 0.0))
    warmed = warm_up([NORM, wrong], target="nvidia-h200", processes=1, watch=lambda done, of: told.append((done, of)))
    assert (
        (warmed.calls, warmed.binaries) == (2, told[-1][1])
        and told[0] == (0, told[-1][1])
        and told[-1][0] == told[-1][1]
    )
    assert len(warmed.failed) == 1 and "normalized_shape" in str(warmed)
    build.binary.cache_clear()

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("triton.compiler.compiler.ASTSource.make_ir", too_late)
    (instance,) = NORM.instances(H200)
    for rows in (513, 600, 768, 1023, 1024):
        other = instance.with_dims(M=rows)
        build.binary(emit(other, H200, configs.choose(other, H200)[0]), H200.arch, H200.warp_lanes)


@pytest.mark.parametrize(
    "op", ["flash_attention", "flash_attention_backward", "linear_act_backward", "layer_norm_backward"]
)
@pytest.mark.parametrize("length", [40, 700, 3000])
def test_samples_have_the_texts_of_every_length(op: str, length: int) -> None:
    dims = (
        {"B": 3, "H": 8, "G": 2, "D": 64, "M": length, "N": length}
        if "attention" in op
        else {"M": length, "N": 384, "K": 256}
    )
    for instance in get(op).instances({dim: dims[dim] for dim in get(op).dims}, "bf16"):
        made = {_text(one) for one in samples(instance, H200)}
        low, high = 1 << (length - 1).bit_length() - 1, 1 << (length - 1).bit_length()
        lengths = (
            {n for step in (1, 7, 16, 64, 96) for n in range(high, low, -step)}
            if high < 2000
            else range(high, low, -31)
        )
        varying = [dim for dim, extent in instance.extents.dims if extent == length]
        for n in lengths:
            other = instance.with_dims(**dict.fromkeys(varying, n))
            if dict(samples_class(other)) == dict(samples_class(instance)):
                assert _text(other) in made, f"{other}"


def samples_class(instance: Instance) -> tuple[tuple[str, object], ...]:
    from kpt_dsl.classes import Class

    return Class.of(instance).spans


def _text(instance: Instance) -> tuple[str, object]:
    source = emit(instance, H200, configs.choose(instance, H200)[0])
    return source.text, source.abi


def test_kernels_of_ones_own_and_what_no_target_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    fits, not_held = (
        Instance.of_shapes(softmax, {"M": 700, "N": n}, dict.fromkeys(softmax.tensors, "f32")) for n in (64, 1 << 22)
    )
    made = compile_ahead([fits, not_held], H200, processes=1)
    assert made.binaries >= 1 and len(made.failed) == 1 and "N=4194304" in made.failed[0]


def test_without_a_gpu_the_target_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(kpt.InputError, match=r"target is None, .*target='nvidia-h200'"):
        warm_up([NORM])
    with pytest.raises(kpt.TargetError):
        warm_up([NORM], target="nvidia-h2000")
