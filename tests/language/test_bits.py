"""Operations on the bits of whole numbers: what Python's integers give, cut to the type's width, on every backend."""

import itertools
import re
from pathlib import Path

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import arithmetic, ir
from kpt_dsl.dtypes import DType, i32, i64
from kpt_dsl.passes.intervals import of_two
from tests.language.backends import BACKENDS, run
from tests.language.snippets import lower

INTEGERS = {"i32": (i32, torch.int32), "i64": (i64, torch.int64)}


@kd.kernel(a="N", b="N", both="N", either="N", one="N", left="N", right="N")
def bits(a: kd.In, b: kd.In, both: kd.Out, either: kd.Out, one: kd.Out, left: kd.Out, right: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        both[n] = a[n] & b[n]
        either[n] = a[n] | b[n]
        one[n] = a[n] ^ b[n]
        left[n] = a[n] << b[n]
        right[n] = a[n] >> b[n]


@kd.kernel(a="N", b="N", both="N", either="N", one="N", left="N", right="N")
def one_by_one(a: kd.In, b: kd.In, both: kd.Out, either: kd.Out, one: kd.Out, left: kd.Out, right: kd.Out) -> None:
    for n in kd.parallel("N"):
        both[n] = a[n] & b[n]
        either[n] = a[n] | b[n]
        one[n] = a[n] ^ b[n]
        left[n] = a[n] << b[n]
        right[n] = a[n] >> b[n]


def meant(op: str, a: int, b: int, dtype: DType) -> int:
    """Said by integers without a width; a count that is none shifts every bit out."""
    count = b if 0 <= b < dtype.bits else dtype.bits
    found = {"and": a & b, "or": a | b, "xor": a ^ b, "shl": a << count, "shr": a >> count}[op]
    low = arithmetic.limits(dtype)[0]
    return (found - low) % (1 << dtype.bits) + low


OPS = ("and", "or", "xor", "shl", "shr")


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("kernel", [bits, one_by_one], ids=lambda k: k.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_loaded_numbers(backend: str, kernel: kd.Kernel, dtype: str) -> None:
    kind, torch_kind = INTEGERS[dtype]
    low, high = arithmetic.limits(kind)
    numbers = (0, 1, -1, 5, -7, 123456789, low, high)
    counts = (0, 1, 5, kind.bits - 1, kind.bits, kind.bits + 1, 2 * kind.bits, -1, -5, low, high)
    pairs = list(itertools.product(numbers, counts))
    a, b = (torch.tensor(side, dtype=torch_kind) for side in zip(*pairs, strict=True))
    outputs = [torch.full_like(a, 77) for _ in OPS]
    if backend == "pallas" and dtype == "i64":
        with pytest.raises(kd.TargetError, match=r"computes with int64 \(line \d+: both\[n\] = a\[n\] & b\[n\]\)"):
            run(kernel, backend, a.clamp(-9, 9), b.clamp(-9, 9), *outputs)
        return
    run(kernel, backend, a, b, *outputs)
    for op, output in zip(OPS, outputs, strict=True):
        assert output.tolist() == [meant(op, *pair, kind) for pair in pairs], op


@kd.kernel(x="N", y="N", odd="N")
def mixed(x: kd.In, y: kd.Out, odd: kd.Out, by: kd.Int) -> None:
    """Scalars beside tiles, literals on either side, augmented assignments, conditions."""
    for n in kd.parallel(kd.tile("N")):
        v = x[n] ^ (by << 2)
        v <<= 3
        v |= 1 << (n.index & 7)
        v ^= 5 >> by
        v &= -kd.size("N") - 1
        v >>= 1
        y[n] = v
        odd[n] = ((x[n] & 1) == 1) ^ (n.index > 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by", [3, 0, -1, 2**31 - 1])
def test_scalars_literals_and_augmented_forms(backend: str, by: int) -> None:
    """A shift to the left drops bits; it is not refused, as arithmetic that leaves its type is."""
    x = torch.arange(-20, 20, dtype=torch.int32) * 1234567
    y, odd = torch.empty_like(x), torch.empty(40, dtype=torch.bool)
    run(mixed, backend, x, y, odd, by)
    for i, (given, found) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        v = meant("shl", given ^ meant("shl", by, 2, i32), 3, i32) | 1 << (i & 7)
        assert found == ((v ^ meant("shr", 5, by, i32)) & ~40) >> 1
    assert odd.tolist() == [(v % 2 == 1) ^ (i > 3) for i, v in enumerate(x.tolist())]


@kd.kernel(x="FOUR", y="N")
def within(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel("N"):
        y[n] = x[n & 3] + x[n & 2 | 1] + x[(n & 7) >> 1] + x[((n & 1) << 1) ^ 1]


def test_an_index_made_of_bits_is_seen_to_be_in_its_dim() -> None:
    """Otherwise each would be looked at while the kernel runs, by ``at``."""
    assert "at(" not in kd.source(within, "cpu", shapes={"FOUR": 4, "N": 1000}, dtypes="f32")
    x, y = torch.tensor([1.0, 10.0, 100.0, 1000.0]), torch.empty(9)
    for backend in BACKENDS:
        run(within, backend, x, y)
        assert y.tolist() == [x[n & 3] + x[n & 2 | 1] + x[(n & 7) >> 1] + x[(n & 1) * 2 ^ 1] for n in range(9)]


def test_intervals_hold_what_numbers_give() -> None:
    """And no more than is said: the least power of two, or an operand that is not negative."""
    ends = (-9, -8, -1, 0, 1, 3, 4, 7, 70)
    intervals = [(a, b) for a in ends for b in ends if a <= b and b - a < 12] + [(69, 70), (-9, 70)]
    for op, a, b in itertools.product(OPS, intervals, intervals):
        found = of_two(op, a, b)
        if found is None:
            assert op == "shl"
            assert b[0] < 0 or b[1] > 63
            continue
        for x, y in itertools.product(range(a[0], a[1] + 1), range(b[0], b[1] + 1)):
            value = arithmetic.evaluate(op, x, y)
            assert value is not None
            assert found[0] <= value <= found[1], (op, a, b, x, y)
    assert of_two("and", (-9, 70), (0, 7)) == (0, 7)
    assert of_two("or", (0, 5), (2, 9)) == (0, 15)
    assert of_two("xor", (-9, 5), (0, 3)) == (-16, 15)
    assert of_two("shr", (-9, 70), (1, 3)) == (-5, 35)


@kd.kernel(x="N", quotient="N", rest="N", place="N")
def divided(x: kd.In, quotient: kd.Out, rest: kd.Out, place: kd.Out, by: kd.Static) -> None:
    for n in kd.parallel(kd.tile("N")):
        quotient[n] = x[n] // by
        rest[n] = x[n] % by
        place[n] = n.index // by * by + n.index % by


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_division_by_powers_of_two_rounds_down(backend: str, dtype: str) -> None:
    kind, torch_kind = INTEGERS[dtype]
    if backend == "pallas" and dtype == "i64":
        return  # refused, as all arithmetic in 64 bits
    numbers = [*range(-20, 21), *arithmetic.limits(kind), 123456789, -123456789]
    x = torch.tensor(numbers, dtype=torch_kind)
    for by in (1, 2, 8, 1 << 30, 3, -8):
        quotient, rest, place = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        run(divided, backend, x, quotient, rest, place, by)
        assert quotient.tolist() == [n // by for n in numbers]
        assert rest.tolist() == [n % by for n in numbers]
        assert place.tolist() == list(range(len(numbers)))


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x", "tpu-v6e"])
def test_division_by_powers_of_two_is_written_as_shifts_and_masks(target: str) -> None:
    """Not by others, and not by negative ones, which round otherwise."""

    def bits_of(by: int) -> list[str]:
        text = kd.source(divided, target, shapes={"N": 1000}, dtypes="i32", by=by)
        return re.findall(r">> \d+|& -?\d+", re.sub("#.*", "", text))

    assert bits_of(8) == [">> 3", "& 7"] * 2
    assert bits_of(1) == [">> 0", "& 0"] * 2
    assert bits_of(3) == bits_of(-8) == bits_of(12) == []


def test_numbers_are_folded(tmp_path: Path) -> None:
    kernel = lower(tmp_path, "for m in kd.parallel(kd.tile('M')):\n    row[m] = row_of(kd.full([], 6, kd.i32) << 30)"
                   .replace("row_of", "0.5 * "))  # fmt: skip
    assert any(isinstance(e, ir.Const) and e.value == -(2**31) * 0.5 for e in ir.every_expr(kernel.body))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x[m, :] & 1", r"& takes two whole numbers or two conditions, but got bf16\[m, N\] and 1"),
        ("(ids[m] > 1) | 1", r"\| takes two whole numbers or two conditions, but got bool\[m\] and 1"),
        ("(ids[m] > 1) << 1", r"<< of bool\[m\]: conditions have no arithmetic"),
        ("ids[m] >> 1.0", r">> takes two whole numbers or two conditions, but got i32\[m\] and 1.0"),
    ],
)
def test_what_has_no_bits_is_refused(value: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(kd.KernelError, match=said):
        lower(tmp_path, f"for m in kd.parallel(kd.tile('M')):\n    v = {value}\n    row[m] = 1.0")


@pytest.mark.parametrize("target", ["nvidia-h200", "nvidia-a100", "amd-mi300x", "amd-rx-7900"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_they_compile(target: str, dtype: str) -> None:
    """With the counts looked at: what the machines make of others differs."""
    report = kd.compile(bits, target, shapes={"N": 1 << 20}, dtypes=dtype)
    assert not report.spills
    assert len(re.findall(r"shift_(?:left|right)\(\w+, \w+, \d+\)", report.text("source"))) == 2
