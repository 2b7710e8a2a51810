"""A call that differs from others in its lengths only is neither checked nor chosen for anew, and never wrongly let through."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch

import kpt.ops
from kpt.ops import dispatch, registry
from kpt.ops.choice import choose, standing_in
from kpt.ops.fingerprint import fingerprint, without_lengths
from kpt_dsl import configs
from kpt_dsl.errors import InputError
from tests.ops.pretended_gpu import pretended_gpu

Draw = random.Random
Arguments = tuple[Any, ...]
LENGTHS = (1, 2, 3, 5, 16, 17)
DTYPES = (*[torch.bfloat16] * 9, torch.float32, torch.float64)


def some(draw: Draw, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=draw.choice(DTYPES))


def attention(draw: Draw) -> Arguments:
    def length() -> int:
        return draw.choice(LENGTHS)

    batch, groups, width, keys = draw.choice((1, 2)), draw.choice((1, 2, 3)), draw.choice((16, 300)), length()
    q = some(draw, batch, draw.choice((2, 4)), length(), width)
    k = some(draw, batch, groups, keys, width)
    v = some(draw, batch, groups, draw.choice((keys, keys, length())), draw.choice((16, 17)))
    mask = draw.choice((*[None] * 6, torch.empty(length(), length(), dtype=torch.bool)))
    lengths = draw.choice((*[None] * 6, torch.ones(draw.choice((1, 2)), dtype=torch.int32)))
    window = draw.choice((None, None, 5, 0))
    return (q, k, v, draw.random() < 0.5, None, window, lengths, False, None, mask, *[None] * 10)


def rows(draw: Draw, *last: int) -> torch.Tensor:
    return some(draw, *draw.choices(LENGTHS, k=draw.randrange(3)), *last)


def linear(draw: Draw) -> Arguments:
    width, features = draw.choice((16, 17)), draw.choice((5, 16))
    bias = draw.choice((None, some(draw, features), some(draw, 17)))
    activation = draw.choice(("none", "silu", "of no name"))
    return rows(draw, draw.choice((width, width, 5))), some(draw, features, width), bias, activation, False


def norm(draw: Draw) -> Arguments:
    shape = draw.choice(((16,), (17,), (5, 16), (17, 16), ()))
    weight = draw.choice((None, some(draw, *shape), some(draw, 16)))
    return rows(draw, draw.choice(LENGTHS), 16), shape, weight


def like(draw: Draw, x: torch.Tensor, *last: int) -> torch.Tensor:
    """A tensor of the shape and the dtype of another one, as a rule, with these for its last extents."""
    shape = (*x.shape[: x.ndim - len(last)], *last)
    return x.new_empty(shape) if draw.random() < 0.9 else rows(draw, draw.choice(LENGTHS), 16)


def norm_backward(draw: Draw, parameters: int) -> Arguments:
    x, shape, *others = norm(draw)
    others += [None] * (parameters - 1)
    added = draw.choice((None, None, like(draw, x)))
    needed = tuple(draw.random() < 0.5 for _ in range(1 + parameters))
    return like(draw, x), x, shape, *others, 1e-5, needed, *[0.0] * (parameters == 1), added


def sum_norm(draw: Draw) -> Arguments:
    x, shape, weight = norm(draw)
    return x, like(draw, x), shape, weight


def gates(draw: Draw) -> Arguments:
    x = rows(draw, draw.choice(LENGTHS), 16)
    return x, like(draw, x)


def linear_backward(draw: Draw) -> Arguments:
    x, weight, bias, activation, _ = linear(draw)
    dy = like(draw, x, weight.shape[0])
    again = draw.choice((None, like(draw, dy)))
    return dy, draw.choice((x, x, None)), weight, bias, again, activation, tuple(draw.random() < 0.5 for _ in range(3))


def angles(draw: Draw) -> Arguments:
    batch, length, width, columns = draw.choice((1, 2)), draw.choice(LENGTHS), 16, draw.choice((16, 8, 5))
    other = draw.choice((length, length, draw.choice(LENGTHS)))
    heads = draw.choice((1, 2))
    q, k = (some(draw, *((batch, h, n) if heads == 1 else (batch, n, h)), width) for h, n in ((4, length), (2, other)))
    front = draw.choice(((), (1,), (batch,), (batch, 1)))
    turned = (*front[:1], length, 1) if heads == 2 and len(front) > 1 else (*front, length)
    cos = some(draw, *turned, columns)
    return q, k, cos, like(draw, cos), draw.random() < 0.5


def attention_backward(draw: Draw) -> Arguments:
    q, *_ = attention(draw)
    k = like(draw, q) if draw.random() < 0.9 else some(draw, 1, 2, draw.choice(LENGTHS), 16)
    v, o = like(draw, k), like(draw, q)
    lse, dlse = torch.empty(o.shape[:3]), draw.choice((None, like(draw, torch.empty(q.shape[:3]))))
    return like(draw, o), q, k, v, o, lse, dlse, True, None, None, None, (True, True, draw.random() < 0.9), *[None] * 12


DRAWN: dict[str, Callable[[Draw], Arguments]] = {
    "flash_attention": attention,
    "flash_attention_backward": attention_backward,
    "linear_act": linear,
    "linear_act_saving": lambda draw: linear(draw)[:-1],
    "linear_act_backward": linear_backward,
    "rms_norm": lambda draw: (*norm(draw), 1e-5, 0.0),
    "rms_norm_backward": lambda draw: norm_backward(draw, 1),
    "add_rms_norm": lambda draw: (*sum_norm(draw), 1e-5, 0.0),
    "layer_norm": lambda draw: (*norm(draw), None, 1e-5),
    "layer_norm_backward": lambda draw: norm_backward(draw, 2),
    "add_layer_norm": lambda draw: (*sum_norm(draw), None, 1e-5),
    "gated_act": lambda draw: (*gates(draw), "silu"),
    "gated_act_backward": lambda draw: (like(draw, (pair := gates(draw))[0]), *pair, "silu", (True, draw.random() < 0.5)),
    "rotary": angles,
    "rotary_backward": angles,
}


def verdict(op: registry.Op, arguments: Arguments) -> Any:
    """Whether a call is right, and what serves it."""
    try:
        op.check(*arguments)
    except InputError:
        return "wrong"
    with standing_in("cuda"):
        return choose(op, arguments, False, None)


@pytest.mark.parametrize("name", DRAWN)
def test_what_differs_in_lengths_only_has_one_verdict(name: str) -> None:
    op, draw = registry.get(name), Draw(name)
    found: dict[Any, dict[Any, Any]] = defaultdict(dict)
    for _ in range(6000):
        arguments = DRAWN[name](draw)
        told = fingerprint(arguments)
        if (alike := without_lengths(told, op.lengths_at)) is not None:
            found[alike][told] = verdict(op, arguments)
    groups = [list(verdicts.values()) for verdicts in found.values() if len(verdicts) > 1]
    right = [verdicts for verdicts in groups if verdicts[0] != "wrong"]
    assert len(right) > 10 and len(groups) > len(right) + 10
    assert [verdicts for verdicts in groups if any(one != verdicts[0] for one in verdicts)] == []


def test_every_op_that_names_lengths_is_drawn() -> None:
    assert {op.name for op in registry.OPS.values() if op.lengths} == set(DRAWN)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What dispatch asked of calls, on a GPU that is none."""
    found: list[str] = []
    with pretended_gpu(monkeypatch):
        for name in DRAWN:
            op = registry.get(name)
            monkeypatch.setitem(op.__dict__, "check", noted(found, "check", op.check))
        monkeypatch.setattr(dispatch, "choose", noted(found, "choose", choose))
        yield found


def noted(found: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        found.append(name)
        return function(*arguments)

    return called


def test_a_new_length_is_neither_checked_nor_chosen_for(asked: list[str]) -> None:
    weight, matrix = torch.empty(32), torch.empty(24, 32)

    def calls(n: int) -> list[torch.Tensor]:
        x, (q, k) = torch.empty(2, n, 32), (torch.empty(1, heads, n, 16) for heads in (4, 2))
        return [
            kpt.ops.rms_norm(x, (32,), weight), kpt.ops.layer_norm(x, (32,), weight),
            kpt.ops.linear_act(x, matrix, activation="silu"), kpt.ops.flash_attention(q, k, k, causal=True),
        ]  # fmt: skip

    calls(700)
    assert asked == ["check", "choose"] * 4
    asked.clear()
    for n in (701, 999, 64, 1100):
        assert [y.shape[1 if y.ndim == 3 else 2] for y in calls(n)] == [n] * 4
    assert asked == []
    calls(32)  # as long as a row
    assert asked == ["check", "choose"] * 3
    served = {name: kpt.ops.counters()[name]["served"] for name in DRAWN}
    called = ("rms_norm", "layer_norm", "linear_act", "flash_attention")
    assert {name: served[name] for name in called} == {name: {"triton": 6} for name in called}


def test_a_wrong_call_of_a_new_length_is_refused(asked: list[str]) -> None:
    q, k, v = (torch.empty(1, 4, n, 16) for n in (700, 800, 800))
    kpt.ops.flash_attention(q, k, v)
    with pytest.raises(InputError, match="v is of shape"):
        kpt.ops.flash_attention(q, k, torch.empty(1, 4, 801, 16))
    with pytest.raises(InputError, match="window is 0"):
        kpt.ops.flash_attention(q, k, v, window=0)
    mask = torch.empty(700, 800, dtype=torch.bool)
    kpt.ops.flash_attention(q, k, v, mask=mask)
    with pytest.raises(InputError, match="mask is of shape"):
        kpt.ops.flash_attention(torch.empty(1, 4, 701, 16), k, v, mask=mask)
    kpt.ops.rms_norm(torch.empty(700, 32), (700, 32))
    with pytest.raises(InputError, match="normalized_shape"):
        kpt.ops.rms_norm(torch.empty(701, 32), (700, 32))
    assert asked.count("check") == 7 and asked.count("choose") == 3


def test_another_preference_gradients_and_other_configs_are_chosen_for_anew(asked: list[str]) -> None:
    def call(n: int, grad: bool = False) -> int:
        asked.clear()
        kpt.ops.rms_norm(torch.empty(n, 32, requires_grad=grad), (32,))
        return asked.count("choose")

    assert [call(700), call(701), call(702, True), call(703, True)] == [1, 0, 1, 0]
    with kpt.ops.prefer("reference"):
        assert [call(704), call(705)] == [1, 0]
    assert call(706) == 0
    configs.changed()
    assert [call(707), call(708)] == [1, 0]


def repeated_over_heads(n: int) -> torch.Tensor:
    """Attention of a mask that all heads share."""
    q = torch.empty(2, 4, n, 16, requires_grad=True)
    return kpt.ops.flash_attention(q, q, q, mask=torch.empty(2, 1, n, n, dtype=torch.bool).expand(2, 4, n, n))


def of_one_head(n: int) -> torch.Tensor:
    """Attention whose keys were written out for all heads, without memory."""
    k = torch.empty(2, 1, n, 16, requires_grad=True).expand(2, 4, n, 16)
    return kpt.ops.flash_attention(torch.empty(2, 4, n, 16, requires_grad=True), k, k, causal=True)


def turned(n: int) -> torch.Tensor:
    """Heads turned by angles that all of a batch share, and that are part of a longer table."""
    q = torch.empty(2, n, 4, 16, requires_grad=True).transpose(1, 2)
    return kpt.ops.rotary(q, q, *torch.empty(2, 2048, 16)[:, :n])[0]


def mean_loss(n: int) -> torch.Tensor:
    """A loss whose gradient is one number for all rows."""
    return kpt.ops.cross_entropy(torch.empty(n, 100, requires_grad=True), torch.empty(n, dtype=torch.int64))


@pytest.mark.parametrize("call", [repeated_over_heads, of_one_head, turned, mean_loss])
def test_a_new_length_of_what_is_repeated_is_of_a_known_class(
    call: Callable[[int], torch.Tensor], asked: list[str]
) -> None:
    for n in (600, 1000, 640, 1024, 999):
        call(n).sum().backward()

    def too_much(*_: object) -> None:
        raise AssertionError("chosen for anew")

    with patch("kpt_dsl.space.space.collect", too_much):
        for n in (700, 801, 902):
            call(n).sum().backward()
