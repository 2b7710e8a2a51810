"""Names in a generated module: the author's where possible, made unique where two meanings would share one."""

import builtins
import keyword

RESERVED = frozenset({"tl", "triton", "program", *dir(builtins), *keyword.kwlist}) - {"next"}
"""What generated text means by itself; ``next``, which Gluon's consumers call their next slot, is taken there when it is."""


class Names:
    """Hands out identifiers; each is taken once, and each key keeps the name it was first given."""

    def __init__(self) -> None:
        self._taken = set(RESERVED)
        self._known: dict[object, str] = {}

    def new(self, wanted: str) -> str:
        """``wanted``, or that with underscores where it is taken."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted

    def of(self, key: object, wanted: str) -> str:
        """The name of ``key``: the one it has, or a new one like ``wanted``."""
        if key not in self._known:
            self._known[key] = self.new(wanted)
        return self._known[key]
