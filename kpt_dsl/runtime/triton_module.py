"""From generated text to a Triton function. The text is executed as it is; nothing is ever loaded from a cache folder."""

import linecache
from functools import lru_cache
from threading import RLock
from types import ModuleType
from typing import Any

from kpt_dsl.emit import Source
from kpt_dsl.errors import MissingPackageError

LOCK = RLock()
"""Held while a kernel compiles or is interpreted: interpreting changes Triton's language for the whole process."""


def triton_package() -> Any:
    """The triton package. Raises MissingPackageError without it."""
    try:
        import triton
    except ImportError as error:
        raise MissingPackageError(
            f"compiling or running generated Triton code needs the package triton: {error}"
        ) from error
    return triton


@lru_cache(maxsize=1024)
def function(source: Source) -> Any:
    """The kernel of a generated module, a ``triton.JITFunction``."""
    triton_package()
    # Triton reads the source of its functions back through inspect, which asks linecache.
    filename = f"<kpt {source.name} {source.digest}>"
    linecache.cache[filename] = (len(source.text), None, source.text.splitlines(keepends=True), filename)
    module = ModuleType(f"kpt_generated.{source.name}_{source.digest}")
    module.__file__ = filename
    exec(compile(source.text, filename, "exec"), module.__dict__)
    return getattr(module, source.name)
