"""What the code of a model's modules says of their attention: read before replacing, as Transformers itself reads it.

Code that asks whether its attention is called "sdpa" (or "eager", where it runs that) computes something else under another
name: the sparse models apply their selection themselves there, and hand it on elsewhere. Code that names a keyword which nobody
understands needs an attention function of its own. Code that works out its mask from the one that it is given does otherwise
where it is given none, as PyTorch's may be, and kpt's causal one never is.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from kpt.ops.replace.keywords import EAGER, PYTORCHS, SCORES, SDPA, WHOSE, not_understood

NAMES = {SDPA: "kpt", EAGER: "kpt_own"}
"""Under which Transformers knows kpt's attention in the place of a former function: ``config._attn_implementation``."""

_ATTRIBUTES = frozenset({"_attn_implementation", "attn_implementation", "_attn_implementation_internal"})
"""How code calls the name of its attention."""

_INTERFACES = ("ALL_ATTENTION_FUNCTIONS", "AttentionInterface", ".get_interface(")


@dataclass(frozen=True, slots=True)
class Findings:
    """Of a class or a module's functions: why it cannot run kpt's attention, the keywords of PyTorch's that it passes, what of
    ``SCORES`` it passes, each with the attribute of self that is passed, or "", and whether it calls an attention function."""

    refusals: tuple[str, ...] = ()
    pytorchs: tuple[str, ...] = ()
    scores: tuple[tuple[str, str], ...] = ()
    attends: bool = False

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(
            tuple(dict.fromkeys(self.refusals + other.refusals)),
            tuple(dict.fromkeys(self.pytorchs + other.pytorchs)),
            tuple(dict.fromkeys(self.scores + other.scores)),
            self.attends or other.attends,
        )


def findings(kind: type[nn.Module], former: str) -> Findings:
    """What the code of a class of modules that runs a former function says, that of its bases and of the functions beside it
    included."""
    found = Findings()
    for base in kind.__mro__:
        # What Transformers shares between models knows every registered name; torch knows none.
        package = base.__module__.split(".")
        if package[0] in ("torch", "builtins", "typing", "abc"):
            continue
        if package[0] == "transformers" and package[1] != "models":
            continue
        of_file = _of_file(base.__module__, former)
        found = found + of_file.get(base.__name__, Findings()) + of_file.get("", Findings())
    return found


@cache
def _of_file(module: str, former: str) -> dict[str, Findings]:
    """The findings of each class of a module, and under "" those of its functions. None where the source cannot be read: where
    it is a model's, Transformers does not let its attention be chosen then."""
    loaded = sys.modules.get(module)
    try:
        tree = ast.parse(inspect.getsource(loaded)) if loaded is not None else None
    except (OSError, TypeError, SyntaxError):
        tree = None
    found: dict[str, Findings] = {}
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef):
            found[node.name] = _of_code(node, vars(loaded), former)
        elif isinstance(node, ast.FunctionDef):
            found[""] = found.get("", Findings()) + _of_code(node, vars(loaded), former)
    return found


def dropped(module: nn.Module, former: str) -> list[str]:
    """What of ``SCORES`` a module passes that its former function drops; not where it passes an attribute that is None."""
    scores = findings(type(module), former).scores
    return not_understood([name for name, held in scores if not held or getattr(module, held, held) is not None], former)


def _of_code(code: ast.AST, names: dict[str, Any], former: str) -> Findings:
    refusals, pytorchs, scores, attends = [], [], [], False
    for function in [n for n in ast.walk(code) if isinstance(n, ast.FunctionDef)]:
        if function.name == "__init__":
            continue  # ran before, under the name that the model was built with
        if _tells_apart(function, names, former):
            refusals.append(f'asks whether its attention is "{former}" by name, and does otherwise where it is not')
        calls = list(_calls_of_attention(function))
        if any(_works_out_mask(function, call) for call in calls):
            refusals.append("works out a mask of its own from the one that it is given, or from none")
        keywords = [keyword for call in calls for keyword in _keywords(call)]
        passed = [name for name, _ in keywords]
        refusals += [
            f"passes {name}, which neither kpt's nor {WHOSE[former]} attention understands"
            for name in not_understood(passed, former)
            if name not in SCORES
        ]
        pytorchs += [name for name in passed if name in PYTORCHS]
        scores += [(name, _of_self(value)) for name, value in keywords if name in SCORES]
        attends = attends or bool(calls)
    return Findings(
        tuple(dict.fromkeys(refusals)), tuple(dict.fromkeys(pytorchs)), tuple(dict.fromkeys(scores)), attends
    )


def _calls_of_attention(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """Where a function calls an attention function that it looked up."""
    looked_up = {ast.unparse(target) for target, value in _assigned(function) if _is_look_up(value)}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and (ast.unparse(node.func) in looked_up or _is_look_up(node.func)):
            yield node


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets of assignments in a function, and what they are assigned."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            yield from ((target, node.value) for target in node.targets)
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and node.value is not None:
            yield (
                node.target,
                node.value if isinstance(node, ast.AnnAssign) else ast.BinOp(node.target, node.op, node.value),
            )


def _of_self(value: ast.expr) -> str:
    """The name of the attribute of self that an expression is, or ""."""
    match value:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name
    return ""


def _keywords(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Keywords that a call of an attention function names, and their values; a constant None asks nothing."""
    for keyword in call.keywords:
        is_none = isinstance(keyword.value, ast.Constant) and keyword.value.value is None
        if keyword.arg is not None and keyword.arg not in _ARGUMENTS and not is_none:
            yield keyword.arg, keyword.value


def _works_out_mask(function: ast.FunctionDef, call: ast.Call) -> bool:
    """The mask that a call passes is computed in the function: neither given, chosen nor sliced."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "attention_mask"]
    place = _ARGUMENTS.index("attention_mask")
    waiting: list[ast.expr] = named or call.args[place : place + 1]
    seen: set[str] = set()
    while waiting:
        match waiting.pop():
            case ast.Name(id=name):
                if name not in seen:
                    seen.add(name)
                    waiting += [
                        v for target, v in _assigned(function) if isinstance(target, ast.Name) and target.id == name
                    ]
            case ast.Subscript(value=value):
                waiting.append(value)
            case ast.IfExp(body=body, orelse=orelse):
                waiting += [body, orelse]
            case ast.Constant() | ast.Attribute() | ast.Starred() | ast.Call(func=ast.Attribute(attr="get" | "pop")):
                pass
            case _:
                return True
    return False


_ARGUMENTS = ("module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal")
"""What every attention function takes."""


def _is_look_up(node: ast.expr) -> bool:
    text = ast.unparse(node)
    return isinstance(node, (ast.Call, ast.Subscript)) and any(name in text for name in _INTERFACES)


def _tells_apart(function: ast.FunctionDef, names: dict[str, Any], former: str) -> bool:
    """Something in the function comes out differently for the names of a former function and of kpt's in its place."""
    aliases = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _is_name(node.value, frozenset())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    known = frozenset(aliases)
    without_masks = {
        inner
        for node in ast.walk(function)
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) and any(map(_needs_no_mask, node.values))
        for inner in ast.walk(node)
    }
    return any(node not in without_masks and _differs(node, known, names, former) for node in ast.walk(function))


def _needs_no_mask(condition: ast.expr) -> bool:
    """It holds only where some mask is None. Under kpt no causal one is, and one that masks nothing is right by any name."""
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Is)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value is None
        and "mask" in ast.unparse(node.left)
        for node in ast.walk(condition)
    )


def _is_name(node: ast.AST, aliases: frozenset[str]) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    return isinstance(node, ast.Name) and (node.id in aliases or node.id in _ATTRIBUTES)


def _differs(node: ast.AST, aliases: frozenset[str], names: dict[str, Any], former: str) -> bool:
    """A question about the name, answered for both; one whose answer cannot be worked out counts as told apart."""
    if isinstance(node, ast.Match):
        return _is_name(node.subject, aliases)
    if isinstance(node, ast.Subscript):
        return _is_name(node.slice, aliases) and _lacks(node.value, names, former)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if _is_name(node.func.value, aliases):
            return True  # startswith and its like
        asked = node.func.attr == "get" and node.args and _is_name(node.args[0], aliases)
        return bool(asked) and _lacks(node.func.value, names, former)
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return isinstance(node, ast.Compare) and any(_is_name(side, aliases) for side in (node.left, *node.comparators))
    sides = [node.left, node.comparators[0]]
    ours = [side for side in sides if _is_name(side, aliases)]
    if not ours or len(ours) == 2:
        return False
    other = _value(sides[0] if ours[0] is sides[1] else sides[1], names)
    if other is _UNKNOWN:
        return True
    if isinstance(node.ops[0], (ast.In, ast.NotIn)):
        return (former in other) != (NAMES[former] in other)
    return bool((other == former) != (other == NAMES[former]))


_UNKNOWN = object()


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """A constant, or what a name or an attribute of one stands for."""
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNKNOWN)
    if isinstance(node, ast.Attribute):
        base = _value(node.value, names)
        return _UNKNOWN if base is _UNKNOWN else getattr(base, node.attr, _UNKNOWN)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _UNKNOWN


def _lacks(table: ast.expr, names: dict[str, Any], former: str) -> bool:
    """A table of functions by name that has none for kpt's. Transformers' own has one once kpt is registered."""
    found = _value(table, names)
    return found is _UNKNOWN or NAMES[former] not in found
