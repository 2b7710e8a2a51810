"""A launch for other extents of a class, made of one that was prepared: the same as if it had been prepared for them."""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kpt.ops  # noqa: F401
import kpt_dsl as kd
from autotune_db.ahead import Ahead, Wanted
from kpt.ops import registry
from kpt.ops.backends import _Recorder
from kpt.ops.warm_up import _load
from kpt_dsl.classes import samples
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.runtime import triton
from kpt_dsl.runtime.triton_class import Known
from kpt_dsl.runtime.triton_launch import Launch
from tests.no_gpu import H200, pretended

Arguments = tuple[Any, ...]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretended(monkeypatch):
        yield


def seen(launch: Launch, arguments: Arguments) -> dict[str, Any]:
    """All that a launch hands over."""
    tensors = []
    for position, make in launch._tensors:
        value = make(arguments[position])
        described = ("shape", "strides", "block_shape")
        tensors.append((position, *(getattr(value, name, None) for name in described)))
    source = launch._kernel.source
    return {
        "text": source.text, "abi": source.abi, "programs": launch._programs, "numbers": launch._numbers,
        "tensors": tensors, "scalars": launch._scalars,
    }  # fmt: skip


def anew(kernel: Kernel, arguments: Arguments) -> Launch:
    instance = Instance.bind(kernel, kernel.bind(*arguments))
    return triton.prepare(instance, triton.configs.choose(instance, H200)[0], 0)


def laid_out(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """A tensor of the same shape, somehow in memory: dense, axes turned, parts of something larger, off alignment, every other
    element of a row, the same all along an axis."""
    shape, rank = tensor.shape, tensor.ndim
    match draw.randrange(8):
        case 0 if rank > 2:
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        case 1 if rank > 1:
            wide = tensor.new_empty((*shape[:-1], shape[-1] + draw.choice((1, 8, 64))))
            return wide[..., : shape[-1]]
        case 2 if rank > 2:
            return tensor.new_empty((shape[0], shape[2], 3, shape[1], *shape[3:])).select(2, 1).transpose(1, 2)
        case 3:
            return tensor.new_empty(tensor.numel() + 1)[1:].view(shape)
        case 4 if rank > 1:
            return tensor.transpose(0, 1).contiguous().transpose(0, 1)
        case 5 if rank > 0:
            return tensor.narrow(draw.randrange(rank), 0, 1).expand(shape)
        case 6 if rank > 0:
            return tensor.new_empty((*shape[:-1], 2 * shape[-1]))[..., ::2]
    return tensor


def launched(
    op: str, dims: dict[str, int], dtype: torch.dtype, layout: int, **flags: Any
) -> list[tuple[Kernel, Arguments]]:
    """The kernels of a call with their arguments; equal numbers of layouts lay all inputs out alike."""
    draw = random.Random(layout)
    arguments = registry.get(op).arguments(dims, dtype, "cpu", **flags)
    arguments = tuple(laid_out(a, draw) if isinstance(a, torch.Tensor) and layout else a for a in arguments)
    recorder = _Recorder(lambda ways: range(len(ways)))
    kernel_run = registry.get(op).kernels[0].prepare
    kernel_run.args[0](recorder, *arguments)
    return recorder.launched


CALLS: dict[str, tuple[dict[str, int], tuple[tuple[str, ...], ...], dict[str, Any]]] = {
    "rms_norm": ({"N": 256}, (("M",),), {}),
    "rms_norm_backward": ({"N": 256}, (("M",),), {}),
    "layer_norm": ({"N": 200}, (("M",),), {}),
    "layer_norm_backward": ({"N": 200}, (("M",),), {}),
    "linear_act": ({"N": 384, "K": 200}, (("M",),), {"activation": "gelu"}),
    "linear_act_backward": ({"N": 384, "K": 256}, (("M",),), {"activation": "silu"}),
    "flash_attention": ({"H": 4, "G": 2, "D": 64}, (("B",), ("M", "N")), {"causal": True}),
    "flash_attention_backward": ({"H": 2, "G": 2, "D": 32}, (("B",), ("M", "N")), {"causal": True}),
    "cross_entropy": ({"N": 1000}, (("M",),), {}),
    "cross_entropy_backward": ({"N": 1000}, (("M",),), {}),
}


BATCHES = ((1, 1), (2, 2), (3, 4), (5, 8))
LENGTHS = ((33, 64), (65, 128), (129, 256), (513, 1024))


@pytest.mark.parametrize("op", CALLS)
def test_it_is_what_would_be_prepared(op: str) -> None:
    fixed, varying, flags = CALLS[op]
    draw, known = random.Random(op), 0
    for layout in range(8):
        dtype = draw.choice((torch.bfloat16, torch.float32))
        spans = [draw.choice(BATCHES if names == ("B",) else LENGTHS) for names in varying]
        for _ in range(12):
            extents = [draw.choice((low, high, draw.randint(low, high), high - high // 4)) for low, high in spans]
            dims = fixed | {dim: n for names, n in zip(varying, extents, strict=True) for dim in names}
            for kernel, arguments in launched(op, dims, dtype, layout, **flags):
                known += any(one.at(*arguments) for one in launches(kernel, arguments))
                launch, _ = triton.prepared(kernel, arguments, 0)
                assert seen(launch, arguments) == seen(anew(kernel, arguments), arguments), (dims, layout, kernel)
    assert known > 30


def launches(kernel: Kernel, arguments: Arguments) -> list[Known]:
    """Those that may serve as others of."""
    first = next(a for a in arguments if isinstance(a, torch.Tensor))
    return triton.launches(kernel, 0, first.shape, triton.circumstances())


@kd.kernel(x="M N", up_to="M L", y="M")
def firsts(x: kd.In, up_to: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros((m,), kd.f32)
        for n in kd.sequential(kd.tile("N"), stop=kd.size("L")):
            total += kd.sum(x[m, n].to(kd.f32), axis=1)
        y[m] = total


@kd.kernel(x="M N", y="M N")
def copied(x: kd.In, y: kd.Out, by: kd.Positive, times: kd.Int, on: kd.Static) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = x[m, n].to(kd.f32) * by * times if on else x[m, n].to(kd.f32)


def check(kernel: Kernel, *arguments: Any) -> bool:
    """Whether the launch was made of a known one; it is held to one that is prepared anew."""
    made = list(launches(kernel, arguments))
    launch, _ = triton.prepared(kernel, arguments, 0)
    assert seen(launch, arguments) == seen(anew(kernel, arguments), arguments)
    return any(one.at(*arguments) for one in made)


def test_loops_that_end_at_another_dim_are_level_where_that_one_is() -> None:
    x, y = torch.empty(700, 1024), torch.empty(700)
    made = [check(firsts, x, torch.empty(700, length), y) for length in (1024, 999, 1024, 1000, 520, 768, 516, 1023)]
    assert made[-1]


@kd.kernel(x="T D", cu="C", y="T D")
def in_groups(x: kd.In, cu: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("T", starts=cu)):
        y[m, :] = x[m, :].to(kd.f32) * cu[m.group]


def test_launches_have_a_place_for_each_tile_of_each_group() -> None:
    made = []
    for rows, ends in ((1000, 40), (999, 33), (640, 64), (513, 41), (1024, 48)):
        x = torch.empty(rows, 64)
        made.append(check(in_groups, x, torch.empty(ends, dtype=torch.int32), torch.empty_like(x)))
    assert made[-1]
    without = []
    for rows in (1000, 1016, 520, 600):  # no group, and no program
        x = torch.empty(rows, 64)
        without.append(check(in_groups, x, torch.empty(1, dtype=torch.int32), torch.empty_like(x)))
    assert any(without)


def test_offsets_that_need_more_bits_have_launches_of_their_own() -> None:
    """Of one class 1024 rows of 2**20 elements reach 2 GiB, and 600 do not."""
    for rows in (600, 1024, 700, 1023, 513):
        x = torch.empty(rows, 1 << 20, dtype=torch.bfloat16)  # no page of it is ever touched
        check(copied, x, x, 1.0, 1, True)


def test_an_output_whose_elements_overlap_is_refused_whatever_is_known() -> None:
    memory = torch.empty(1024 * 1024)
    for columns in (600, 640, 700):
        y = memory.as_strided((columns, 64), (1, 700))
        check(copied, torch.empty(columns, 64), y, 1.0, 1, True)
    with pytest.raises(kd.InputError, match="one place in memory"):
        triton.prepared(copied, (torch.empty(800, 64), memory.as_strided((800, 64), (1, 700)), 1.0, 1, True), 0)


def test_numbers_and_statics_are_looked_at_as_when_they_are_bound() -> None:
    def call(rows: int, *rest: Any) -> bool:
        return check(copied, torch.empty(rows, 64), torch.empty(rows, 64), *rest)

    assert not call(601, 1.0, 1, True)
    assert call(607, 2.0, -3, True)
    assert not call(605, 1.0, 1, False)
    assert call(607, 1.0, 1, False)
    for rest in (
        (0.0, 1, True),
        (-1.0, 1, True),
        (float("nan"), 1, True),
        (1.0, 2**31, True),
        (1.0, 1.5, True),
        ("1", 1, True),
    ):
        with pytest.raises(kd.InputError):
            call(604, *rest)
    with pytest.raises(kd.InputError, match="M is 605"):
        triton.prepared(copied, (torch.empty(605, 64), torch.empty(606, 64), 1.0, 1, True), 0)
    with pytest.raises(kd.InputError):
        triton.prepared(copied, (torch.empty(605), torch.empty(605), 1.0, 1, True), 0)


def test_of_several_launches_those_that_serve_most_calls_are_asked_first() -> None:
    def of(rows: int) -> Arguments:
        return torch.empty(rows, 64), torch.empty(rows, 64), 1.0, 1, True

    for rows in (999, 1024):  # ragged, and level
        triton.prepared(copied, of(rows), 0)
    known = launches(copied, of(999))
    assert len(known) == 2 and known[0].at(*of(999)) is None
    triton.prepared(copied, of(997), 0)
    assert len(known) == 2 and known[0].at(*of(999)) is not None


FACTOR = 2.0


@kd.kernel(x="M N", y="M N")
def scaled(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = x[m, :] * FACTOR


def test_a_launch_serves_no_other_length_where_names_mean_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(rows: int) -> str:
        launch, _ = triton.prepared(scaled, (torch.empty(rows, 64), torch.empty(rows, 64)), 0)
        return str(launch._kernel.source.text)

    first = text(801)
    assert text(803) == first and "2.0" in first
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert text(805) == first.replace("2.0", "3.0")


def test_a_kernel_that_is_called_itself_prepares_nothing_for_a_known_class(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Instance] = []
    real = triton.prepare

    def noted(instance: Instance, *rest: Any) -> Launch:
        prepared.append(instance)
        return real(instance, *rest)

    monkeypatch.setattr(triton, "prepare", noted)
    monkeypatch.setattr(triton, "_gpu", lambda _: 0)
    monkeypatch.setattr(triton, "_device", lambda _: SimpleNamespace(type="cuda", index=0))

    def call(rows: int, **changed: Any) -> int:
        before = len(prepared)
        given = {"x": torch.empty(rows, 601), "up_to": torch.empty(rows, 600), "y": torch.empty(rows)} | changed
        firsts(**given, backend="triton")
        return len(prepared) - before

    assert [call(rows) for rows in (701, 703, 701, 1001)] == [1, 0, 0, 0]
    assert call(1100) == 1  # of another class
    assert call(705, config={"num_warps": 8}) == 1
    with pytest.raises(kd.InputError, match="requires grad"):
        call(707, x=torch.empty(707, 601, requires_grad=True))
    negated = torch.empty(707, 601, dtype=torch.complex64).conj().imag
    assert negated.is_neg() and call(707, x=negated) == 1
    freed = torch.empty(709, 601)
    freed.untyped_storage().resize_(0)
    for nowhere in (
        freed,
        torch.empty(709, 601).to_sparse(),
        torch.empty(709, 601, device="meta"),
        torch.empty(709),
        "x",
    ):
        with pytest.raises(kd.InputError, match="x "):
            call(709, x=nowhere)
    with kd.checking():  # whose launches are others
        assert call(709) == 1
    assert call(711) == 1 and call(713) == 0


def test_after_warming_up_no_length_of_a_class_prepares_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(7)
    given = [launched("flash_attention", {"B": 2, "H": 4, "G": 2, "D": 64, "M": n, "N": n}, torch.bfloat16, 0, causal=True)
             for n in [700, *(draw.randint(513, 768) for _ in range(200))]]  # fmt: skip
    (kernel, first), *_ = given[0]
    instance = Instance.bind(kernel, kernel.bind(*first))
    _load(Ahead([Wanted(one, triton.configs.choose(one, H200)[0]) for one in samples(instance, H200)]), H200, 0)

    def stalled(instance: Instance, *_: Any) -> Launch:
        raise AssertionError(f"{instance} is prepared when it is called")

    monkeypatch.setattr(triton, "prepare", stalled)
    for ((kernel, arguments),) in given:
        triton.prepared(kernel, arguments, 0)
