"""Whether a call may skip PyTorch's dispatcher, which costs 1.6 to 2.5 us and changes nothing for plain eager tensors; and
how it may run where autograd notes nothing.

The questions go to small C functions without a public name. Where a torch release lacks one, every call takes the dispatcher.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.utils._python_dispatch import TorchDispatchMode

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
"""Types of tensors whose operations nobody intercepts."""

WORDS = frozenset({bool, int, float, str, type(None), torch.dtype})
"""Types of what else an op is told."""


def tensors_in(arguments: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among the arguments of an op. The types of words are told first: to ask None whether it is a tensor takes
    longer than all else about it, and most arguments of attention are None."""
    return [a for a in arguments if type(a) not in WORDS and isinstance(a, torch.Tensor)]


below_autograd = torch._C._AutoDispatchBelowADInplaceOrView
"""Neither gradients nor views are noted inside: outputs that autograd knows as views could not be modified in place."""

no_views = partial(torch._C._ExcludeDispatchKeyGuard, torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView))
"""Views are not noted inside, and composites are still taken apart, so that modes see the operations that they know."""


def below(run: Callable[..., Any]) -> Callable[..., Any]:
    """The function run below autograd."""

    def run_below(*arguments: Any) -> Any:
        with below_autograd():
            return run(*arguments)

    return run_below


def function_of_torch(path: str) -> Callable[..., Any] | None:
    """A function of torch's C module; None where this release has none of that name."""
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if callable(found) else None


def _question(path: str) -> Callable[[], Any]:
    return function_of_torch(path) or (lambda: True)


is_autocasting = _question("_is_any_autocast_enabled")
"""Whether torch.autocast is on for any device, or may be."""
dispatch_modes = _question("_len_torch_dispatch_stack")
"""How many modes see every op that runs."""
function_modes = _question("_is_torch_function_mode_enabled")
"""Whether a mode sees every function that is called."""
_tracing = _question("_get_tracing_state")
_functorch_level = _question("_functorch.maybe_current_level")


def is_plain() -> bool:
    """True where nothing but autocast would intercept an op: no torch.compile, mode, tracing or function transform."""
    return is_called_plainly() and not dispatch_modes()


def is_called_plainly() -> bool:
    """The same of a function, in which modes that see operations see those that it asks for."""
    return not (
        is_compiling()
        or function_modes()
        or _tracing() is not None
        or _functorch_level() is not None
        or getattr(forward_ad, "_current_level", 0) >= 0
    )


def is_transformed() -> bool:
    """True inside torch.func transforms and forward-mode differentiation, which see only what PyTorch itself computes."""
    return _functorch_level() is not None or forward_mode()


def forward_mode() -> bool:
    """True inside forward-mode differentiation, where tensors may carry tangents."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def have_memory(tensors: Iterable[torch.Tensor]) -> bool:
    """False where there are plain tensors that PyTorch's dispatcher does not hand to an op of ours: sparse, mkldnn, strided
    nested."""
    return not [t for t in tensors if type(t) in PLAIN and (t.layout is not torch.strided or t.is_nested)]


class QuickMode(TorchDispatchMode):
    """A mode that sees what a run asks of PyTorch, and is never on under torch.compile, of which it imports nothing."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asked by newer releases of PyTorch, which else import all of torch.compile for the first operation that is seen:
        seconds, in the middle of a program."""
        return False
