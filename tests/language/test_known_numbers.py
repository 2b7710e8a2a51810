"""Scalars that are known before a kernel runs: Python computes some of them, and must do what the device would.

Each expression is written of literals, of variables that hold them, of an extent, and of both in a loop, and must give on every
backend what NumPy gives of arrays.
"""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import kpt_dsl as kd
from tests.language.backends import BACKENDS, run
from tests.language.snippets import kernel

f, i = np.float32, np.int32
EXPRESSIONS = {
    "kd.where(~({i4} > 3), 1.0, 2.0)": 2.0,
    "kd.where(~({i4} > 4), 1.0, 2.0)": 1.0,
    "kd.where(~({i4} > 3) | ({f} < 2.0) & ~({i_7} > 0), 1.0, 2.0)": 1.0,
    "kd.where({i_7} == -7, 1.0, 2.0)": 1.0,
    "({i4} > 3).to(kd.f32)": 1.0,
    "(~({i4} > 3)).to(kd.i32)": 0,
    "{i_7} // 2": -4,
    "{i_7} // {i4}": -2,
    "{i4} // {i_7}": -1,
    "{i_7} % 3": 2,
    "{i4} % {i_7}": -3,
    "-{i_7} - {i4}": 3,
    "({i4} << 3) + ({i_7} << 1)": 32 - 14,
    "{i4} << 29": -(2**31),
    "({i4} << 32) + ({i4} << -1) + ({i_7} >> 40) + ({i_7} >> 1)": 0 + 0 - 1 - 4,
    "(3 << {i4}) + (-100 >> {i4}) + ({i4} >> {i_7})": 48 - 7 + 0,
    "({i_7} & 12) + ({i_7} | {i4}) * 100 + ({i_7} ^ {i4}) * 10000": (-7 & 12) + (-7 | 4) * 100 + (-7 ^ 4) * 10000,
    "kd.where(({i4} > 3) ^ ({i_7} > 0), 1.0, 2.0)": 1.0,
    "kd.maximum({i_7}, {i4}) + kd.minimum({i_7}, {i4})": -3,
    "kd.abs({i_7}) * 2": 14,
    "{i_7}.to(kd.f32) / {i4}": f(-7) / f(4),
    "{f}.to(kd.i32) + 0.5": 1.5,
    "(-{f}).to(kd.i32)": -1,
    "{f} * 0.1 + 0.2": f(1.7) * f(0.1) + f(0.2),
    "{f}.to(kd.bf16).to(kd.f32)": f(ml_dtypes.bfloat16(1.7)),
    "{f}.to(kd.f16).to(kd.f32)": f(np.float16(1.7)),
    "({f} + 0.1).to(kd.f8e4m3) + 1.0": 1 + f(ml_dtypes.float8_e4m3fn(1.8)),
    "{f}.to(kd.f8e4m3).to(kd.f32)": f(ml_dtypes.float8_e4m3fn(1.7)),
    "({f} * 1000).to(kd.f8e5m2).to(kd.f32)": f(ml_dtypes.float8_e5m2(1700.0)),
    "kd.exp({f}) + kd.exp2({f}) + kd.log({f}) + kd.log2({f})": np.exp(1.7) + np.exp2(1.7) + np.log(1.7) + np.log2(1.7),
    "kd.sqrt({f}) + kd.rsqrt({f})": np.sqrt(1.7) + 1 / np.sqrt(1.7),
    "kd.tanh({f}) + kd.sigmoid({f}) + kd.erf({f})": np.tanh(1.7) + 1 / (1 + np.exp(-1.7)) + 0.98379045859,
    "kd.ndtr({f}) + kd.ndtr(-2 * {f})": 0.95543453724 + 0.00033692927,
    "kd.sin({f}) + kd.cos(-{f})": np.sin(1.7) + np.cos(1.7),
    "kd.round({f}) + kd.round(-{f} * 0.25) + kd.round({i4} * 0.625)": 2 - 0 + 2,
    "kd.floor(-{f}) + kd.abs(-{f})": -2 + 1.7,
    "kd.maximum({f}, 2.0) + kd.minimum({f}, 2.0)": 3.7,
}
LITERALS = {"i4": "kd.full([], 4, kd.i32)", "i_7": "kd.full([], -7, kd.i32)", "f": "kd.full([], 1.7, kd.f32)"}
EXTENTS = {"i4": 'kd.size("M")', "i_7": '(kd.size("M") - 11)', "f": '(kd.size("M") * 0.425)'}

STRAIGHT = """
@kd.kernel(x="M", y="M")
def snippet(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        {names}
        y[m] = 0.0 * x[m] + ({value})
"""
LOOP = """
@kd.kernel(x="M", y="M")
def snippet(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for m1 in kd.sequential(kd.tile("M")):
            {names}
            found = {value}
            total += kd.sum(x[m1] * found, axis=0)
        y[m] = total
"""


def written(folder: Path, value: str, how: str, text: str) -> kd.Kernel:
    """A kernel whose ``y`` is an expression, of operands given as ``how`` says."""
    operands = EXTENTS if how == "extents" else LITERALS
    names = "pass"
    if how == "variables":
        used = [name for name in operands if f"{{{name}}}" in value]
        names = "; ".join(f"{name} = {operands[name]}" for name in used)
        operands = {name: name for name in operands}
    return kernel(folder, text.format(names=names, value=value.format(**operands)))


ABSORBED = "({f} + 1e-8 - {f}) * 1e8"


@pytest.mark.parametrize(("how", "expected"), [("literals", 1.0), ("variables", 0.0), ("extents", 0.0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_literals_are_exact_and_variables_are_float32(backend: str, how: str, expected: float, tmp_path: Path) -> None:
    y = torch.full((4,), torch.nan)
    run(written(tmp_path, ABSORBED, how, STRAIGHT), backend, torch.zeros(4), y)
    torch.testing.assert_close(y, torch.full((4,), expected))


@pytest.mark.parametrize("how", ["literals", "variables", "extents"])
@pytest.mark.parametrize("text", [STRAIGHT, LOOP], ids=["straight", "loop"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_python_knows_is_what_a_device_computes(backend: str, text: str, how: str, tmp_path: Path) -> None:
    x = torch.tensor([0.0, 0.0, 1.0, 0.0])
    wrong = []
    for value, expected in EXPRESSIONS.items():
        y = torch.full((4,), torch.nan)
        try:
            run(written(tmp_path, value, how, text), backend, x, y)
        except Exception as error:
            wrong.append(f"{value}: {error!r}")
            continue
        if not np.allclose(y, expected, rtol=2e-6, atol=1e-6):
            wrong.append(f"{value}: {y.tolist()}, expected {expected}")
    assert not wrong, "\n".join(wrong)
