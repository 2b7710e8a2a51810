"""A function's own code in which names that it looks up mean something else: there, and in no namespace that others see."""

import dis
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import CodeType, FunctionType, ModuleType
from typing import Any

ELSEWHERE = ("__builtins__", "__package__", "__spec__")
"""What Python looks up for a function that its code does not name. ``__name__`` is left out: torch.compile would look names up
in the module that is called so."""


def exchanged(function: Any, others: Mapping[str, Any]) -> FunctionType:
    """The same function of Python's, with these global names for what it is given; all else as it is now."""
    known = function.__globals__
    names = {name: known[name] for name in (*global_names(function.__code__), *ELSEWHERE) if name in known}
    made = FunctionType(
        function.__code__, {**names, **others}, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, function.__annotations__
    made.__module__, made.__qualname__, made.__doc__ = function.__module__, function.__qualname__, function.__doc__
    return made


def giving_way(function: FunctionType, others: Mapping[str, Any]) -> Callable[..., Any]:
    """``exchanged``, until a name that it looks up means something else to the function that it was made of, which runs from
    then on: names of libraries are patched, settings among them, and a copy of them is not."""
    made, known = exchanged(function, others), function.__globals__
    names = tuple([(name, known.get(name, known)) for name in dict.fromkeys(global_names(function.__code__))])

    def still() -> bool:
        return all(known.get(name, known) is value for name, value in names)

    vars(still)["_dynamo_marked_constant"] = True  # torch.compiler.assume_constant_result, which imports all of torch.compile

    @wraps(function)
    def run(*args: Any, **keywords: Any) -> Any:
        return made(*args, **keywords) if still() else function(*args, **keywords)

    vars(run)["still"] = still
    return run


def is_as_now(function: Any) -> bool:
    """Whether a function gives no way to another, as one that was not made so never does."""
    return getattr(function, "still", lambda: True)()


class Within(ModuleType):
    """A module as somebody else has it: at ``path``, of names with dots between, it gives ``other``, and else what it gives."""

    def __init__(self, module: ModuleType, path: str, other: Any) -> None:
        super().__init__(module.__name__)
        name, _, rest = path.partition(".")
        vars(self).update({name: Within(getattr(module, name), rest, other) if rest else other, "_module": module})

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)


def within(module: ModuleType) -> ModuleType:
    """What somebody else has in the place of a module: that module; a module itself where it is nobody's."""
    while isinstance(module, Within):
        module = vars(module)["_module"]
    return module


def global_names(code: CodeType) -> Iterator[str]:
    """Names that a function's code and that of those inside it look up, of attributes' none."""
    yield from (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)
