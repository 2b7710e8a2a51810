"""Attention's gradients have two ways: which one a call takes, and that the one that adds up dq gives the same gradients."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import kpt
from autotune_db import environment, location, lookup
from autotune_db.entry import Entry
from autotune_db.key import key_of
from autotune_db.store import Store
from kpt.ops import backends, flash_attention, prefer
from kpt.ops.fingerprint import fingerprint
from kpt.ops.flash_attention.backward import flash_attention_backward
from kpt.ops.registry import get
from kpt_dsl import runtime, targets
from kpt_dsl.errors import TargetError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Space, space
from kpt_dsl.targets import Target
from tests.autotune_db.entries import add
from tests.ops.test_flash_attention_backward import OPTIONS, expected, heads_last, lengths, randn
from tests.tolerances import assert_close

CPU = targets.get("cpu")
APART = ["rows", "dq", "dkdv"]
TOGETHER = ["rows", "dkdv", "scale"]
DO, Q, K, V = randn(1, 3, 5, 16), randn(1, 3, 5, 16), randn(1, 3, 7, 16), randn(1, 3, 7, 16)
OUT, LSE = flash_attention(Q, K, V, return_lse=True)


def backward() -> list[torch.Tensor]:
    return flash_attention_backward(DO, Q, K, V, OUT, LSE)


def instances() -> list[Instance]:
    """Of both ways, one after the other."""
    given = (DO, Q, K, V, OUT, LSE, None, False, None, None, None, (True,) * 3)
    return get("flash_attention_backward").record(given)


Tuned = Callable[..., None]


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tuned]:
    """``tuned(times)`` stores an entry for each instance; None leaves one out. ``heads``: how many each was timed at."""
    monkeypatch.setenv(location.VARIABLE, str(tmp_path / "configs.sqlite"))
    lookup.forget()

    def store(
        times: list[float | None],
        origin: Any = "measured",
        found: list[Instance] | None = None,
        heads: Sequence[int | None] = (None,) * 6,
    ) -> None:
        with Store() as into:
            for mine, instance, time, many in zip(instances(), found or instances(), times, heads, strict=True):
                if time is not None:
                    key = key_of(instance, environment.device_name(CPU), "numpy", environment.compiler("numpy"))
                    at = tuple((dim, many if dim in ("H", "G") else n) for dim, n in instance.extents.dims) if many else ()
                    add(into, Entry(key, space(mine, CPU).first, origin, time, extents=at))
        lookup.forget()

    yield store
    lookup.forget()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were run, by the ends of their names."""
    names: list[str] = []
    real = runtime.run

    def noted(instance: Instance, *rest: Any) -> Any:
        names.append(instance.kernel.name.removeprefix("flash_attention_"))
        return real(instance, *rest)

    monkeypatch.setattr(runtime, "run", noted)
    return names


@contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------ the choice
@pytest.mark.parametrize(
    ("times", "taken"),
    [([1, 5, 5, 2, 5, 1], TOGETHER), ([1, 5, 2, 2, 5, 2], APART), ([1, 5, 2, 1, 5, 2], APART)],
    ids=["together", "apart", "no difference"],
)
def test_the_way_that_was_measured_to_be_quicker(
    times: list[float | None], taken: list[str], tuned: Tuned, launched: list[str]
) -> None:
    tuned(times)
    with prefer("numpy"):
        backward()
        explained = kpt.ops.explain("flash_attention_backward", DO, Q, K, V, OUT, LSE)
    assert launched == taken
    assert [k.kernel.removeprefix("flash_attention_") for k in explained.kernels] == taken


@pytest.mark.parametrize(
    ("heads", "taken"),
    [
        ([4, 4, 4, 3, 3, 3], APART),  # for three heads 9, of 12 for four, and 10
        ([4, 4, 3, 4, 3, 3], TOGETHER),  # 10 and 9.25
        ([4, 4, 4, 4, 4, 4], TOGETHER),  # 12 and 10 for four
        ([None, None, None, 3, 3, 3], TOGETHER),
        ([4, None, None, 3, 3, 3], TOGETHER),  # 11, where what is not known counts as it is, and 10
    ],
)
def test_times_are_compared_at_like_extents(
    heads: list[int | None], taken: list[str], tuned: Tuned, launched: list[str]
) -> None:
    """A call of three heads has entries that were timed at three or four, which are one bucket."""
    tuned([4, 4, 4, 3, 4, 3], heads=heads)
    with prefer("numpy"):
        backward()
    assert launched == taken


def test_times_that_no_model_can_scale_count_as_they_are(
    tuned: Tuned, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(instance: Instance, target: Target) -> Space:
        raise TargetError("no config of it is legal")

    monkeypatch.setattr(backends, "space", none)
    tuned([4, 4, 4, 3, 4, 3], heads=[4, 4, 4, 3, 3, 3])
    with prefer("numpy"):
        backward()
    assert launched == TOGETHER


def test_a_new_length_asks_no_model_where_all_were_timed_together(
    tuned: Tuned, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of every kernel at two places would take milliseconds of it."""
    tuned([4, 4, 4, 3, 4, 3], heads=[4] * 6)
    monkeypatch.setattr(backends, "space", lambda *_: pytest.fail("a model was asked"))
    with prefer("numpy"):
        backward()
    assert launched == TOGETHER


@pytest.mark.parametrize("missing", range(6))
def test_the_first_way_while_anything_was_not_measured(missing: int, tuned: Tuned, launched: list[str]) -> None:
    tuned([None if i == missing else time for i, time in enumerate([9, 9, 9, 1, 1, 1])])
    with prefer("numpy"):
        backward()
    assert launched == APART


def test_predictions_do_not_count(tuned: Tuned, launched: list[str]) -> None:
    tuned([9, 9, 9, 1, 1, 1], "predicted")
    with prefer("numpy"):
        backward()
    assert launched == APART


def test_measurements_of_other_shapes_do_not_count(tuned: Tuned, launched: list[str]) -> None:
    """They give their configs, not their times."""
    longer = [p.with_dims(M=30) for p in instances()]
    tuned([9, 9, 9, 1, 1, 1], found=longer)
    with prefer("numpy"):
        backward()
        kernels = kpt.ops.explain("flash_attention_backward", DO, Q, K, V, OUT, LSE).kernels
    assert all("sibling" in k.provenance for k in kernels)
    assert launched == APART


def test_tuning_changes_the_way_of_calls_that_are_remembered(tuned: Tuned, launched: list[str]) -> None:
    with prefer("numpy"):
        backward()
        tuned([9, 9, 9, 1, 1, 1])
        backward()
    assert launched == APART + TOGETHER


def test_determinism_is_asked_for_at_each_call(tuned: Tuned, launched: list[str]) -> None:
    """A call that was served in one way is served in the other once the flag has changed."""
    tuned([9, 9, 9, 1, 1, 1])
    with prefer("numpy"):
        for on in (False, True, False, True):
            with deterministic(on):
                backward()
                if on:
                    assert [p.kernel.name.removeprefix("flash_attention_") for p in instances()] == APART
    assert launched == (TOGETHER + APART) * 2


def test_a_gradient_less_leaves_one_way(tuned: Tuned, launched: list[str]) -> None:
    tuned([9, 9, 9, 1, 1, 1])
    with prefer("numpy"):
        flash_attention_backward(DO, Q, K, V, OUT, LSE, needed=(True, True, False))
    assert launched == APART


def test_a_tpu_has_the_first_way_whatever_was_measured() -> None:
    names = [p.kernel.name.removeprefix("flash_attention_") for p in instances()]
    v6e = targets.get("tpu-v6e")
    given = (DO, Q, K, V, OUT, LSE, None, False, None, None, None, (True,) * 3)
    left = [p.kernel.name.removeprefix("flash_attention_") for p in get("flash_attention_backward").record(given, v6e)]
    assert (names, left) == (APART + TOGETHER, APART)


# ------------------------------------------------------------------ the gradients
@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last way, as if it had been measured to be the quickest."""
    monkeypatch.setattr(backends, "_quickest", lambda ways, _: len(ways) - 1)
    lookup.forget()  # and with it, what is remembered of calls


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["alone", "a group of two"])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(options: str, heads: tuple[int, int], backend: Any) -> None:
    H, G = heads
    for M, N in ((37, 20), (20, 37)):
        q, k, v = (t.requires_grad_() for t in (heads_last(2, M, H, 16), randn(2, G, N, 16), heads_last(2, N, G, 16)))
        do, dlse = heads_last(2, M, H, 16), randn(2, H, M)
        with prefer(backend):
            o, lse = flash_attention(q, k, v, **OPTIONS[options], return_lse=True)
        wanted = expected(do, dlse, q, k, v, **OPTIONS[options])
        for got, want in zip(torch.autograd.grad((o, lse), (q, k, v), (do, dlse)), wanted, strict=True):
            assert_close(got, want, "f32", 37)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision(dtype: str, backend: Any, launched: list[str]) -> None:
    q, k, v = (randn(1, h, n, 40, dtype=dtype).requires_grad_() for h, n in ((4, 37), (2, 50), (2, 50)))
    do = randn(1, 4, 37, 40, dtype=dtype)
    with prefer(backend):
        found = torch.autograd.grad(flash_attention(q, k, v, causal=True), (q, k, v), do)
    assert launched[1:] == [*TOGETHER, "group_sum"]
    for got, want in zip(found, expected(do, None, q, k, v, causal=True), strict=True):
        assert got.dtype == q.dtype
        assert_close(got, want, dtype, 50)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
@pytest.mark.parametrize("causal", [False, True])
def test_what_lies_beyond_the_keys_may_hold_anything(causal: bool, garbage: float, backend: Any) -> None:
    q, k, v, do = (randn(3, 2, n, 16) for n in (40, 50, 50, 40))
    options: dict[str, Any] = {"causal": causal, "key_lengths": lengths(50, 33, 0)}
    o, lse = flash_attention(q, k, v, **options, return_lse=True)
    wanted = expected(do, None, q, k, v, **options)
    for i, length in enumerate(options["key_lengths"].tolist()):
        k[i, :, length:] = garbage
        v[i, :, length:] = garbage
    with prefer(backend):
        found = flash_attention_backward(do, q, k, v, o, lse, **options)
    for got, want in zip(found, wanted, strict=True):
        assert_close(got, want, "f32", 50)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_training_step(dynamic: bool, launched: list[str]) -> None:
    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = flash_attention(q * 2, k, v, causal=True)
        assert isinstance(o, torch.Tensor)
        return o.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (5, 8):
        given = [randn(1, h, length, 16).requires_grad_() for h in (4, 2, 2)]
        wanted = torch.autograd.grad(loss(*given), given)
        launched.clear()
        with prefer("numpy"):
            got = torch.autograd.grad(compiled(*given), given)
        assert launched == ["fwd", *TOGETHER, "group_sum"]
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, "f32", 16)


def test_other_lengths_of_a_class_ask_no_more_which_way_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = backends._quickest

    def noted(ways: Any, backend: str) -> int:
        asked.append(len(ways))
        return real(ways, backend)

    monkeypatch.setattr(backends, "_quickest", noted)
    backends._found_out.cache_clear()
    for length in (130, 200, 255, 256, 257):
        q = randn(1, 2, length, 16)
        with prefer("numpy"):
            o, lse = flash_attention(q, q, q, return_lse=True)
            flash_attention_backward(q, q, q, q, o, lse)
    assert asked == [2, 2]  # of 129 to 256, of 257 to 512


def test_what_is_found_out_holds_for_calls_that_lie_alike() -> None:
    """Whatever their lengths within a power of two, their addresses and gradients; not for other dtypes, flags or orders."""

    def kin(x: torch.Tensor, flag: bool = True) -> object:
        return backends.kin("run", fingerprint((x, (16,), None, flag)))

    plain = torch.zeros(1, 3, 100, 16)
    alike = (
        torch.zeros(1, 3, 65, 16).requires_grad_(),
        torch.zeros(1 + 3 * 128 * 16)[1:].view(1, 3, 128, 16),
        torch.zeros(3, 100, 16).as_strided((1, 3, 100, 16), (7, 1600, 16, 1)),
    )
    assert {kin(x) for x in alike} == {kin(plain)}
    others = (torch.zeros(1, 3, 129, 16), torch.zeros(1, 100, 3, 16).transpose(1, 2), plain.half(), plain.expand(2, 3, 100, 16))
    assert len({kin(plain), kin(plain, False), *map(kin, others)}) == 6
