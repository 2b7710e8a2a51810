"""Calls of kernels that are given no outputs, and make them: what both PyTorch's and JAX's have in common."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kpt_dsl.errors import InputError

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition


def with_dtypes(
    kernel: "Definition",
    args: tuple[Any, ...],
    named: dict[str, Any],
    way: str,
    is_dtype: Callable[[Any], bool],
    of_inputs: Callable[[dict[str, Any]], Any],
) -> dict[str, Any]:
    """The arguments of a call without outputs by name; the outputs as their dtypes, or None.

    ``way``: the method that makes them; ``is_dtype``: whether a value is a dtype of its library; ``of_inputs``: the dtype that
    arguments give to outputs. Raises InputError as ``bind``.
    """
    inputs = [name for name in kernel.names if name not in kernel.outputs]
    if len(args) > len(inputs):
        raise InputError(
            f"{kernel.name}.{way}: {len(args)} arguments were given, but it makes its outputs and takes {len(inputs)}: "
            f"{', '.join(inputs)}"
        )
    first = dict(zip(inputs, args))  # noqa: B905 - to torch.compile of PyTorch 2.9 any strict= is true
    if twice := [name for name in named if name in first]:
        raise InputError(f"{kernel.name}.{way}: argument {twice[0]!r} was given twice")
    unsaid = [name for name in kernel.outputs if name not in kernel.defaults and name not in named]
    arguments = kernel.bind(**dict.fromkeys(unsaid), **first, **named)
    for name in kernel.outputs:
        value = arguments[name]
        if name in unsaid:
            arguments[name] = of_inputs(arguments)
        elif value is not None and not is_dtype(value):
            raise InputError(
                f"{kernel.name}.{way}: {name} is {type(value).__name__}; it makes its outputs, so give the dtype of {name}, "
                f"None or nothing; to write into a tensor of yours, call {kernel.name} itself"
            )
    if all(arguments[name] is None for name in kernel.outputs):
        raise InputError(f"{kernel.name}.{way}: no output is left to make; give the dtype of one")
    return arguments


def without_extent(kernel: "Definition", output: str, dim: str) -> InputError:
    """For an output with a dim that no input has."""
    return InputError(
        f"{kernel.name}: dim {dim} of output {output} is in no input, so that a call does not say how long it is: make "
        f"{output} yourself, and call {kernel.name} with it, or, in JAX, let an input have that dim"
    )


def only_or_all(outputs: Iterable[Any]) -> Any:
    """What a call gives: its output, or the tuple of them."""
    found = tuple(outputs)
    return found[0] if len(found) == 1 else found
