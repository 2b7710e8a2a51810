"""What replacing or restoring did, module by module."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """A module (or, for attention, a config) that changed: its path in the model, and what it was and became.

    ``unserved``: what of it is known to stay PyTorch's.
    """

    path: str
    kind: str
    before: str
    after: str
    unserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A module that looked like one to replace, and why it was left alone."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was changed and what was left alone; printing it gives a table, like modules in one line."""

    action: str
    changes: tuple[Change, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        changed: dict[tuple[str, ...], list[str]] = {}
        for c in self.changes:
            by = f"kpt.ops.{OPS.get(c.kind, c.kind)}" if self.action == "replaced" else "its own code"
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
        return "\n".join(lines)


OPS = {"attention": "flash_attention", "add_norm": "add_rms_norm, add_layer_norm"}
"""The ops that serve a kind, where they are not called like it."""


def _shown(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]}, {'… ' if len(paths) > 2 else ''}{paths[-1]}"
