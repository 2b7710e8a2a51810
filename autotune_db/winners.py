"""Winners by key and by kernel, wherever they were read from.

Knows no file; an item may parse its entry as late as it is asked for.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from autotune_db.entry import Entry, Origin


class Item(Protocol):
    """A winner that may not be parsed yet. ``entry`` is None where it cannot be."""

    @property
    def digest(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def entry(self) -> Entry | None: ...


class Winners:
    """Of several winners for one key and origin, the last one given stands."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._standing = {(item.digest, item.origin): item for item in items}
        self._of_kernel: dict[str, list[Item]] = {}
        for item in self._standing.values():
            self._of_kernel.setdefault(item.kernel, []).append(item)

    def __len__(self) -> int:
        return len(self._standing)

    def get(self, digest: str, origin: Origin) -> Entry | None:
        """The winner of exactly this key."""
        item = self._standing.get((digest, origin))
        return item.entry if item else None

    def of_kernel(self, kernel: str) -> Iterator[Entry]:
        """Every winner of a kernel, by its qualified name."""
        return (item.entry for item in self._of_kernel.get(kernel, ()) if item.entry)

    def devices(self, kernel: str) -> frozenset[str]:
        """The devices that a kernel was tuned for."""
        return frozenset(item.device for item in self._of_kernel.get(kernel, ()))
