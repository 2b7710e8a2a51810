"""A preference holds for what a checkpoint made inside it computes again, though its block has ended by then.

``torch.utils.checkpoint`` (``use_reentrant=False``) runs its function a second time when the backward first asks for something
that it saved, and must save the same then: by the same implementations. It remembers the random state and autocast for that,
and has no place for the state of others, so the preference is laid around the function that it kept. Where a PyTorch release
keeps it otherwise, nothing happens.
"""

from collections.abc import Callable
from typing import Any

import torch

_top_hooks: Callable[[bool], Any] = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


def checkpoint_frame() -> Any:
    """What the innermost checkpoint that is being made knows of itself; None outside of one, and where one is run again."""
    hooks = _top_hooks(True)
    if hooks is None:
        return None
    pack = hooks[0]
    names: tuple[str, ...] = getattr(getattr(pack, "__code__", None), "co_freevars", ())
    if "frame" not in names:
        return None
    frame = pack.__closure__[names.index("frame")].cell_contents
    return frame if callable(getattr(frame, "recompute_fn", None)) else None


def lay_around(frame: Any, held: Callable[[], Any], what: str) -> None:
    """Whenever the function of this frame is run again, it is inside ``held()``; once a frame and ``what``."""
    function = frame.recompute_fn
    holds: frozenset[str] = getattr(function, "_kpt_holds", frozenset())
    if what in holds:
        return

    def again(*arguments: Any) -> Any:
        with held():
            return function(*arguments)

    again._kpt_holds = holds | {what}  # type: ignore[attr-defined]
    frame.recompute_fn = again
