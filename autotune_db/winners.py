"""Winners by key and by kernel, wherever they were read from.

Knows no file; an item may parse its entry as late as it is asked for. A look-up does not grow with the entries: those of a
kernel are indexed the first time that it asks for siblings.
"""

import contextlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

from autotune_db.entry import Entry
from autotune_db.sibling import Likeness, likeness


class Item(Protocol):
    """A winner that may not be parsed yet. ``plain_key`` is what ``Key.to_dict`` gives, or anything; ``entry`` may be None."""

    @property
    def digest(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def known(self) -> str: ...
    @property
    def plain_key(self) -> Any: ...
    @property
    def entry(self) -> Entry | None: ...


class Winners:
    """Of several winners for one key that are known in one way, the last one given stands."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._standing = {(item.digest, item.known): item for item in items}
        self._of_kernel: dict[str, list[Item]] = defaultdict(list)
        self._devices: dict[str, dict[str, None]] = defaultdict(dict)
        for item in self._standing.values():
            self._of_kernel[item.kernel].append(item)
            if isinstance(item.device, str):
                self._devices[item.kernel][item.device] = None
        self._families: dict[tuple[str, frozenset[str]], dict[Hashable, list[tuple[Likeness, Item]]]] = {}

    def __len__(self) -> int:
        return len(self._standing)

    def get(self, digest: str, known: str) -> Entry | None:
        """The winner of exactly this key that is known in this way (``Entry.known``)."""
        item = self._standing.get((digest, known))
        return item.entry if item else None

    def relatives(self, kernel: str, family: Hashable, exact: frozenset[str]) -> Sequence[tuple[Likeness, Item]]:
        """The winners of a kernel that belong to a family, which has these exact dims."""
        if (kernel, exact) not in self._families:
            families: dict[Hashable, list[tuple[Likeness, Item]]] = defaultdict(list)
            self._families[kernel, exact] = families
            for item in self._of_kernel.get(kernel, ()):
                # A row that holds no key is nobody's relative.
                with contextlib.suppress(LookupError, AttributeError, TypeError, ValueError):
                    like = likeness(item.plain_key, exact)
                    families[like.family].append((like, item))
        return self._families[kernel, exact].get(family, ())

    def devices(self, kernel: str) -> Iterable[str]:
        """The devices that a kernel was tuned for, each once."""
        return self._devices.get(kernel, ())
