"""What a kernel's author declared: a function, the dims of its tensors, the kinds of its other arguments."""

import ast
import difflib
import inspect
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from keyword import iskeyword
from typing import Any, Literal

from kpt_dsl import language
from kpt_dsl.errors import InputError
from kpt_dsl.frontend.outside import DECLARED, Helper, Meaning, Outside
from kpt_dsl.frontend.source import fail, read
from kpt_dsl.ir import Loc

Role = Literal["in", "out"]


class Definition:
    """A declared function.

    ``tensors``: tensor argument -> its dims; ``roles``: -> "in" or "out"; ``scalars``: -> "float" or "int", in ``integers`` and
    ``reals`` by name; ``statics``: names.
    """

    def __init__(self, fn: Callable[..., Any], dims: Mapping[str, str]) -> None:
        self.source = read(fn, "@kd.kernel(...)")
        self.fn = fn
        self.name = fn.__name__
        self.qualname = f"{fn.__module__}:{fn.__qualname__}"
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn
        self.now: Callable[[], Meaning] = Outside(self.source).now
        """The kernel's text with what its names from outside mean now."""
        self.tensors: dict[str, tuple[str, ...]] = {}
        self.roles: dict[str, Role] = {}
        self.scalars: dict[str, Literal["float", "int"]] = {}
        self.positive: tuple[str, ...] = ()
        self.statics: tuple[str, ...] = ()
        self._declare(dims)
        self.integers = tuple(name for name, kind in self.scalars.items() if kind == "int")
        self.reals = tuple(name for name, kind in self.scalars.items() if kind == "float")
        self.signature = inspect.Signature(
            [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in inspect.signature(fn).parameters.values()]
        )
        parameters = self.signature.parameters.values()
        self.names = tuple(self.signature.parameters)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.outputs = tuple(name for name in self.names if self.roles.get(name) == "out")
        self._expected = set(self.names)
        self.backward: Any = None
        """What gives the gradients of its inputs (``runtime.torch_gradient.Gradient``), if anything does."""
        DECLARED[id(self)] = self

    def _declare(self, dims: Mapping[str, Any]) -> None:
        parameters = inspect.signature(self.fn).parameters
        places = {a.arg: self.source.loc(a) for a in ast.walk(self.source.tree.args) if isinstance(a, ast.arg)}
        whole = self.source.loc(self.source.tree)
        optional = ""
        for name, parameter in parameters.items():
            loc = places[name]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                fail(
                    loc,
                    f"argument {parameter} takes any number of values",
                    "write the arguments out, each with its kind",
                )
            if parameter.default is not parameter.empty:
                optional = name
            elif optional:
                fail(loc, f"argument {name} has no default, but {optional} has one", f"write {name} before {optional}")
            kind = self._kind(parameter, loc)
            if kind in (language.In, language.Out):
                given = dims.get(name, "")
                if not isinstance(given, str):
                    named = " ".join(map(str, given)) if isinstance(given, (list, tuple)) else "M N"
                    fail(
                        loc, f"dims of {name} are {given!r}", f'write them as one string: @kd.kernel({name}="{named}")'
                    )
                if not given.split():
                    fail(loc, f"tensor {name} has no dims", f'name them in the decorator: @kd.kernel({name}="M N")')
                self.tensors[name] = tuple(given.split())
                self.roles[name] = "in" if kind is language.In else "out"
                if bad := [d for d in self.tensors[name] if not d.isidentifier() or iskeyword(d)]:
                    fail(
                        loc,
                        f"{bad[0]!r} cannot name a dim of {name}",
                        'dims are identifiers with spaces between: "B H M D"',
                    )
                if len(set(self.tensors[name])) != len(self.tensors[name]):
                    fail(loc, f"dims of {name} repeat: {dims[name]!r}", "give each dim a name of its own")
            elif kind in (language.Float, language.Positive, language.Int):
                self.scalars[name] = "int" if kind is language.Int else "float"
                if kind is language.Positive:
                    self.positive = (*self.positive, name)
            elif kind is language.Static:
                self.statics = (*self.statics, name)
            else:
                fail(
                    loc,
                    f"argument {name} has no kind",
                    f"annotate it: {name}: kd.In, kd.Out, kd.Float, kd.Positive, kd.Int or kd.Static",
                )
        if unknown := set(dims) - set(self.tensors):
            fail(whole, f"the decorator gives dims for {sorted(unknown)}, which are not tensor arguments",
                 f"tensor arguments are {', '.join(self.tensors) or 'none'}")  # fmt: skip
        if "out" not in self.roles.values():
            fail(whole, f"kernel {self.name} has no output", "annotate the tensors it writes with kd.Out")

    def _kind(self, parameter: inspect.Parameter, loc: Loc) -> Any:
        """An argument's annotation, which is a string under ``from __future__ import annotations``."""
        kind = parameter.annotation
        closure = zip(self.fn.__code__.co_freevars, self.fn.__closure__ or (), strict=True)
        try:
            known = {name: cell.cell_contents for name, cell in closure}
            while isinstance(kind, str):
                kind = eval(kind, self.fn.__globals__, known)
        except Exception as error:
            fail(loc, f"the kind of {parameter.name} cannot be read: {error}",
                 "write it as kd.In, with kd imported in this module or used in the kernel")  # fmt: skip
        return kind

    @property
    def source_hash(self) -> str:
        """Of the kernel's text, the helpers it inlines and what it names from outside now, without layout and comments."""
        return self.now().hash

    @property
    def dim_names(self) -> tuple[str, ...]:
        """Every symbolic dim, in order of first use."""
        return tuple(dict.fromkeys(d for names in self.tensors.values() for d in names))

    @property
    def other_parameters(self) -> tuple[str, ...]:
        """Arguments that are no tensors."""
        return (*self.scalars, *self.statics)

    def static_values(self, given: Mapping[str, Any], partial: bool = False) -> tuple[tuple[str, Any], ...]:
        """What specialises this kernel: its static arguments, and None for optional scalars that are absent.

        ``partial``: a static argument that is not given takes its default, or None. Raises InputError for unhashable values.
        """
        given = {**self.defaults, **given}
        values: list[tuple[str, Any]] = []
        for name in self.statics:
            if partial and name not in given:
                values.append((name, None))
                continue
            value = given[name]
            if not (value is None or isinstance(value, (bool, int, float, str, Helper))):
                raise InputError(
                    f"{self.name}: static {name} is {value!r}; accepted are bool, int, float, str, None and @kd.function"
                )
            values.append((name, value))
        values.extend((name, None) for name in self.scalars if name in given and given[name] is None)
        return tuple(values)

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Arguments by name. Raises InputError where they do not fit the signature."""
        # By hand: the signature takes three times as long, and tells what is wrong.
        given = dict(zip(self.names, args)) | kwargs  # noqa: B905 - to torch.compile of PyTorch 2.9 any strict= is true
        arguments = self.defaults | given
        if len(given) != len(args) + len(kwargs) or arguments.keys() != self._expected:
            raise InputError(
                f"{self.name}: {self._why_unbound(len(args), *kwargs)}; its arguments are {', '.join(self.names)}"
            )
        for name in self.integers:
            if type(value := arguments[name]) is not int or not -0x80000000 <= value <= 0x7FFFFFFF:
                arguments[name] = self._integer(name, value)
        for name in self.reals:
            if type(value := arguments[name]) is not float:
                arguments[name] = self._real(name, value)
        for name in self.positive:
            if (value := arguments[name]) is not None and not value >= language.SMALLEST_POSITIVE:
                least = f"it must be above zero, {language.SMALLEST_POSITIVE:.3g} or more (a normal float32)"
                raise InputError(f"{self.name}: {name} is {value!r}; {least}")
        return {name: arguments[name] for name in self.names}

    def _why_unbound(self, count: int, *keywords: str) -> str:
        """Why so many arguments and these by name do not fit the signature, and what a misspelt one may have meant."""
        accepted = [*self.names, "config", "backend"]
        unknown = next((name for name in keywords if name not in accepted), None)
        if unknown is not None:
            close = difflib.get_close_matches(unknown, accepted, n=1)
            return f"there is no argument {unknown!r}" + (f"; did you mean {close[0]}?" if close else "")
        try:
            self.signature.bind(*range(count), **dict.fromkeys(keywords))
        except TypeError as error:
            return str(error)
        raise AssertionError(keywords)

    _why_unbound.__dict__["_dynamo_marked_constant"] = True  # torch.compile calls it, and does not follow what it calls

    def disagreement(
        self, dim: str, known: Any, first: str, extent: Any, name: str, shape: Sequence[Any]
    ) -> InputError:
        """For a dim that has two extents: ``known`` in the argument ``first``, another in ``name``."""
        return InputError(
            f"{self.name}: dim {dim} is {known} in {first} but {extent} in {name} "
            f"(shape {tuple(shape)} for ({', '.join(self.tensors[name])}))"
        )

    def _integer(self, name: str, value: Any) -> int | None:
        """What was given for a ``kd.Int``, as a number of Python. Raises InputError for all but whole numbers of int32."""
        if value is None:  # where the text uses it then, it says so itself
            return None
        if _is_symbolic(value):
            return value  # type: ignore[no-any-return]
        accepted = f"a kd.Int is a whole number from {-(2**31)} to {2**31 - 1}"
        if not isinstance(value, bool):  # which is a whole number to Python
            try:
                whole = operator.index(value)
            except Exception:  # a traced array says so with an error of its own
                pass
            else:
                if -(2**31) <= whole < 2**31:
                    return whole
        raise InputError(f"{self.name}: {name} is {value!r} ({type(value).__name__}); {accepted}")

    def _real(self, name: str, value: Any) -> Any:
        """The same for a ``kd.Float``. A JAX scalar, which may be traced, stays what it is."""
        if value is None:  # where the text uses it then, it says so itself
            return None
        if _is_symbolic(value):
            return value
        if not isinstance(value, bool) and isinstance(value, numbers.Real):
            return float(value)
        if type(value).__module__.partition(".")[0] in ("jax", "jaxlib") and getattr(value, "shape", None) == ():
            return value
        raise InputError(
            f"{self.name}: {name} is {value!r} ({type(value).__name__}); a kd.Float is a real number"
        )

    def __repr__(self) -> str:
        return f"<kernel {self.qualname}>"


def _is_symbolic(value: Any) -> bool:
    """Whether a number is PyTorch's stand-in for one, while a program is traced for all of them."""
    return type(value).__module__ == "torch" and type(value).__name__ in ("SymInt", "SymFloat")
