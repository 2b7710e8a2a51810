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
    """What was changed and what was left alone; printing it reads well."""

    action: str
    changes: tuple[Change, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        lines = [f"{self.action} {len(self.changes)} of {len(self.changes) + len(self.skipped)}"]
        width = max(
            (len(path) for path in [*(c.path for c in self.changes), *(s.path for s in self.skipped)]), default=0
        )
        for c in self.changes:
            lines.append(f"  {c.path:{width}}  {c.before} -> {c.after}")
            lines += [f"  {'':{width}}  stays PyTorch's: {what}" for what in c.unserved]
        lines += [f"  {s.path:{width}}  left alone: {s.reason}" for s in self.skipped]
        return "\n".join(lines)
