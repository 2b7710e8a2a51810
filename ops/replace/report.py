"""What replacing or restoring did, module by module, and what came of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from kpt.ops.dispatch import counters
from kpt.ops.registry import get
from kpt.ops.replace.served import Counts, Served, Watch, since
from kpt_dsl import runtime


@dataclass(frozen=True, slots=True)
class Change:
    """A module (or, for attention, a config) that changed: its path in the model, and what it was and became.

    ``unserved``: what of it is known to stay PyTorch's. ``ops``: what serves it, where the kind does not say which.
    """

    path: str
    kind: str
    before: str
    after: str
    unserved: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A module that looked like one to replace, and why it was left alone."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was changed and what was left alone; printing it gives a table, like modules in one line. ``devices``: the types of
    those that the model's parameters are on."""

    action: str
    changes: tuple[Change, ...]
    skipped: tuple[Skipped, ...]
    devices: tuple[str, ...] = ()
    before: Counts = field(default_factory=counters, compare=False, repr=False)
    """What was called until then."""
    watched: list[Watch] = field(default_factory=list, compare=False, repr=False)

    @property
    def ops(self) -> tuple[str, ...]:
        """Those that were put in."""
        names = [name for c in self.changes for name in _ops(c)]
        return tuple(dict.fromkeys(INSIDE.get(name, name) for name in names))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at all operations of the block, a run of the model, which takes longer for it; ``served`` then knows shares."""
        watch = Watch()
        with watch:
            yield
        self.watched[:] = [watch]

    def served(self, target: str = "") -> Served:
        """What served the ops that were put in, and their gradients, from then to now, in all of the process; and why kernels
        did not. After ``watching``: also how many of a run's operations were theirs, and, on a GPU or for the name of a target,
        their estimated time. Raises TargetError for an unknown name."""
        if not target and "cuda" in self.devices:
            target = runtime.runtime("triton").present(torch.cuda.current_device()).name
        return since(self.before, self.ops, self.watched[0].shares(target) if self.watched else None)

    def __str__(self) -> str:
        changed: dict[tuple[str, ...], list[str]] = {}
        for c in self.changes:
            by = f"kpt.ops.{', '.join(_ops(c))}" if self.action == "replaced" else "its own code"
            changed.setdefault((f"{c.before} -> {c.after}", by, *c.unserved), []).append(c.path)
        left: dict[str, list[str]] = {}
        for s in self.skipped:
            left.setdefault(s.reason, []).append(s.path)
        first = max((len(what) for what, *_ in changed), default=0)
        second = max((len(by) for _, by, *_ in changed), default=0)
        lines = [f"{self.action} {len(self.changes)} of {len(self.changes) + len(self.skipped)}"]
        for (what, by, *unserved), paths in changed.items():
            lines.append(f"{len(paths):5}  {what:{first}}  {by:{second}}  {_shown(paths)}")
            lines += [f"{'':5}  stays PyTorch's: {stays}" for stays in unserved]
        lines += [f"{len(paths):5}  left alone, {_shown(paths)}: {reason}" for reason, paths in left.items()]
        for device in self.devices:
            if unserved := [op for op in self.ops if all(device not in (k.devices or ()) for k in get(op).kernels)]:
                lines.append(f"{'':5}  on {device} PyTorch serves {', '.join(unserved)}, unless kernels are preferred")
        return "\n".join(lines)


OPS = {"attention": "flash_attention", "bias_gradient": "linear_act_backward", "unaligned_linear": "linear_act"}
"""The ops that serve a kind, where they are not called like it."""

INSIDE = {"scaled_dot_product_attention": "flash_attention"}
"""The op that a function of ours calls."""


def _ops(change: Change) -> tuple[str, ...]:
    return change.ops or tuple([OPS.get(kind, kind) for kind in change.kind.split(", ")])


def _shown(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]}, {'… ' if len(paths) > 2 else ''}{paths[-1]}"
