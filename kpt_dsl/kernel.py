"""``@kd.kernel`` and ``@kd.function``: what a decorated function becomes, and how it is called.

Knows the front end and the door to the runtime; a backend is found only when a kernel is called.
"""

import ast
import inspect
import numbers
import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

from kpt_dsl import language
from kpt_dsl.errors import InputError, KernelError
from kpt_dsl.frontend.expressions import Helper
from kpt_dsl.frontend.source import Source, fail, fingerprint, read

Role = Literal["in", "out"]


def _helper_source(value: Any) -> Source | None:
    return value.source if isinstance(value, Helper) else None


def function(fn: Callable[..., Any]) -> Helper:
    """A helper for kernels: inlined where a kernel calls it, so one GELU serves every kernel. It ends with ``return``."""
    source = read(fn)
    return Helper(fn.__name__, fingerprint(source, _helper_source), source)


def kernel(**dims: str) -> Callable[[Callable[..., Any]], "Kernel"]:
    """Make a kernel of a function; each keyword names the dims of one tensor argument: ``@kd.kernel(x="M N", out="M N")``.

    Arguments are annotated kd.In, kd.Out, kd.Float and so on. Raises KernelError where the declaration is wrong;
    the body is read when the kernel is first used.
    """

    def decorate(fn: Callable[..., Any]) -> "Kernel":
        return Kernel(fn, dims)

    return decorate


class Kernel:
    """A kernel: call it on tensors, or hand it to ``kpt_dsl.source`` / ``kpt_dsl.compile`` / the tuner.

    ``tensors``: tensor argument -> its dims; ``roles``: -> "in" or "out"; ``scalars``: -> "float" or "int", in ``integers`` and
    ``reals`` by name; ``statics``: names.
    """

    def __init__(self, fn: Callable[..., Any], dims: Mapping[str, str]) -> None:
        self.fn = fn
        self.name = fn.__name__
        self.qualname = f"{fn.__module__}:{fn.__qualname__}"
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn
        self.source = read(fn)
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

    def _declare(self, dims: Mapping[str, str]) -> None:
        parameters = inspect.signature(self.fn, eval_str=True).parameters
        places = {a.arg: self.source.loc(a) for a in self.source.tree.args.args}
        whole = self.source.loc(self.source.tree)
        for name, parameter in parameters.items():
            loc = places.get(name, whole)
            kind = parameter.annotation
            if kind in (language.In, language.Out):
                if not isinstance(dims.get(name), str) or not dims[name].split():
                    fail(loc, f"tensor {name} has no dims", f'name them in the decorator: @kd.kernel({name}="M N")')
                self.tensors[name] = tuple(dims[name].split())
                self.roles[name] = "in" if kind is language.In else "out"
                if bad := [d for d in self.tensors[name] if not d.isidentifier()]:
                    fail(loc, f"{bad[0]!r} cannot name a dim of {name}", 'dims are identifiers: "B H M D"')
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

    @cached_property
    def source_hash(self) -> str:
        """Of the kernel's text, the helpers it inlines and the constants it names, without layout and comments."""
        return fingerprint(self.source, _helper_source)

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
        values: list[tuple[str, Any]] = []
        for name in self.statics:
            if partial and name not in given:
                default = self.signature.parameters[name].default
                values.append((name, None if default is inspect.Parameter.empty else default))
                continue
            value = given[name]
            if not (value is None or isinstance(value, bool | int | float | str | Helper)):
                raise InputError(
                    f"{self.name}: static {name} is {value!r}; accepted are bool, int, float, str, None and @kd.function"
                )
            values.append((name, value))
        values.extend((name, None) for name in self.scalars if name in given and given[name] is None)
        return tuple(values)

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Arguments by name. Raises InputError where they do not fit the signature."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(
                f"{self.name}: {error}; its arguments are {', '.join(self.signature.parameters)}"
            ) from None
        bound.apply_defaults()
        given = bound.arguments
        for name in self.integers:
            if type(value := given[name]) is not int or not -0x80000000 <= value <= 0x7FFFFFFF:
                given[name] = self._integer(name, value)
        for name in self.reals:
            if type(value := given[name]) is not float:
                given[name] = self._real(name, value)
        for name in self.positive:
            if (value := given[name]) is not None and not value >= language.SMALLEST_POSITIVE:
                least = f"it must be above zero, {language.SMALLEST_POSITIVE:.3g} or more (a normal float32)"
                raise InputError(f"{self.name}: {name} is {value!r}; {least}")
        return dict(bound.arguments)

    def _integer(self, name: str, value: Any) -> int | None:
        """What was given for a ``kd.Int``, as a number of Python. Raises InputError for all but whole numbers of int32."""
        if value is None and name in self.may_be_absent:
            return None
        accepted = f"a kd.Int is a whole number from {-(2**31)} to {2**31 - 1}"
        if not isinstance(value, bool):  # which is a whole number to Python
            try:
                whole = operator.index(value)
            except Exception:  # a traced array says so with an error of its own
                pass
            else:
                if -(2**31) <= whole < 2**31:
                    return whole
        raise InputError(f"{self.name}: {name} is {value!r} ({type(value).__name__}); {accepted}{self._or_none(name)}")

    def _real(self, name: str, value: Any) -> Any:
        """The same for a ``kd.Float``. A JAX scalar, which may be traced, stays what it is."""
        if value is None and name in self.may_be_absent:
            return None
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            return float(value)
        if type(value).__module__.partition(".")[0] in ("jax", "jaxlib") and getattr(value, "shape", None) == ():
            return value
        raise InputError(
            f"{self.name}: {name} is {value!r} ({type(value).__name__}); a kd.Float is a real number{self._or_none(name)}"
        )

    def _or_none(self, name: str) -> str:
        return ", or None" if name in self.may_be_absent else ""

    @cached_property
    def may_be_absent(self) -> frozenset[str]:
        """The scalar arguments that may be None: by their default, or because the text asks ``is None``."""
        asked = {
            node.left.id
            for node in ast.walk(self.source.tree)
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name)
            and isinstance(node.ops[0], ast.Is | ast.IsNot)
            and isinstance(known := node.comparators[0], ast.Constant) and known.value is None
        }  # fmt: skip
        return frozenset(n for n in self.scalars if n in asked or self.signature.parameters[n].default is None)

    def __call__(self, *args: Any, config: Any = None, backend: str | None = None, **kwargs: Any) -> Any:
        """Run the kernel: torch tensors on their device (CUDA: Triton; CPU: NumPy), JAX arrays through Pallas.

        Outputs are written in place into the given tensors; JAX outputs are given as ``jax.ShapeDtypeStruct`` and returned.
        ``config`` overrides what the config database knows; ``backend`` is "triton", "pallas" or "numpy".
        Raises InputError for arguments that do not fit, CompileError where the compiler or the device refuses.
        """
        from kpt_dsl import runtime

        return runtime.call(self, self.bind(*args, **kwargs), config, backend)

    def __repr__(self) -> str:
        return f"<kernel {self.qualname}>"

    def __reduce__(self) -> tuple[Callable[[str], "Kernel"], tuple[str]]:
        """By name: another process reads the kernel from its own source."""
        return from_name, (self.qualname,)


def from_name(name: str) -> Kernel:
    """The kernel behind ``package.module:kernel``. Raises InputError where there is none."""
    import importlib

    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"kernel {name!r} is not of the form package.module:kernel")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"kernel {name!r} cannot be imported: {error}") from error
    if not isinstance(found, Kernel):
        raise InputError(f"{name!r} is {type(found).__name__}, not a function decorated with @kd.kernel")
    return found


__all__ = ["Kernel", "KernelError", "from_name", "function", "kernel"]
