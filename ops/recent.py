"""Kinds of calls that come again and again, known by a handful of questions instead of a fingerprint.

A fingerprint reads seven attributes of every tensor, which takes longer than to start a kernel. ``TensorGuards``, by which
torch.compile knows its calls again, compares all but addresses in one call of C: type, dtype, device, shape, strides, need of
grad, and the dispatch keys as they are under the thread's state. These hold lazy negation, zeros without memory and inference
tensors, and what would intercept an op on them: autocast of their device, tracing, function transforms.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.fx.proxy import TraceError

from kpt.ops.choice import preferred
from kpt.ops.eager import PLAIN, WORDS, dispatch_modes, function_modes, function_of_torch
from kpt.ops.written import written
from kpt_dsl.configs import generation

KEPT = 4
"""Kinds that an op is asked about, one after the other."""

AGAIN = 32
"""A kind is kept at every so many of its calls that its fingerprint told: to make the questions takes some microseconds."""

Same = Callable[..., Any]
"""Whether a call with these arguments, made now, is of a kind."""

class Recent:
    """Those of one op, the latest first. Who changes it holds the lock of what it is about."""

    __slots__ = ("kinds",)

    def __init__(self) -> None:
        self.kinds: tuple[tuple[Same, Any, Any], ...] = ()
        """What tells a kind, what it is known by otherwise, and how it is served."""

    def keep(self, is_same: Same, key: Any, decision: Any) -> None:
        """Ask for a kind before all others."""
        self.drop(decision)
        self.kinds = ((is_same, key, decision), *self.kinds[: KEPT - 1])

    def drop(self, decision: Any) -> None:
        """Ask no more for what was served so."""
        if any(known[2] is decision for known in self.kinds):
            self.kinds = tuple([known for known in self.kinds if known[2] is not decision])


_guards = function_of_torch("_dynamo.guards.TensorGuards")


def same(arguments: Sequence[Any], precision: Callable[[], Hashable] | None) -> Same | None:
    """What tells whether calls are of the kind of this one, made now: True is never said of another kind, False may be of this.

    ``precision`` gives that of float32 products, where it matters. None where nothing less than a fingerprint tells.
    """
    tensors = {i: a for i, a in enumerate(arguments) if type(a) in PLAIN}
    words = {i: a for i, a in enumerate(arguments) if i not in tensors}
    if _guards is None or not hasattr(forward_ad, "_current_level") or not tensors or not all(map(_stays, words.values())):
        return None
    if any(not (p := t.data_ptr()) or p & 15 for t in tensors.values()):
        return None
    sizes = [list(t.shape) for t in tensors.values()]
    strides = [list(t.stride()) for t in tensors.values()]
    scope = {
        "tensors": _guards(*tensors.values(), dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check,
        "alike": _alike,
        "modes": dispatch_modes,
        "function_modes": function_modes,
        "forward_ad": forward_ad,
        "TraceError": TraceError,
        **{f"w{i}": word for i, word in words.items()},
    }
    told = {"grad": torch.is_grad_enabled, "preferred": preferred, "generation": generation, "precision": precision}
    for name, ask in told.items():
        if ask is not None:
            scope |= {name: ask, f"{name}_then": ask()}
    return written(_questions(tensors, words, [name for name, ask in told.items() if ask is not None]), scope)


def _stays(word: Any) -> bool:
    """Whether what it holds stays the same, so that the object itself is enough to know it by."""
    return type(word) in WORDS or (type(word) is tuple and all(type(item) in WORDS for item in word))


def _alike(word: Any, then: Any) -> bool:
    """1, 1.0 and True are three."""
    kind = type(word)
    return kind is type(then) and word == then and (kind is not tuple or [*map(type, word)] == [*map(type, then)])


def _questions(tensors: Collection[int], words: Collection[int], told: Sequence[str]) -> list[str]:
    """The questions to arguments of which those at some positions are tensors: what differs most between calls comes first."""
    parameters = ", ".join(f"a{i}" for i in range(len(tensors) + len(words)))
    conditions = [
        # Of a nested tensor that is not jagged the next question has no answer, and ends the process.
        *(f"not a{i}.is_nested" for i in tensors),
        f"tensors({', '.join(f'a{i}' for i in tensors)})",
        *(f"(a{i} is w{i} or alike(a{i}, w{i}))" for i in words),
        *(f"(p{i} := a{i}.data_ptr())" for i in tensors),
        f"not ({' | '.join(f'p{i}' for i in tensors)}) & 15",
        "not modes()",
        "not function_modes()",
        "forward_ad._current_level < 0",
        *(f"{name}() == {name}_then" for name in told),
    ]
    return [
        f"def same({parameters}):",
        f"    try: return {' and '.join(conditions)}",
        "    except (AttributeError, TraceError): return False  # no tensor, or torch.fx's place of one",
    ]
