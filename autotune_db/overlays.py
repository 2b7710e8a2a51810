"""Configs for a while: ``with overlay({softmax: Config(...)}):`` decides for the kernels named, before any database."""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

from kpt_dsl.configs import scope
from kpt_dsl.definition import Definition
from kpt_dsl.errors import InputError
from kpt_dsl.kernel import Kernel
from kpt_dsl.space import Config

_current: ContextVar[Mapping[str, Config]] = ContextVar("kpt_overlay", default={})  # noqa: B039 (never mutated)


@contextlib.contextmanager
def overlay(configs: Mapping[Kernel | str, Config]) -> Iterator[None]:
    """Within the block, in this thread or task, these kernels run with these configs.

    A kernel is named by itself or by its qualified name (``package.module:softmax``). Overlays nest; the inner one wins.
    Raises InputError for something that is not a config; a config that is illegal for a call raises ConfigError there.
    """
    named: dict[str, Config] = {}
    for kernel, config in configs.items():
        if not isinstance(config, Config):
            raise InputError(f"overlay: the config of {kernel} is {config!r}; give a kpt_dsl.space.Config")
        named[kernel.qualname if isinstance(kernel, Kernel) else kernel] = config
    token = _current.set({**_current.get(), **named})
    try:
        with scope():
            yield
    finally:
        _current.reset(token)


def overlaying() -> dict[Kernel | str, Config]:
    """What all overlays together say here: the qualified names of kernels, and their configs."""
    return dict(_current.get().items())


def overlaid(kernel: Definition) -> Config | None:
    """What the innermost overlay says about a kernel."""
    return _current.get().get(kernel.qualname)
