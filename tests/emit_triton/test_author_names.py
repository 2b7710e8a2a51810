"""Whatever an author calls things, and wherever the file lies: names that generated modules have of their own give way."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.runtime import numpy as on_numpy
from kpt_dsl.runtime import pallas as on_pallas
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import Config, space

TEXT = """
import kpt_dsl as kd


@kd.kernel({x}="{M} {N}", {w}="{N}", {y}="{M} {N}", {s}="{M}")
def {kernel}({x}: kd.In, {w}: kd.In, {y}: kd.Out, {s}: kd.Out, {shift}: kd.Int) -> None:
    for {m} in kd.parallel(kd.tile("{M}")):
        {total}, {last} = kd.zeros([{m}]), {shift} + 20
        for {n} in kd.sequential(kd.tile("{N}"), stop={last}):
            {part} = {x}[{m}, {n}]
            {seen} = {n}.index[None, :] <= {m}.index[:, None] + {shift}
            {total} += kd.sum(kd.where({seen}, {part}, 0.0), axis=1)
        for {n2} in kd.sequential(kd.tile("{N}")):
            {out} = {x}[{m}, {n2}] * {w}[{n2}][None, :] + {total}[:, None]
            {y}[{m}, {n2}] = kd.tanh({out}) + kd.sigmoid({out}) + ({n2}.index // 2 % 3)[None, :]
        {s}[{m}] = {total}
"""

PLAIN = dict(x="x", w="w", y="y", s="s", shift="shift", kernel="kernel", m="m", n="n", n2="n2", M="M", N="N", total="total",
             last="last", part="part", seen="seen", out="out")  # fmt: skip


def load(file: Path, text: str, name: str) -> Kernel:
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("authored", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name)
    assert isinstance(found, Kernel)
    return found


@pytest.mark.parametrize(
    "names",
    [
        {"y": "program", "x": "programs", "shift": "tl", "m": "triton", "w": "M_"},
        {"s": "program", "total": "tile", "n": "np", "n2": "range", "last": "slice"},
        {"kernel": "sigmoid", "M": "indices", "N": "length", "part": "tiles", "out": "tanh"},
        {"kernel": "row", "n": "scalars", "m": "_", "out": "column", "seen": "nearest", "w": "jnp"},
        {"x": "x", "w": "x_2", "y": "x_ref", "s": "x_2_ref", "shift": "x_kept_ref"},
        {"M": "np", "N": "print", "m": "M", "n": "N", "total": "block_np", "last": "block_print"},
        {
            "last": "n_stop",
            "total": "n_clear_stop",
            "part": "n_bounds",
            "seen": "n_valid",
            "out": "n2_start",
            "s": "n_last",
        },
        {"M": "x", "N": "y", "m": "x_start", "total": "total_", "last": "total_scratch", "out": "step", "n2": "clear"},
        {"M": "block_N", "total": "max", "last": "sum", "part": "min", "seen": "float", "w": "math", "out": "next"},
        {"x": "x_desc", "y": "x_base", "w": "x_tile", "M": "BLOCK_M", "N": "BLOCK_N", "out": "m_index", "s": "m_tiles"},
    ],
    ids=str,
)
def test_names_do_not_meet(tmp_path: Path, names: dict[str, str]) -> None:
    names = PLAIN | names
    kernel = load(tmp_path / "authored.py", TEXT.format(**names), names["kernel"])
    torch.manual_seed(0)
    x, w, shift = torch.randn(5, 40), torch.randn(40), 3
    rows, columns = torch.arange(5)[:, None], torch.arange(40)[None, :]
    total = torch.where((columns <= rows + shift) & (columns < shift + 20), x, 0.0).sum(1)
    out = x * w + total[:, None]
    expected = out.tanh() + out.sigmoid() + columns // 2 % 3
    blocks = [f"block_{names[dim]}" for dim in ("M", "N")]
    for backend in ("numpy", "triton", "pallas"):
        given: dict[str, Any] = {names["x"]: x, names["w"]: w, names["shift"]: shift}
        given |= {names["y"]: torch.full((5, 40), 7.0), names["s"]: torch.full((5,), 7.0)}
        instance = Instance.bind(kernel, given)
        if backend == "numpy":
            on_numpy.run(instance, given, Config(dict.fromkeys(blocks, 8)))
        elif backend == "triton":
            interpret_for(
                targets.get("nvidia-h200"), instance, given, Config(dict.fromkeys(blocks, 8)) | {"num_warps": 4}
            )
        else:
            on_pallas.run(instance, given, Config(dict(zip(blocks, (8, 128), strict=True))))
        torch.testing.assert_close(given[names["y"]], expected, msg=lambda text, b=backend: f"{b}: {text}")
        torch.testing.assert_close(given[names["s"]], total, msg=lambda text, b=backend: f"{b}: {text}")


PRODUCT = """
import kpt_dsl as kd


@kd.kernel({x}="M {K}", {w}="N {K}", {bias}="N", {y}="M N")
def product({x}: kd.In, {w}: kd.In, {bias}: kd.In, {y}: kd.Out) -> None:
    for {m}, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        {acc} = kd.zeros([{m}, n])
        for k in kd.sequential(kd.tile("{K}")):
            {acc} = kd.dot({x}[{m}, k], {w}[n, k].T, {acc})
        {y}[{m}, n] = {acc} + {bias}[n][None, :]
"""


@pytest.mark.parametrize(
    "names",
    [
        {"bias": "PRODUCT_64", "K": "SHARED_16BIT_128B", "acc": "consumer", "x": "program", "y": "programs"},
        {"acc": "sum", "bias": "max", "w": "gl", "m": "i", "K": "SLOTS", "x": "x_ring", "y": "x_ready"},
        {"acc": "next", "bias": "step", "w": "slot", "x": "tma", "y": "y_tile", "K": "k_begin"},
    ],
    ids=str,
)
def test_names_in_warp_specialised_modules(tmp_path: Path, names: dict[str, str]) -> None:
    names = {"x": "x", "w": "w", "bias": "bias", "y": "y", "m": "m", "acc": "acc", "K": "K"} | names
    kernel = load(tmp_path / "authored.py", PRODUCT.format(**names), "product")
    torch.manual_seed(0)
    x, w, bias = (torch.randn(shape).bfloat16() for shape in ((70, 128), (64, 128), (64,)))
    given = {names["x"]: x, names["w"]: w, names["bias"]: bias, names["y"]: torch.zeros(70, 64).bfloat16()}
    instance, target = Instance.bind(kernel, given), targets.get("nvidia-h200")
    config = next(c for c in space(instance, target).firsts if c.get("schedule") == "warp_specialised")
    interpret_for(target, instance, given, config)
    expected = (x.double() @ w.double().T + bias.double()).bfloat16()
    torch.testing.assert_close(given[names["y"]], expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "file", ['a"""b.py', "back\\slash\\.py", "new\nline.py", "\\N{x}.py", 'quote".py', "sep\u2028.py"]
)
@pytest.mark.parametrize("option", ["plain", 'q"""q', "end\\", "\n"])
def test_nothing_ends_a_docstring_or_a_comment(tmp_path: Path, file: str, option: str) -> None:
    names = {"x": "x", "w": "w", "bias": "bias", "y": "y", "m": "m", "acc": "acc", "K": "K"}
    chosen = f"        if kd.choice('mode', {option!r}, 'other'):  # \"\"\" \\ \u2028 end\n            "
    text = PRODUCT.format(**names).replace("        y[m, n] = ", f"{chosen}y[m, n] = ")
    kernel = load(tmp_path / file, text, "product")
    instance = Instance.of_shapes(kernel, {"M": 256, "N": 256, "K": 256}, dict.fromkeys(kernel.tensors, "bf16"))
    for name in ("nvidia-h200", "tpu-v6e", "cpu"):
        target = targets.get(name)
        for config in space(instance, target).firsts:
            compile(emit(instance, target, config).text, name, "exec")
