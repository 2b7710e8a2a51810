"""From a call to a running implementation: decided once for a kind of call, then remembered.

The warm path is one fingerprint, one dictionary look-up and the ready launch; checks and choices happen on a miss only.
Falling back from what the device leads one to expect is logged once an op and reason, and counted on every call.
"""

import logging
from collections import Counter
from typing import Any

import torch

from kpt.ops.autocast import Off, cast
from kpt.ops.autograd import followed
from kpt.ops.choice import Choice, choose, preferred
from kpt.ops.eager import PLAIN, is_autocasting, is_plain
from kpt.ops.registry import Op, Ready
from kpt_dsl.configs import generation
from kpt_dsl.errors import KptError

log = logging.getLogger("kpt")

DECISIONS_KEPT = 4096
"""Kinds of call remembered for each op: some MB at most, far more than a program of fixed shapes has."""


class Decision:
    """How one kind of call is served, and how often it was. ``choice`` None: PyTorch's dispatcher takes it, and comes back."""

    __slots__ = ("calls", "choice", "ready")

    def __init__(self, choice: Choice | None, ready: Ready) -> None:
        self.choice = choice
        self.ready = ready
        self.calls = 0


def fingerprint(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a decision depends on: each tensor's layout, type, device, alignment and need of grad; each other argument."""
    return tuple(
        [
            (a.shape, a.stride(), a.dtype, a.device, a.data_ptr() & 15, a.requires_grad)
            if type(a) in PLAIN
            else _unusual(a)
            for a in arguments
        ]
    )


def _unusual(value: Any) -> Any:
    """Everything that is no plain tensor: numbers and names as they are, the dispatcher's lists as tuples."""
    if isinstance(value, torch.Tensor):
        return (
            type(value),
            value.shape,
            value.stride(),
            value.dtype,
            value.device,
            value.data_ptr() & 15,
            value.requires_grad,
        )
    return tuple(value) if type(value) is list else value


class Dispatcher:
    """Serves the calls of one op, and remembers how."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.through_torch: Any = None
        """The op as torch.library knows it; set when it is defined there."""
        self._decisions: dict[Any, Decision] = {}
        self._served: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._logged: set[str] = set()

    def __call__(self, *arguments: Any) -> Any:
        """The public functions' way in: straight to the implementation where nothing would intercept the call."""
        if not is_plain():
            return self.through_torch(*arguments)
        if not is_autocasting():
            return self._run(arguments, torch.is_grad_enabled())
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        if not all(type(t) in PLAIN for t in tensors):
            return self.through_torch(*arguments)  # a subclass may want to see what came in
        device = tensors[0].device.type if tensors else "cpu"
        policy = self.op.autocast.get(device)
        if policy is None or not torch.is_autocast_enabled(device):
            return self._run(arguments, torch.is_grad_enabled())
        with Off(device):
            return self._run(tuple(cast(policy, device, arguments)), torch.is_grad_enabled())

    def below_autograd(self, *arguments: Any) -> Any:
        """The way in from PyTorch's dispatcher, which has seen to autograd already."""
        return self._run(arguments, None)

    def with_autograd(self, *arguments: Any) -> Any:
        """Serve a call whose inputs need grad, also while it is being traced: nothing here reads values or remembers."""
        self.op.check(*arguments)
        choice = choose(self.op, arguments, True, preferred())
        if not choice.implementation.differentiable:
            return followed(self.op, self.through_torch)(*arguments)  # comes back below autograd, and is counted there
        self._served[choice.implementation.name] += 1
        if choice.fallback_reason is not None:
            self._fallbacks[choice.fallback_reason] += 1
            self._log_once(choice.fallback_reason)
        return choice.implementation.prepare(arguments)(*arguments)

    def count_outside(self, reason: str) -> None:
        """Count a call that PyTorch served since the op has no words for it, as for an attention mask of any shape."""
        self._fallbacks[reason] += 1

    def counters(self) -> dict[str, dict[str, int]]:
        """Calls by implementation (``served``), and by reason those that fell back (``fallbacks``)."""
        served, fallbacks = self._served.copy(), self._fallbacks.copy()
        for decision in list(self._decisions.values()):
            _count(decision, served, fallbacks)
        return {"served": dict(served), "fallbacks": dict(fallbacks)}

    def _run(self, arguments: tuple[Any, ...], grad_mode: bool | None) -> Any:
        """``grad_mode``: whether autograd records here; None below autograd."""
        key = (fingerprint(arguments), grad_mode, torch.get_float32_matmul_precision(), generation(), preferred())
        try:
            decision = self._decisions.get(key)
        except TypeError:  # an unhashable argument: nothing that an op takes
            self.op.check(*arguments)
            raise
        if decision is None:
            decision = self._decide(key, arguments, {})
        decision.calls += 1
        try:
            return decision.ready(*arguments)
        except KptError as error:
            if key[-1] is not None or decision.choice is None:
                raise
            return self._after_failure(key, decision.choice, arguments, error)

    def _decide(self, key: Any, arguments: tuple[Any, ...], failed: dict[str, str]) -> Decision:
        self.op.check(*arguments)
        _, grad_mode, *_, prefers = key
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        if grad_mode is not None and any(type(t) not in PLAIN for t in tensors):
            decision = Decision(None, self.through_torch)  # a subclass may want to see the op
        else:
            needs_grad = bool(grad_mode) and any(t.requires_grad for t in tensors)
            choice = choose(self.op, arguments, needs_grad, prefers, failed)
            try:
                ready = choice.implementation.prepare(arguments)
            except KptError as error:
                if prefers is not None:
                    raise
                return self._decide(key, arguments, failed | {choice.implementation.name: _in_a_line(error)})
            if needs_grad and not choice.implementation.differentiable:
                ready = followed(self.op, ready)
            decision = Decision(choice, ready)
            if choice.fallback_reason is not None:
                self._log_once(choice.fallback_reason)
        if len(self._decisions) >= DECISIONS_KEPT:
            self._forget()
        self._decisions[key] = decision
        return decision

    def _after_failure(self, key: Any, choice: Choice, arguments: tuple[Any, ...], error: KptError) -> Any:
        """An implementation refused at launch what it had said it serves: PyTorch takes such calls from now on."""
        failed = {i.name: "not tried again" for i in self.op.kernels}
        failed[choice.implementation.name] = _in_a_line(error)
        decision = self._decide(key, arguments, failed)
        decision.calls += 1
        return decision.ready(*arguments)

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            log.warning("%s falls back to PyTorch: %s", self.op.name, reason)

    def _forget(self) -> None:
        for decision in self._decisions.values():
            _count(decision, self._served, self._fallbacks)
        self._decisions.clear()


def _in_a_line(error: KptError) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _count(decision: Decision, served: Counter[str], fallbacks: Counter[str]) -> None:
    if decision.choice is None or not decision.calls:
        return
    served[decision.choice.implementation.name] += decision.calls
    if decision.choice.fallback_reason is not None:
        fallbacks[decision.choice.fallback_reason] += decision.calls


DISPATCHERS: dict[str, Dispatcher] = {}
"""The dispatcher of every op, by name."""


def counters() -> dict[str, dict[str, dict[str, int]]]:
    """How the calls of this process were served: op -> ``served`` (implementation -> calls), ``fallbacks`` (reason -> calls).

    A fallback is a call that PyTorch served although its device leads one to expect a generated kernel. A fresh copy each time.
    """
    return {name: dispatcher.counters() for name, dispatcher in DISPATCHERS.items()}
