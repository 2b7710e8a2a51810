"""The calls that a program makes of ops, as plain data: what was called, on which shapes, how often. Saved, loaded, shown.

``with kpt.ops.recording() as calls:`` notes them at no cost a call: dispatch counts the calls of each kind anyway.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kpt.ops.decisions import Decision, leaving
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.fingerprint import is_of_tensor
from kpt.ops.registry import Op, get
from kpt_dsl import files, runtime, targets
from kpt_dsl.errors import InputError, KptError, TargetError

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.targets import Target

FORMAT = "kpt calls 1"

DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


@dataclass(frozen=True)
class Call:
    """One kind of call: the op and its arguments, tensors without their values, and how ``often`` it came.

    ``arguments`` are those of the op in order: tensors on the meta device, which have shapes, strides and dtypes; the rest as
    it was. ``served``: the implementation that took it.
    """

    op: str
    arguments: tuple[Any, ...]
    often: int = 1
    served: str = ""

    def instances(self, target: "Target") -> "list[Instance]":
        """The kernels that such a call can run on a target, with its extents. Raises InputError for what the op refuses."""
        op = get(self.op)
        op.check(*self.arguments)
        return op.record(self.arguments, target)

    def __str__(self) -> str:
        given = zip(_schema(self.op), self.arguments, strict=True)
        said = [(p.name, a) for p, a in given if isinstance(a, torch.Tensor) or a not in (None, p.default_value)]
        return f"{self.op}({', '.join(f'{name}={_in_words(a)}' for name, a in said)})"


@dataclass
class Calls:
    """The calls of a program, the most frequent first. Printing gives a table; ``save`` and ``load`` keep them in JSON.

    ``target``: the name of what describes the GPU that they ran on; "" where they ran on none.
    """

    calls: list[Call] = field(default_factory=list)
    target: str = ""

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def __str__(self) -> str:
        return self.table(self.target)

    def table(self, target: str = "") -> str:
        """A line a kind of call. With the name of a target also what its calls take there together, as measured or by a rough
        model, and where configs come from: "rule" is what tuning has not seen. Raises TargetError for an unknown name."""
        chip = targets.get(target) if target else None
        rows = [("calls", *(("ms in all", "configs") if chip else ()), "served by", "call")]
        rows += [(str(c.often), *(_cost(c, chip) if chip else ()), c.served or "-", str(c)) for c in self.calls]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(_padded(row, widths, numbers=2 if chip else 1) for row in rows)

    __repr__ = __str__

    def save(self, path: str | Path) -> None:
        """Write them to a file, whole or not at all."""
        entries = [
            {"op": c.op, "arguments": [_plain(a) for a in c.arguments], "calls": c.often, "served": c.served}
            for c in self.calls
        ]
        place = Path(path)
        draft = place.with_name(f".{place.name}.part")
        draft.write_text(json.dumps({"format": FORMAT, "target": self.target, "calls": entries}, indent=1) + "\n")
        draft.replace(place)

    @classmethod
    def load(cls, path: str | Path) -> "Calls":
        """Read a file that ``save`` wrote. Raises InputError for what is none, with the place of the first fault."""
        try:
            data = files.from_json(files.read(Path(path)))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as calls: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("calls"), list):
            raise InputError(f"{path} holds no calls, or those of a newer kpt: its format must be {FORMAT!r}")
        calls = [_call(entry, f"{path}: call {number + 1}") for number, entry in enumerate(data["calls"])]
        target = data.get("target")
        return cls(calls, target if target in targets.names() else "")


@contextmanager
def recording() -> Iterator[Calls]:
    """Note which ops are called in the block, by all threads of the process: on which shapes, dtypes and flags, how often.

    ``with kpt.ops.recording() as calls: model(batch)``, then ``print(calls)``, ``calls.save("calls.json")``,
    ``kpt.ops.warm_up(calls)``. They are there when the block ends. Backward passes are ops of their own. A call that
    torch.compile or a CUDA graph runs again without kpt is not seen.
    """
    calls = Calls()
    before = {id(decision): decision.calls for _, _, decision in _decisions()}
    gone: list[tuple[Op, Any, Decision, int]] = []
    with leaving(lambda op, key, decision: gone.append((op, key, decision, decision.calls))):
        yield calls
    counted: dict[tuple[str, Any], Call] = {}
    now = [(op, key, decision, decision.calls) for op, key, decision in _decisions()]
    for op, key, decision, count in (*gone, *now):
        often = count - before.get(id(decision), 0)
        if often <= 0 or decision.choice is None:
            continue
        known = counted.get((op.name, key[0]))
        served = decision.choice.implementation.name
        counted[op.name, key[0]] = Call(op.name, _arguments(op, key[0]), often + (known.often if known else 0), served)
    calls.calls = sorted(counted.values(), key=lambda call: (-call.often, str(call)))
    calls.target = _target(key[0] for _, key, *_ in (*gone, *now))


def _target(fingerprints: Iterable[tuple[Any, ...]]) -> str:
    """The name of the target of the first GPU that calls were on; "" where there is none."""
    devices = (part[3] for parts in fingerprints for part in parts if is_of_tensor(part))
    device = next((device for device in devices if device.type == "cuda"), None)
    if device is None:
        return ""
    with suppress(TargetError):
        return runtime.runtime("triton").present(device.index).name  # type: ignore[no-any-return]
    return ""


def _padded(row: Sequence[str], widths: Sequence[int], numbers: int) -> str:
    """A line of a table whose first columns are ``numbers``."""
    cells = [cell.rjust(w) if i < numbers else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()


def _cost(call: Call, target: "Target") -> tuple[str, str]:
    """Milliseconds of all calls of a kind, and where configs come from, in words."""
    from kpt.ops.estimates import estimate

    found = estimate(call, target)
    if found is None:
        return "-", "-"
    return f"{found.microseconds * call.often / 1e3:.3g}", ", ".join(found.configs)


def _decisions() -> Iterator[tuple[Op, Any, Decision]]:
    for dispatcher in DISPATCHERS.values():
        for key, decision in dispatcher.decisions():
            yield dispatcher.op, key, decision


# ------------------------------------------------------------------ from fingerprints, to and from JSON
def _arguments(op: Op, fingerprint: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments that a fingerprint was taken of."""
    parts = zip(_schema(op.name), fingerprint, strict=True)
    return tuple(_argument(isinstance(p.type, torch.ListType), part) for p, part in parts)


def _schema(op: str) -> Sequence[Any]:
    """An op's parameters, as torch.library has them."""
    parameters: Sequence[Any] = DISPATCHERS[op].through_torch._schema.arguments
    return parameters


def _argument(listed: bool, part: tuple[Any, ...]) -> Any:
    if is_of_tensor(part):
        shape, strides, dtype, *_ = part
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    if not listed:
        return part[1]
    return part if isinstance(part[0], int) else tuple(part[len(part) // 2 :])


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"dtype": _name(value.dtype), "shape": list(value.shape), "strides": list(value.stride())}
    if isinstance(value, torch.dtype):
        return {"dtype": _name(value)}
    return list(value) if isinstance(value, tuple) else value


def _call(entry: Any, place: str) -> Call:
    if not isinstance(entry, dict) or not isinstance(entry.get("arguments"), list):
        raise InputError(f"{place} is no object with op, arguments and calls")
    often = entry.get("calls")
    if type(often) is not int or often < 1:
        raise InputError(f"{place}: calls is {often!r}; it is how often it came, 1 or more")
    try:
        op = get(str(entry.get("op")))
        arguments = [_value(a) for a in entry["arguments"]]
        arguments += [p.default_value for p in _schema(op.name)[len(arguments) :]]  # what an earlier kpt did not have
        call = Call(op.name, tuple(arguments), often, str(entry.get("served", "")))
        op.check(*call.arguments)
    except (KptError, TypeError, RuntimeError, KeyError) as error:
        raise InputError(f"{place}: {error}") from None
    return call


def _value(plain: Any) -> Any:
    if isinstance(plain, Mapping):
        if plain.get("dtype") not in DTYPES:
            raise InputError(f"dtype {plain.get('dtype')!r} is none that PyTorch has")
        dtype = DTYPES[plain["dtype"]]
        if "shape" not in plain:
            return dtype
        shape, strides = plain["shape"], plain.get("strides", ())
        if not (_are_whole(shape) and _are_whole(strides) and len(shape) == len(strides)):
            raise InputError(f"shape {shape!r} with strides {strides!r} is that of no tensor")
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    return tuple(plain) if isinstance(plain, list) else plain


def _are_whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_words(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        dense = value.is_contiguous() or math.prod(value.shape) == 0
        return f"{_name(value.dtype)}[{','.join(map(str, value.shape))}]" + ("" if dense else " strided")
    return str(value)
