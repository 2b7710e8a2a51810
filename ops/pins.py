"""What a checkpoint runs again is served as it was, though another implementation has taken over by then.

While another process compiles, PyTorch serves and autograd follows it; a checkpoint (``use_reentrant=False``) that computes
such a call again must find the same tensors saved. So calls are *pinned* to the checkpoint that they were made in: there, and
wherever it is run again, PyTorch serves them. Of two threads that make the same kind of call at the same time, one of them in a
checkpoint, the other may have kpt take over for both.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from kpt.ops.recompute import checkpoint_frame, lay_around

Put = Callable[[Any, Any], None]
"""Has calls of a key served by a decision; None: as will be decided."""

_pins: "WeakKeyDictionary[Any, Pins]" = WeakKeyDictionary()


class Pins:
    """The kinds of calls that are pinned to a checkpoint; as a context, they are served so. ``decide``: as what."""

    def __init__(self) -> None:
        self.decide: dict[tuple[Put, Any], Callable[[], Any]] = {}

    def __enter__(self) -> None:
        for (put, key), decide in self.decide.items():
            put(key, decide())

    def __exit__(self, *_: object) -> None:
        for put, key in self.decide:
            put(key, None)


def pin(put: Put, key: Any, decide: Callable[[], Any]) -> None:
    """Have a kind of call served as ``decide()`` says in the checkpoint that is being made, if there is one."""
    frame = checkpoint_frame()
    if frame is None:
        return
    pins = _pins.get(frame)
    if pins is None:
        pins = _pins[frame] = Pins()
        lay_around(frame, lambda: pins, "pins")
    pins.decide[put, key] = decide


def pinned(put: Put, key: Any) -> Any:
    """How a kind of call is served in the checkpoint that is being made, where it is pinned; else None."""
    pins = _pins.get(frame) if _pins and (frame := checkpoint_frame()) is not None else None
    decide = pins.decide.get((put, key)) if pins is not None else None
    return None if decide is None else decide()
