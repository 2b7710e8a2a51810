"""The front end's names: what each means in a kernel's text, and what may have been meant by one that means nothing."""

import ast
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from kpt_dsl import dtypes, ir, language
from kpt_dsl.errors import InputError
from kpt_dsl.frontend.outside import Outside, Unfollowed, Values
from kpt_dsl.frontend.source import Source, fail
from kpt_dsl.ir import Loc

_UNKNOWN: Any = object()
_PACKAGE = __name__.partition(".")[0]
WORDS = (
    *(n for n, v in vars(language).items() if not n.startswith("_") and getattr(v, "__module__", "") == language.__name__),
    "Static", "inf", *(name for name in dtypes.ALL if name != "bool"),
)  # fmt: skip
"""What a kernel's text may have of kpt_dsl."""


@dataclass
class Local:
    """Names of one scope: what they mean now, which ended with a loop, the prefix of variables made here, and those that stand
    for arguments of the kernel that are None, with the arguments' names."""

    values: dict[str, Any]
    ended: dict[str, Loc]
    prefix: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)


class Names:
    """The names of the text that is being read, in the scope that is being read."""

    def __init__(self, source: Source, local: Local, outside: Values) -> None:
        self.source = source
        self.local = local
        self.outside = dict(outside)

    def name(self, name: str, loc: Loc) -> Any:
        if name in self.local.values:
            value = self.local.values[name]
            return replace(value, loc=loc) if isinstance(value, ir.Var) else value
        if name in self.local.ended:
            fail(loc, f"{name} is used outside the loop (line {self.local.ended[name].line}) that defines it",
                 f"define {name} before the loop, so that the loop carries it out")  # fmt: skip
        if name in self.source.own:
            whose = self.source.fn.__name__
            fail(loc, f"{name} has no value here",
                 f"assign it on every way here: as in Python, {name} is {whose}'s own everywhere in it")  # fmt: skip
        if (found := self.from_outside(name, loc)) is _UNKNOWN:
            fail(loc, f"{name} is not defined", self.suggestion(name) or "assign it first, or import it")
        return found

    def suggestion(self, name: str) -> str:
        """A name that may have been meant: of a local value, a value or helper from outside, or one of kd's words."""
        outside = {n: v for n, v in self.source.fn.__globals__.items() if not n.startswith("_")}
        named = [n for n, v in outside.items() if not isinstance(v, ModuleType | type)]
        close = difflib.get_close_matches(name, [*self.local.values, *named], n=1)
        prefix = next((n for n, v in outside.items() if isinstance(v, ModuleType) and v.__name__ == _PACKAGE), "")
        if not close and prefix:
            close = [f"{prefix}.{word}" for word in difflib.get_close_matches(name, WORDS, n=1)]
        return f"did you mean {close[0]}?" if close else ""

    def from_outside(self, name: str, loc: Loc) -> Any:
        """What a name, dotted where it goes through modules, meant when the kernel was bound."""
        fn = self.source.fn
        if (fn, "") not in self.outside:  # a helper that a Python function made
            self.outside |= Outside(self.source).now().values
        found = self.outside.get((fn, name), _UNKNOWN)
        if isinstance(found, Unfollowed):
            fail(loc, f"{name} is {found.what}: what is in it may change unseen, so a kernel cannot read it",
                 "name numbers, strings, dtypes, lists and dictionaries of them; pass arrays as arguments")  # fmt: skip
        return found

    def of_module(self, module: ModuleType, node: ast.Attribute, loc: Loc) -> Any:
        """An attribute of a module, which is written out with it."""
        ours = module.__name__ == _PACKAGE
        found = self.from_outside(ast.unparse(node), loc)
        if found is not _UNKNOWN and (not ours or node.attr in WORDS or isinstance(found, ModuleType)):
            return found
        if hasattr(module, node.attr) and not ours:
            fail(loc, f"{node.attr} of the module {module.__name__}, which has another name here",
                 f"write out the name by which {module.__name__} was imported")  # fmt: skip
        public = [n for n, v in vars(module).items() if not n.startswith("_") and not isinstance(v, ModuleType)]
        close = difflib.get_close_matches(node.attr, WORDS if ours else public, n=1)
        otherwise = "docs/language.md lists all words" if ours else "assign it there first"
        what = f"{module.__name__} has no {node.attr}" + (" for the text of a kernel" if ours else "")
        fail(loc, what, f"did you mean {close[0]}?" if close else otherwise)

    def present(self, x: Any, loc: Loc) -> None:
        """Raises InputError where a value is that of an argument that is None, and the text uses it all the same."""
        words = re.findall(r"\w+", loc.text[loc.column : loc.end_column])
        if x is None and (names := [name for name in self.local.absent if name in words]):
            argument = self.local.absent[names[0]]
            fail(loc, f"argument {argument} is None, but is used here",
                 f"pass {argument}; or ask before, where a call may leave it out: if {names[0]} is not None",
                 InputError)  # fmt: skip
