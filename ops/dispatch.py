"""From a call to a running implementation: decided once for a kind of call, then remembered.

The warm path is one fingerprint, one dictionary look-up and the ready launch; checks and choices happen on a miss only.
Falling back from what the device leads one to expect is logged once an op and reason, and counted on every call.
"""

import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch.compiler import is_dynamo_compiling

from kpt.ops import flops, sharding
from kpt.ops.autocast import Off, cast
from kpt.ops.autograd import followed
from kpt.ops.choice import Choice, choose, hold_for_recomputation, preferred
from kpt.ops.compiling import NotMadeError, is_behind
from kpt.ops.decisions import Decision, tell_of_leaving
from kpt.ops.eager import PLAIN, below, have_memory, is_autocasting, is_plain, tensors_in
from kpt.ops.fingerprint import Foreign, fingerprint, is_numpys, of_python, without_lengths
from kpt.ops.pins import pin, pinned
from kpt.ops.recent import AGAIN, Recent, same
from kpt.ops.registry import Op, Ready, settled
from kpt_dsl.configs import generation
from kpt_dsl.errors import IndexRangeError, KptError
from kpt_dsl.runtime.precision import float32_products

if TYPE_CHECKING:
    from kpt.ops.behind import Pending

log = logging.getLogger("kpt")

_all_or_none: ContextVar[bool] = ContextVar("kpt_all_or_none", default=False)
"""Inside a function of ours that autograd follows: an op that a subclass does not know is PyTorch's with its gradient."""

DECISIONS_KEPT = 4096
"""Kinds of call remembered for each op: some MB at most, far more than a program of fixed shapes has."""


class Dispatcher:
    """Serves the calls of one op, and remembers how."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.through_torch: Any = None
        """The op as torch.library knows it; set when it is defined there."""
        self._precision = float32_products if op.multiplies else _nothing
        self._decisions: dict[Any, Decision] = {}
        self._choices: dict[Any, Choice] = {}
        """What serves right calls that differ from others in lengths only."""
        self._recent = Recent()
        """Some of them, which are told without their keys."""
        self._served: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._logged: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """The public functions' way in: straight to the implementation where nothing would intercept the call."""
        if is_dynamo_compiling():
            return self.through_torch(*arguments)
        for is_same, key, decision in self._recent.kinds:
            if is_same(*arguments):
                return self._serve(key, decision, arguments)
        if not is_plain():
            return self._foreign(arguments)
        if not is_autocasting():
            return self._run(arguments, torch.is_grad_enabled())
        tensors = tensors_in(arguments)
        if not all(type(t) in PLAIN for t in tensors):
            return self._foreign(arguments)
        device = tensors[0].device.type if tensors else "cpu"
        policy = self.op.autocast.get(device)
        if policy is None or not torch.is_autocast_enabled(device):
            return self._run(arguments, torch.is_grad_enabled())
        with Off(device):
            return self._run(tuple(cast(policy, device, arguments, self.op.left_alone)), torch.is_grad_enabled())

    def through_autograd(self, otherwise: Ready, *arguments: Any) -> Any:
        """The first way in from PyTorch's dispatcher, as of a compiled graph: it need not be asked again, nor autograd, about
        calls that came before."""
        for is_same, key, decision in self._recent.kinds:
            if is_same(*arguments):
                return self._serve(key, decision, arguments)
        return otherwise(*arguments)

    def below_autograd(self, *arguments: Any) -> Any:
        """The way in from PyTorch's dispatcher, which has seen to autograd and to subclasses already."""
        return self._run(arguments, None)

    def with_autograd(self, *arguments: Any) -> Any:
        """Serve a call whose inputs need grad, or that is transformed (vmap), also while it is being traced: nothing here reads
        values or remembers."""
        self.op.check(*arguments)
        preference = preferred()
        choice = choose(self.op, arguments, True, preference)
        if preference is not None:
            hold_for_recomputation(preference)
        if not choice.implementation.differentiable or self.op.opaque(*arguments):
            token = _all_or_none.set(True)
            try:
                # This comes back below autograd, and is counted there.
                return followed(self.op, below(self.through_torch))(*arguments)
            finally:
                _all_or_none.reset(token)
        self._served[choice.implementation.name] += 1
        if choice.fallback_reason is not None:
            self._fallbacks[choice.fallback_reason] += 1
            self._log_once(choice.fallback_reason)
        return choice.implementation.prepare(arguments, ())(*arguments)

    def count_outside(self, reason: str) -> None:
        """Count a call that PyTorch served since the op has no words for it, as for an attention mask of any shape."""
        self._fallbacks[reason] += 1

    def counters(self) -> dict[str, dict[str, int]]:
        """Calls by implementation (``served``), and by reason those that fell back (``fallbacks``)."""
        served, fallbacks = self._served.copy(), self._fallbacks.copy()
        for decision in list(self._decisions.values()):
            decision.count(served, fallbacks)
        return {"served": dict(served), "fallbacks": dict(fallbacks)}

    def _run(self, arguments: tuple[Any, ...], grad_mode: bool | None) -> Any:
        """``grad_mode``: whether autograd records here; None below autograd."""
        try:
            key = (fingerprint(arguments), grad_mode, self._precision(), generation(), preferred())
            decision = self._decisions.get(key)
        except TypeError:  # an unhashable argument: nothing that an op takes
            self.op.check(*arguments)
            raise
        except (Foreign, RuntimeError):
            return self._below_subclasses(arguments) if grad_mode is None else self._foreign(arguments)
        if decision is None:
            decision = self._decide(key, arguments, {})
        elif grad_mode is not None and not decision.calls % AGAIN:
            self._expect(key, decision, arguments)
        return self._serve(key, decision, arguments)

    def _serve(self, key: Any, decision: Decision, arguments: tuple[Any, ...]) -> Any:
        if key[-1] is not None and key[1]:
            hold_for_recomputation(key[-1])
        decision.calls += 1
        try:
            return decision.ready(*arguments)
        except KptError as error:
            if key[-1] is not None or decision.choice is None or isinstance(error, IndexRangeError):
                raise
            if isinstance(error, NotMadeError):
                return self._meanwhile(key, decision, arguments)
            return self._after_failure(key, decision.choice, arguments, error)

    def _expect(self, key: Any, decision: Decision, arguments: tuple[Any, ...]) -> None:
        """Ask of the calls to come whether they are like this one, before all else; what serves them has learnt by now."""
        if decision.choice is None or (is_same := same(arguments, self._precision if self.op.multiplies else None)) is None:
            return
        with self._lock:
            if self._decisions.get(key) is decision:
                self._recent.keep(is_same, key, decision)
                decision.ready = settled(decision.ready)

    def _decide(
        self, key: Any, arguments: tuple[Any, ...], failed: dict[str, str], pending: "Pending | None" = None
    ) -> Decision:
        told, *circumstances = key
        grad_mode, *_, prefers = circumstances
        alike = None if failed or not self.op.lengths else without_lengths(told, self.op.lengths_at)
        like = (alike, *circumstances)
        choice = None if alike is None else self._choices.get(like)
        if choice is None:
            self.op.check(*arguments)
        is_behind()  # an error where the environment has no word for it
        if grad_mode and (held := pinned(self.put, key)) is not None:
            self._note(key, held)
            return held  # type: ignore[no-any-return]
        tensors = tensors_in(arguments)
        if _lazy(tensors):
            decision = Decision(None, self._written_out)
        else:
            needs_grad = _needs_grad(grad_mode, tensors)
            if choice is None:
                choice = choose(self.op, arguments, needs_grad, prefers, failed)
                if alike is not None:
                    if len(self._choices) >= DECISIONS_KEPT:
                        self._choices.clear()
                    self._choices[like] = choice
            try:
                ready = choice.implementation.prepare(arguments, told)
            except KptError as error:
                if prefers is not None:
                    raise
                return self._decide(key, arguments, failed | {choice.implementation.name: _in_a_line(error)})
            if needs_grad and not choice.implementation.differentiable:
                ready = followed(self.op, ready)
            if pending is not None and needs_grad:
                ready = self._pinning(key, choice, ready)
            decision = Decision(choice, ready, pending)
            if choice.fallback_reason is not None and (pending is None or pending.failure):
                self._log_once(choice.fallback_reason)
        with self._lock:
            if pending is not None:
                if pending.reason not in failed.values():  # it came to its end meanwhile
                    return decision
                if (known := self._decisions.get(key)) is not None and known.pending is pending:  # another thread was quicker
                    return known
            while len(self._decisions) >= DECISIONS_KEPT:
                self._forget_oldest()
            if (known := self._decisions.setdefault(key, decision)) is not decision:
                self._recent.drop(known)
                self._decisions[key] = decision
        return decision

    def _written_out(self, *arguments: Any) -> Any:
        """The call with tensors whose memory does not hold their values (lazily negated, zeros without memory) written out."""
        lazy = [id(t) for t in _lazy(tensors_in(arguments))]
        return self(*[a.clone() if id(a) in lazy else a for a in arguments])

    def _foreign(self, arguments: tuple[Any, ...]) -> Any:
        """A call that something intercepts, or of tensors that only PyTorch understands. Modes and subclasses see the op."""
        if any(map(is_numpys, arguments)):
            return self(*of_python(arguments))
        tensors = tensors_in(arguments)
        if not have_memory(tensors):
            return self.by_pytorch(arguments)
        if torch.is_inference_mode_enabled():  # where our kernel of the key Autograd, which tells them, is not asked
            flops.tell_counters()
            sharding.share_out(tensors)
        return self.or_by_pytorch(self.through_torch, arguments)

    def or_by_pytorch(self, run: Ready, arguments: tuple[Any, ...]) -> Any:
        """A call that a subclass of tensors may intercept, which gets PyTorch's own operations where it says that it does not
        know the op, as it would without kpt: a quantised weight, a jagged batch."""
        try:
            return run(*arguments)
        except NotImplementedError:
            if _all_or_none.get() or all(type(t) in PLAIN for t in tensors_in(arguments)):
                raise
            return self.by_pytorch(arguments)

    def _below_subclasses(self, arguments: tuple[Any, ...]) -> Any:
        """A call that PyTorch's dispatcher let through with tensors of subclasses: they are what they are below those."""
        with torch._C.DisableTorchFunctionSubclass():
            plain = tuple([_plain(a) for a in arguments])
        foreign = all(a is b for a, b in zip(plain, arguments, strict=True))
        return self.by_pytorch(arguments) if foreign else self._run(plain, None)

    def by_pytorch(self, arguments: tuple[Any, ...]) -> Any:
        """PyTorch's own operations, and its own words where they refuse: what kinds of tensors they take is not known here."""
        self._served["reference"] += 1
        tensors = tensors_in(arguments)
        if any(t.device.type in (kernel.devices or ()) for t in tensors for kernel in self.op.kernels):
            kinds = {str(t.layout) if type(t) in PLAIN else type(t).__name__ for t in tensors}
            reason = f"only PyTorch knows what to do with tensors of these kinds: {', '.join(sorted(kinds))}"
            self._fallbacks[reason] += 1
            self._log_once(reason)
        # It is off where PyTorch's dispatcher came by, and jagged attention lives there.
        with torch._C._EnableTorchFunction():
            return self.op.reference(*arguments)

    def _meanwhile(self, key: Any, decision: Decision, arguments: tuple[Any, ...]) -> Any:
        """A launch would have had to wait for a compiler: PyTorch takes the call, and those like it until another process is
        done."""
        from kpt.ops import behind  # brings emitters, which are not needed before

        assert decision.choice is not None
        served = decision.choice.implementation
        pending = behind.ask(self.op, served, arguments, _needs_grad(key[1], tensors_in(arguments)), self.drop)
        with self._lock:
            if self._decisions.get(key) is decision:
                self._recent.drop(self._decisions.pop(key))  # with its count: what came by here was not served by it
        meanwhile = self._decide(key, arguments, {served.name: pending.reason or behind.COMPILING}, pending)
        with self._lock:
            if self._decisions.get(key) is meanwhile:
                meanwhile.calls += 1
            else:
                self._note(key, meanwhile)
        return meanwhile.ready(*arguments)

    def _note(self, key: Any, decision: Decision) -> None:
        """Count a call that is served by a decision which is not kept."""
        once = Decision(decision.choice, decision.ready)
        once.calls = 1
        self._let_go(key, once)

    def _pinning(self, key: Any, choice: Choice, run: Ready) -> Ready:
        """A call that PyTorch serves meanwhile, and whenever the checkpoint that it is made in is run again."""

        def ready(*arguments: Any) -> Any:
            pin(self.put, key, lambda: Decision(choice, ready))
            return run(*arguments)

        return ready

    def put(self, key: Any, decision: Decision | None) -> None:
        """Have a kind of call served so from now on; None: as will be decided."""
        with self._lock:
            if (before := self._decisions.pop(key, None)) is not None:
                self._let_go(key, before)
            if decision is not None:
                self._decisions[key] = decision

    def unlock(self) -> None:
        """In a child that was forked off."""
        self._lock = threading.Lock()

    def drop(self, pending: "Pending") -> None:
        """Forget how calls are served that another process compiled for: they are asked about anew."""
        with self._lock:
            for key in [key for key, decision in self._decisions.items() if decision.pending is pending]:
                self._let_go(key, self._decisions.pop(key))

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

    def _forget_oldest(self) -> None:
        """Forget one kind of call: the first met of those that did not come again since this last looked at them, which are the
        last to go (the clock algorithm: calls that repeat pay nothing for being kept)."""
        while True:
            key = next(iter(self._decisions))
            decision = self._decisions.pop(key)
            if decision.calls == decision.seen:
                self._let_go(key, decision)
                return
            decision.seen = decision.calls
            self._decisions[key] = decision

    def _forget(self) -> None:
        for key, decision in self._decisions.items():
            self._let_go(key, decision)
        self._decisions.clear()
        self._choices.clear()

    def _let_go(self, key: Any, decision: Decision) -> None:
        self._recent.drop(decision)
        decision.count(self._served, self._fallbacks)
        tell_of_leaving(self.op, key, decision)

    def decisions(self) -> list[tuple[Any, Decision]]:
        """Every kind of call that is remembered: what it is known by, and how it is served."""
        with self._lock:
            return list(self._decisions.items())


def _needs_grad(grad_mode: bool | None, tensors: Sequence[torch.Tensor]) -> bool:
    return bool(grad_mode) and True in [t.requires_grad for t in tensors]


def _nothing() -> None:
    """The precision of products that an op does not have."""


def _plain(value: Any) -> Any:
    """A tensor of a subclass that PyTorch's dispatcher has dealt with as what it is below that."""
    return value.as_subclass(torch.Tensor) if isinstance(value, torch.Tensor) and type(value) not in PLAIN else value


def _lazy(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Those whose memory does not hold their values."""
    return [t for t in tensors if t.is_neg() or t._is_zerotensor()]


def _in_a_line(error: KptError) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


DISPATCHERS: dict[str, Dispatcher] = {}
"""The dispatcher of every op, by name."""


def _after_fork() -> None:
    """A lock that another thread of the parent held is nobody's in the child."""
    for dispatcher in DISPATCHERS.values():
        dispatcher.unlock()


os.register_at_fork(after_in_child=_after_fork)


def counters() -> dict[str, dict[str, dict[str, int]]]:
    """How the calls of this process were served: op -> ``served`` (implementation -> calls), ``fallbacks`` (reason -> calls).

    A fallback is a call that PyTorch served although its device leads one to expect a generated kernel. A fresh copy each time.
    """
    return {name: dispatcher.counters() for name, dispatcher in DISPATCHERS.items()}
