"""The attention of Transformers models: which configs run kpt's, and how Transformers comes to know it.

Restoring needs no memory: kpt's attention has a name for each function in whose place it runs, PyTorch's ("sdpa") and, of
models that do not offer that, their own ("eager").
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from torch import nn

from kpt.ops.flash_attention.contract import LARGEST_HEAD_DIM
from kpt.ops.replace.keywords import EAGER, SDPA, WHOSE
from kpt.ops.replace.proven import own_class
from kpt.ops.replace.report import Change, Skipped
from kpt.ops.replace.rules import ATTENTION, PLACE
from kpt.ops.replace.source import NAMES, dropped, findings
from kpt_dsl.errors import MissingPackageError

OLDEST = (5, 4)
"""The first Transformers release whose mask interface gives query lengths and offsets as numbers."""

_numbers = count(1)


class Owner:
    """A replaced model, as its attention layers know it: by the name of its class, and a number that no other model has.

    A copy, and what comes out of a pickle, is another model: it has a number of its own, and Transformers knows kpt's attention
    before it runs, in a fresh process too.
    """

    __slots__ = ("name", "number")

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = next(_numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return _owner_again, (self.name,)


def _owner_again(name: str) -> Owner:
    _register()
    return Owner(name)


class Place:
    """Where a module stands: in which replaced model, at what path."""

    __slots__ = ("owner", "path")

    def __init__(self, owner: Owner, path: str) -> None:
        self.owner = owner
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (self.owner, self.path)


class _Config:
    """A Transformers config in a model, and the modules that have it, by path."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.modules: dict[str, nn.Module] = {}

    @property
    def path(self) -> str:
        """Of the config, by the first module that has it."""
        return f"{next(iter(self.modules))}.config"

    @property
    def former(self) -> str | None:
        """The attention function in whose place kpt's may run, or None."""
        found: str = self.config._attn_implementation
        if found == SDPA:
            return SDPA
        own = any(not getattr(m, "_supports_sdpa", True) for m in self._models)
        own = own or any(dropped(module, SDPA) for module in self.modules.values())
        return EAGER if own and found == EAGER else None

    @property
    def _models(self) -> list[Any]:
        return [m for m in self.modules.values() if hasattr(m, "_can_set_attn_implementation")]

    def why_not(self) -> str | None:
        """Why it keeps the attention that it runs, or None."""
        former = self.former
        if former is None:
            return f'it runs "{self.config._attn_implementation}"; load it with attn_implementation="{SDPA}"'
        if not all(m._can_set_attn_implementation() for m in self._models):
            return "the model does not go through Transformers' AttentionInterface"
        for path, module in self.modules.items():
            where = f"{path} ({own_class(module).__name__})"
            for refusal in findings(type(module), former).refusals:
                return f"{where} {refusal}"
            if lost := ", ".join(dropped(module, former)):
                drops = f"which {WHOSE[former]} attention drops"
                return f'{where} passes {lost}, {drops}; load it with attn_implementation="{EAGER}"'
        if former == EAGER:
            if getattr(self.config, "output_attentions", False):
                return "it asks for attention weights"
            if not any(findings(type(m), EAGER).attends for m in self.modules.values()):
                return "none of its layers calls an attention function that it looks up"
            from kpt.ops.replace.own_attention import why_not_shown

            for path, module in self.modules.items():
                if (reason := why_not_shown(module)) is not None:
                    return f"{path} ({own_class(module).__name__}) {reason}"
        return None

    def unserved(self, former: str) -> tuple[str, ...]:
        """What of its attention is known to stay with the former function."""
        found: dict[str, None] = {}
        for module in self.modules.values():
            kind = own_class(module).__name__
            for keyword in findings(type(module), former).pytorchs:
                found[f"{kind} where it passes {keyword}"] = None
            width = max((w for n in _WIDTHS if isinstance(w := getattr(module, n, None), int)), default=0)
            if width > LARGEST_HEAD_DIM:
                found[f"{kind}, whose heads are {width} wide, above {LARGEST_HEAD_DIM}"] = None
        settings = vars(self.config)  # not by attribute: a config of unlike layers refuses some
        for name in ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"):
            if settings.get(name):
                found[f"training, where {name} is {settings[name]}"] = None
        return tuple(found)


_WIDTHS = ("head_dim", "qk_head_dim", "v_head_dim")


def replace(model: nn.Module, changes: list[Change], skipped: list[Skipped], *, required: bool) -> None:
    """Let every config of the model that runs sdpa, or its own function where it does not offer that, run kpt's attention,
    where nothing in its modules' code speaks against it.

    Raises MissingPackageError where ``required`` and Transformers is missing or too old. An exception leaves configs as they
    were.
    """
    configs = list(_configs(model))
    try:
        if required or configs:
            _register()
    except MissingPackageError as error:
        if required:
            raise
        skipped.extend(Skipped(c.path, ATTENTION, str(error)) for c in configs)
        return
    owner = Owner(type(model).__name__)
    others = [found for found in configs if found.config._attn_implementation not in NAMES.values()]
    try:
        for found in others:
            if isinstance(answer := _replaced(found, owner), Change):
                changes.append(answer)
            else:
                skipped.append(answer)
    except BaseException:
        for found in others:
            _restored(found)
        raise


def _replaced(found: _Config, owner: Owner) -> Change | Skipped:
    """Let a config run kpt's attention, or say why not."""
    reason, former = found.why_not(), found.former
    if former is None or reason is not None:
        return Skipped(found.path, ATTENTION, str(reason))
    if not _set(found.config, NAMES[former]):
        reason = f"{type(found.config).__name__} does not keep the name of its attention as Transformers' configs do"
        return Skipped(found.path, ATTENTION, reason)
    for path, module in found.modules.items():
        setattr(module, PLACE, Place(owner, path))
    return Change(found.path, ATTENTION, former, NAMES[former], found.unserved(former))


def _restored(found: _Config) -> list[Change]:
    """Let a config that runs kpt's attention run what it ran before."""
    for module in found.modules.values():
        vars(module).pop(PLACE, None)
    return [
        Change(found.path, ATTENTION, name, former)
        for former, name in NAMES.items()
        if found.config._attn_implementation == name and _set(found.config, former)
    ]


def restore(model: nn.Module, changes: list[Change]) -> None:
    """Let every config that runs kpt's attention run what it ran before."""
    for found in _configs(model):
        changes += _restored(found)


def _configs(model: nn.Module) -> Sequence[_Config]:
    """Each Transformers config in the model once."""
    found: dict[int, _Config] = {}
    for path, module in _with_config(model):
        found.setdefault(id(module.config), _Config(module.config)).modules[path] = module
    return list(found.values())


def _with_config(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if hasattr(type(getattr(module, "config", None)), "_attn_implementation"):
            yield path or "(model)", module


def _set(config: Any, name: str) -> bool:
    """Name the attention of this config alone, as Transformers does: its property sets configs inside as well, and may be
    overridden by one that takes no part of them. False, and nothing is changed, where a config does not follow."""
    before = config._attn_implementation
    try:
        config._attn_implementation_internal = name
    except (AttributeError, TypeError, ValueError):  # frozen, or checked
        return False
    if config._attn_implementation == name:
        return True
    config._attn_implementation_internal = before
    return False


def _register() -> None:
    need = f"replacing attention needs transformers {OLDEST[0]}.{OLDEST[1]} or newer"
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(f"{need}: pip install -U transformers") from error
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST:
        raise MissingPackageError(f"{need}, found {transformers.__version__}: pip install -U transformers")
    from kpt.ops.replace.attention_forward import attention_forward
    from kpt.ops.replace.attention_mask import attention_mask, own_attention_mask
    from kpt.ops.replace.own_attention import own_attention_forward

    served = (SDPA, attention_forward, attention_mask), (EAGER, own_attention_forward, own_attention_mask)
    for former, forward, mask in served:
        transformers.AttentionInterface.register(NAMES[former], forward)
        transformers.AttentionMaskInterface.register(NAMES[former], mask)
