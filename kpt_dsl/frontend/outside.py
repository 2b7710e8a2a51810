"""What the names mean that a kernel's text takes from outside: globals, closures, attributes of modules, helpers and theirs.

A kernel follows them: each call looks whether any has changed, which costs a look into a dictionary a name, and a text that was
read with other values is another text. A helper counts by its own text and names, a plain Python function by its code and the
names in that; what lies in libraries is taken to stay. Objects whose content cannot be seen to change (arrays, instances) are
not followed, and a kernel that uses one is refused.
"""

import ast
import builtins
import dis
import hashlib
import importlib
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from numbers import Number
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakValueDictionary

from kpt_dsl import language
from kpt_dsl.dtypes import DType
from kpt_dsl.errors import KernelError
from kpt_dsl.frontend.source import Source

Function = Callable[..., Any]
Values = Mapping[tuple[Function, str], Any]
"""The function whose text has a name, and the name, dotted where it goes through modules -> what it means."""

DECLARED: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Kernels and helpers that are alive, by their ``id``: for whoever cannot be handed objects."""

_PACKAGE = __name__.partition(".")[0]
_ABSENT: Any = object()
_DEEPEST = 20
_HEAP_TYPE = 1 << 9
"""The flag of types that Python code made (CPython, Include/object.h), and could make again."""
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_SAYS_ALL = (Number, str, bytes, type(None), type(...), range, DType, Enum)
"""Kinds of values whose ``repr`` says everything."""


class Unfollowed:
    """Stands for a value whose content may change unseen. ``what`` says what it is, for an error message."""

    def __init__(self, what: str) -> None:
        self.what = what


@dataclass(frozen=True)
class Meaning:
    """The text of a kernel or helper with what its names from outside mean at one time; equal ones mean the same.

    ``hash`` covers the text, without layout and comments, and all that it names. ``values`` are a copy: lists and dictionaries
    that change later do not change them.
    """

    name: str
    hash: str
    source: Source = field(compare=False, repr=False)
    values: Values = field(compare=False, repr=False)

    def __reduce__(self) -> tuple[Callable[..., "Meaning"], tuple[str, str, str]]:
        """By name: another process reads the text from its own source, and its own values."""
        return _meaning_of, (self.source.fn.__module__, self.source.fn.__qualname__, self.hash)


def _meaning_of(module: str, name: str, wanted: str) -> Meaning:
    found: Meaning = getattr(importlib.import_module(module), name).now()
    if found.hash != wanted:
        raise KernelError(
            f"{module}:{name} has another text or other values in a process that compiles or measures it: what it names "
            f"from outside must be set when {module} is imported"
        )
    return found


class Outside:
    """The names from outside of one text, and of all that it inlines or calls. ``now()`` costs little where none changed."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._texts: dict[Function, _Text] = {}
        self._seen: _Survey | None = None

    def now(self) -> Meaning:
        """The text's meaning today: the same object as before where nothing has changed."""
        seen = self._seen
        if seen is None:
            return self._survey()
        for space, name, value in seen.watched:
            if space.get(name, _ABSENT) is not value:
                return self._survey()
        for changes in seen.changing:
            if changes():
                return self._survey()
        return seen.meaning

    def _survey(self) -> Meaning:
        self._seen = seen = _Survey(self._source, self._texts)
        return seen.meaning


class Helper:
    """A @kd.function: inlined where it is called. Two are equal where their texts and all that they name are."""

    def __init__(self, source: Source) -> None:
        self.name = source.fn.__name__
        self.source = source
        self.__doc__ = source.fn.__doc__
        self.__wrapped__ = source.fn
        self._outside = Outside(source)
        DECLARED[id(self)] = self

    def now(self) -> Meaning:
        """The helper with what its names from outside mean now."""
        return self._outside.now()

    @property
    def hash(self) -> str:
        """Of its text, of what that inlines and of the constants that it names, as they are now."""
        return self.now().hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Helper) and self.now() == other.now())

    def __hash__(self) -> int:
        return hash(self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """For editors and type checkers: a value, or a tuple of them."""
        language._never(self.name)

    def __repr__(self) -> str:
        return f"<function {self.source.fn.__module__}:{self.source.fn.__qualname__}>"

    def __reduce__(self) -> tuple[Callable[..., "Helper"], tuple[str, str]]:
        """By name: another process reads the helper from its own source."""
        return _helper_of, (self.source.fn.__module__, self.source.fn.__qualname__)


def _helper_of(module: str, name: str) -> Helper:
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, Helper)
    return found


# ------------------------------------------------------------------ one look at everything
class _Survey:
    """Every name from outside with its value, what would show that one has changed, and the hash of it all."""

    def __init__(self, source: Source, texts: "dict[Function, _Text]") -> None:
        self._texts = texts
        self._parts: list[str] = []
        self._values: dict[tuple[Function, str], Any] = {}
        self._watched: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
        self._changing: list[Callable[[], bool]] = []
        self._numbers: dict[Function, int] = {}
        self._home = _module(source.fn).partition(".")[0]
        self._add(source.fn, source)
        digest = hashlib.sha256("\n".join(self._parts).encode()).hexdigest()[:16]
        self.meaning = Meaning(source.fn.__name__, digest, source, self._values)
        self.watched = tuple(self._watched.values())
        self.changing = tuple(self._changing)

    def _add(self, fn: Function, source: Source | None) -> None:
        """A text and all that it names; ``source``: of a kernel or helper, None for a Python function."""
        self._numbers[fn] = len(self._numbers)
        text = self._texts.get(fn)
        if text is None:
            text = self._texts[fn] = _kernel_text(source) if source else _code_text(fn.__code__)
        self._parts += text.parts
        self._values[fn, ""] = fn
        defaults = (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values())
        if defaults:
            self._parts.append(f"defaults={self._described(defaults, 0)}")
        for name in text.names:
            self._name(fn, name)

    def _name(self, fn: Function, name: str) -> None:
        root, *path = name.split(".")
        value, ours = self._root(fn, root), False
        for attribute in path:
            ours = isinstance(value, ModuleType) and _is_ours(value.__name__)
            value = self._attribute(value, attribute) if isinstance(value, ModuleType) else _ABSENT
        if value is _ABSENT:
            return
        kept = _copied(value)
        if kept is not value:
            self._changing.append(lambda: not _same(value, kept))
        if isinstance(value, ModuleType):
            self._values[fn, name] = value
            return
        known = len(self._numbers)
        said = self._described(kept, 0)
        self._values[fn, name] = kept if said is not None or ours else Unfollowed(_kind(value))
        inlined = isinstance(value, Helper | FunctionType) and len(self._numbers) > known
        builtin = _module(value) == "builtins" and getattr(value, "__name__", "") == name
        if not (inlined or builtin or (ours and callable(value))):  # the text itself says those
            self._parts.append(f"{name}={said or type(value).__qualname__}")

    def _root(self, fn: Function, name: str) -> Any:
        code = fn.__code__
        if name in code.co_freevars and fn.__closure__:
            cell = fn.__closure__[code.co_freevars.index(name)]
            value = _held(cell)
            self._changing.append(lambda: _held(cell) is not value)
            return value
        space = fn.__globals__
        value = space.get(name, _ABSENT)
        self._watched[id(space), name] = space, name, value
        return getattr(builtins, name, _ABSENT) if value is _ABSENT else value

    def _attribute(self, module: ModuleType, name: str) -> Any:
        space = vars(module)
        if _is_ours(module.__name__):
            return getattr(module, name, _ABSENT)
        if name in space or not hasattr(module, name):
            value = space.get(name, _ABSENT)
            self._watched[id(space), name] = space, name, value
            return value
        value = getattr(module, name)  # made by the module's own __getattr__
        self._changing.append(lambda: getattr(module, name, _ABSENT) is not value)
        return value

    def _described(self, value: Any, depth: int) -> str | None:
        """Everything that a value means in words, None where it cannot be followed."""
        if isinstance(value, Helper):
            return self._function(value.source.fn, value.source)
        if isinstance(value, _SAYS_ALL) or type(value).__name__.lower().endswith("dtype"):  # torch's and NumPy's
            return repr(value)
        if type(value) in (tuple, list, set, frozenset, dict) and depth < _DEEPEST:
            return self._container(value, depth)
        if isinstance(value, FunctionType) and not self._stays(value):
            said = self._function(value, None)
            troubled = [n for (fn, n), v in self._values.items() if fn is value and isinstance(v, Unfollowed)]
            return None if troubled else said
        if callable(value) and (isinstance(value, FunctionType) or _is_compiled(value)):
            return f"{_module(value)}.{getattr(value, '__qualname__', value)}"
        return None

    def _function(self, fn: Function, source: Source | None) -> str:
        if fn not in self._numbers:
            self._add(fn, source)
        return f"function {self._numbers[fn]}"

    def _container(self, value: Any, depth: int) -> str | None:
        pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        said = []
        for key, item in pairs:
            words = [self._described(x, depth + 1) for x in ((key, item) if isinstance(value, dict) else (item,))]
            if None in words:
                return None
            said.append(": ".join(str(w) for w in words))
        if isinstance(value, set | frozenset):
            said.sort()
        left, right = "()" if isinstance(value, tuple) else "[]" if isinstance(value, list) else "{}"
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return left + ", ".join(said) + comma + right

    def _stays(self, fn: FunctionType) -> bool:
        """Whether a Python function is a library's, whose code nobody changes while a program runs."""
        module = _module(fn).partition(".")[0]
        return module == _PACKAGE or (module != self._home and fn.__code__.co_filename.startswith(_LIBRARIES))


def _module(value: Any) -> str:
    return getattr(value, "__module__", None) or ""


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _is_compiled(value: Any) -> bool:
    """Whether something that can be called was made in C: a built-in function, or a type."""
    kind = value if isinstance(value, type) else type(value)
    return not kind.__flags__ & _HEAP_TYPE and type(value).__name__ not in ("partial", "method", "_lru_cache_wrapper")


def _kind(value: Any) -> str:
    if isinstance(value, FunctionType):
        return "a Python function that reads what cannot be followed"
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"of type {type(value).__qualname__}"


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet, or deleted
        return _ABSENT


def _copied(value: Any, depth: int = 0) -> Any:
    """A copy of lists, dictionaries and sets, down to what cannot change; the value itself where nothing in it can."""
    kind = type(value)
    if depth >= _DEEPEST:
        return value
    if kind is dict:
        return {key: _copied(item, depth + 1) for key, item in value.items()}
    if kind is set:
        return set(value)
    if kind in (list, tuple):
        items = [_copied(item, depth + 1) for item in value]
        return value if kind is tuple and all(map(_is, items, value)) else kind(items)
    return value


def _same(value: Any, copy: Any) -> bool:
    """Whether a value holds what it held when it was copied."""
    if value is copy:
        return True
    kind = type(value)
    if kind is not type(copy) or kind not in (dict, list, tuple, set) or len(value) != len(copy):
        return False
    if kind is set:
        return set(map(id, value)) == set(map(id, copy))
    if kind is dict:
        return all(map(_is, value, copy)) and all(map(_same, value.values(), copy.values()))
    return all(map(_same, value, copy))


def _is(a: Any, b: Any) -> bool:
    return a is b


# ------------------------------------------------------------------ texts and their names
@dataclass(frozen=True)
class _Text:
    """What a text is, without the values of its names; and those of its names that are not its own, in order."""

    parts: list[str]
    names: list[str]


def _kernel_text(source: Source) -> _Text:
    """Of a kernel or helper, which is read and never run."""
    tree = source.tree
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    parts = [ast.dump(tree.args), *map(ast.dump, tree.decorator_list), *map(ast.dump, body)]
    dotted = {name for node in ast.walk(tree) if (name := _dotted(node))}
    return _Text(parts, sorted(name for name in dotted if name.partition(".")[0] not in source.own))


def _code_text(code: CodeType) -> _Text:
    """Of a Python function, which is called while a kernel is read."""
    parts, names = [code.co_code.hex()], set(code.co_freevars)
    dotted = ""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF") and step.argval not in code.co_cellvars:
            dotted = str(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and dotted:
            dotted = f"{dotted}.{step.argval}"
        else:
            dotted = ""
        names.add(dotted)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _code_text(constant)
            parts += inner.parts
            names |= {name for name in inner.names if name.partition(".")[0] not in code.co_cellvars}
        else:
            parts.append(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant))
    return _Text([*parts, repr(code.co_names)], sorted(names - {""}))


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of such a node, "" of any other."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=base, attr=attribute) if before := _dotted(base):
            return f"{before}.{attribute}"
    return ""
