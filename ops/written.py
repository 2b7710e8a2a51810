"""Python that is written as text for one kind of calls, where a call would else work out the same again."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any


def written(lines: Sequence[str], values: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that these lines define, where names mean these values.

    They are its closure, not its globals: reading them takes no look into a dictionary, and the text is compiled once for all
    kinds of calls that differ in values only. Values that no line reads live as long as the function, too.
    """
    found: Callable[..., Any] = _maker("\n".join(lines), tuple(values))(*values.values())
    vars(found).update(values)
    return found


@lru_cache(maxsize=512)
def _maker(text: str, names: Sequence[str]) -> Callable[..., Callable[..., Any]]:
    """What makes the function of the values of its names."""
    name = text.removeprefix("def ").partition("(")[0]
    indented = text.replace("\n", "\n    ")
    scope: dict[str, Any] = {}
    exec(compile(f"def maker({', '.join(names)}):\n    {indented}\n    return {name}", f"<kpt {name}>", "exec"), scope)
    made: Callable[..., Callable[..., Any]] = scope["maker"]
    return made
