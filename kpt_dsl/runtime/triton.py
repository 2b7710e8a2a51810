"""Running generated Triton source: on the GPU that holds the tensors, or under Triton's interpreter for tensors of the CPU."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from kpt_dsl import configs, ir, targets
from kpt_dsl.arrays import library
from kpt_dsl.checks import is_on
from kpt_dsl.emit import Source, emit
from kpt_dsl.emit.triton.abi import Descriptor, Pointer, Report, Scalar, TritonAbi
from kpt_dsl.errors import InputError, TargetError
from kpt_dsl.instance import Instance
from kpt_dsl.passes import indices
from kpt_dsl.runtime import triton_class
from kpt_dsl.runtime.memory import copied, overwritten, refuse_shared_outputs
from kpt_dsl.runtime.numpy import as_numpy
from kpt_dsl.runtime.triton_class import Known
from kpt_dsl.runtime.triton_interpreter import interpret
from kpt_dsl.runtime.triton_launch import CheckedLaunch, Launch, maker, numbers
from kpt_dsl.runtime.triton_module import function
from kpt_dsl.specialisation import Specialisation

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

STAND_IN = "nvidia-h200"
"""Whose code the interpreter runs for tensors of the CPU."""

INTERPRETED_CORES = 4
"""How many programs a persistent kernel has under the interpreter."""


def target(arrays: Mapping[str, Any]) -> "Target":
    """The target of the device that holds the tensors; for the CPU the one that stands in.

    Raises TargetError for a GPU whose architecture no target has.
    """
    device = _device(arrays)
    return _stand_in() if device.type == "cpu" else present(device.index)


def run(instance: Instance, arrays: Mapping[str, Any], config: "Config") -> None:
    """Run an instance on torch tensors; outputs are written in place."""
    device = _device(arrays)
    if device.type == "cpu":
        interpret_for(_stand_in(), instance, arrays, config)
    else:
        prepare(instance, config, device.index)(*(arrays[name] for name in instance.kernel.signature.parameters))


def launcher(instance: Instance, arrays: Mapping[str, Any], config: "Config", target: "Target") -> Callable[[], None]:
    """A launch with all arguments bound. It keeps them alive, as measuring needs."""
    device = _device(arrays)
    if device.type == "cpu":
        return lambda: interpret_for(target, instance, arrays, config)
    launch = _prepared(instance, with_precision(instance, config, present(device.index)), device.index)
    arguments = tuple(arrays[name] for name in instance.kernel.signature.parameters)
    return lambda: launch(*arguments)


def again(kernel: "Definition", arguments: Mapping[str, Any]) -> Launch | None:
    """A launch for arguments by name of a kernel that was run before on others of their class; None where that is not known.

    It is not for ``kd.Int`` arguments, whose arithmetic is checked for all extents, nor for tensors that are negated views or
    need gradients.
    """
    if kernel.integers and any(arguments[name] is not None for name in kernel.integers):
        return None
    tensors = [tensor for name in kernel.tensors if (tensor := arguments[name]) is not None]
    for tensor in tensors:
        if library(tensor) != "torch" or tensor.requires_grad or tensor.is_neg():
            return None
    number = _gpu(tensors)
    if number is None:
        return None
    found = known_launch(kernel, tuple(arguments.values()), number)
    return None if found is None else found[0]


def _gpu(tensors: Sequence[Any]) -> int | None:
    """The number of the GPU that all tensors are on, None where they are not on one."""
    device = tensors[0].device
    if device.type != "cuda":
        return None
    for tensor in tensors:
        if tensor.device != device:
            return None
    number: int = device.index
    return number


def prepared(kernel: "Definition", arguments: tuple[Any, ...], device: int) -> tuple[Launch, Specialisation]:
    """A launch for arguments of a kernel, and others of their dtypes, shapes, strides and alignment, on a CUDA or ROCm device;
    and their specialisation.

    Where another launch was made for other extents of their class, it is that one with other numbers. Raises as ``prepare``,
    and InputError for arguments that do not fit.
    """
    if (found := known_launch(kernel, arguments, device)) is not None:
        return found
    instance = Instance.bind(kernel, kernel.bind(*arguments))
    return prepare(instance, configs.choose(instance, present(device))[0], device), instance.specialisation


def known_launch(kernel: "Definition", arguments: tuple[Any, ...], device: int) -> tuple[Launch, Specialisation] | None:
    """What ``prepared`` gives, where it takes no look at the kernel."""
    first = next(a for a in arguments if hasattr(a, "shape"))
    made = launches(kernel, device, first.shape, circumstances())
    for place, known in enumerate(made):
        if (launch := known.at(*arguments)) is not None and known.means_the_same():
            if place:  # those that serve most calls come to be asked first
                made[place - 1], made[place] = known, made[place - 1]
            return launch, known.specialisation
    return None


def launches(kernel: "Definition", device: int, shape: Sequence[int], under: tuple[Hashable, ...]) -> list[Known]:
    """Those of a kernel that were made ``under`` these circumstances where its first tensor had about this shape, the latest
    first."""
    return _made(kernel, device, tuple([(n - 1).bit_length() for n in shape]), *under)


def launches_of(instance: Instance, device: int, under: tuple[Hashable, ...]) -> list[Known]:
    """Those that may serve an instance."""
    return launches(instance.kernel, device, instance.shape(instance.extents.strides[0][0]), under)


@lru_cache(maxsize=4096)
def _made(*_: Hashable) -> list[Known]:
    return []


def circumstances() -> tuple[Hashable, ...]:
    """What may make the config of a class another one: the database, the user's word on precision."""
    return configs.generation(), _precision()()


@cache
def _precision() -> Callable[[], str]:
    """What tells the user's word: an import that every warm call made would cost it half a microsecond."""
    from kpt_dsl.runtime.precision import float32_products

    return float32_products


def prepare(instance: Instance, config: "Config", device: int) -> Launch:
    """A launch of an instance on a CUDA or ROCm device, compiled if it has to be, checked where ``kpt_dsl.checking`` asks.

    Raises ConfigError or CompileError where the config does not fit, TargetError for a GPU that no target describes.
    """
    # The precision that the user allows now is part of what is remembered.
    config = with_precision(instance, config, present(device))
    return _prepared(instance, _checking(instance, config) if is_on() else config, device)


@lru_cache(maxsize=4096)
def _prepared(instance: Instance, config: "Config", device: int) -> Launch:
    from kpt_dsl.build.triton import binary

    chip = present(device)
    source = emit(instance, chip, config)
    kind = CheckedLaunch if config.get("checked", False) else Launch
    launch = kind(instance, source, binary(source, chip.arch, chip.warp_lanes, device), device)
    taken = not is_on() and config == with_precision(instance, configs.choose(instance, chip)[0], chip)
    if taken and (left := triton_class.written(instance, chip, config, source)) is not None:
        triton_class.remember(launches_of(instance, device, circumstances()), instance, *left, launch)
    return launch


def interpret_for(chip: "Target", instance: Instance, arrays: Mapping[str, Any], config: "Config") -> None:
    """Run the code generated for a GPU under Triton's interpreter, on tensors of the CPU.

    Raises InputError for outputs that share memory.
    """
    import torch
    from triton.tools.tensor_descriptor import TensorDescriptor

    kernel = instance.kernel
    views = {name: as_numpy(name, arrays[name]) for name in kernel.tensors if arrays[name] is not None}
    refuse_shared_outputs(kernel, views)
    arrays = {**arrays, **{name: copied(arrays[name]) for name in overwritten(kernel, views)}}
    source = emit(instance, chip, _checking(instance, config))
    abi: TritonAbi = source.abi
    extents = dict(instance.extents.dims)
    programs = abi.tiles(extents)
    if not programs:
        return
    for counted in (c for c in abi.grid if c.starts):
        counted.check(kernel.name, arrays[counted.starts].tolist(), extents)
    if abi.persistent:
        programs = min(programs, INTERPRETED_CORES)
    known = iter(numbers(abi, instance))
    if abi.language == "gluon":
        _interpret_gluon(source, programs, instance, arrays, known)
        return
    values: list[Any] = []
    report = torch.zeros(1, dtype=torch.int64)
    for a in abi.arguments:
        match a:
            case Report():
                values.append(report)
            case Pointer():
                tensor = arrays[a.tensor].detach()
                values.append(tensor.view(torch.uint8) if a.bits else tensor)
            case Descriptor():
                described = maker(a, instance)(arrays[a.tensor].detach())
                values.append(
                    TensorDescriptor(described.base, described.shape, described.strides, described.block_shape)
                )
            case Scalar():
                values.append(arrays[a.scalar])
            case _:
                values.append(next(known))
    interpret(function(source), programs, values)
    if word := int(report):
        raise abi.bad_index(word, extents)


def _interpret_gluon(
    source: Source, programs: int, instance: Instance, arrays: Mapping[str, Any], known: Iterator[int]
) -> None:
    """Triton's interpreter does not know Gluon; one of our own does."""
    from kpt_dsl.runtime import gluon_interpreter as gluon

    values: list[Any] = []
    for a in source.abi.arguments:
        match a:
            case Pointer():
                tensor = arrays[a.tensor].detach()
                length = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
                values.append(gluon.Pointer(as_numpy(a.tensor, tensor.as_strided((length,), (1,)))))
            case Descriptor():
                inside = tuple(map(slice, maker(a, instance)(arrays[a.tensor]).shape))
                values.append(gluon.Described(as_numpy(a.tensor, arrays[a.tensor])[inside], a.block))
            case Scalar():
                values.append(arrays[a.scalar])
            case _:
                values.append(next(known))
    gluon.interpret(source, programs, values)


def _checking(instance: Instance, config: "Config") -> "Config":
    """The config with checks of indices, and of where groups begin, where the kernel has any to check."""
    kernel = instance.lower(config)
    return config | {"checked": True} if indices.checked(kernel) or ir.groups(kernel) else config


def with_precision(instance: Instance, config: "Config", chip: "Target") -> "Config":
    """The config, with float32 products rounded to TF32 where PyTorch's user allowed it and the chip can."""
    if "tf32" in chip.flops_per_s and _precision()() == "tf32" and _multiplies_f32(instance.lower()):
        return config | {"precision": "tf32"}
    return config


def _multiplies_f32(kernel: ir.Kernel) -> bool:
    return any(isinstance(e, ir.Dot) and e.a.type.dtype.bits == 32 for e in ir.every_expr(kernel.body))


@lru_cache(maxsize=1)
def _stand_in() -> "Target":
    """The target whose code the interpreter runs: without schedules of its own, which Triton's interpreter does not know."""
    return replace(targets.get(STAND_IN), schedules=())


@lru_cache(maxsize=64)
def present(device: int) -> "Target":
    """The target of a device that is here, by its name; else one of the same architecture."""
    import torch

    name = torch.cuda.get_device_name(device)
    found = targets.of_device(name)
    if found is not None:
        return found
    major, minor = torch.cuda.get_device_capability(device)
    arch = getattr(torch.cuda.get_device_properties(device), "gcnArchName", "").partition(":")[0]
    wanted = arch if torch.version.hip else f"sm_{major}{minor}"
    for each in map(targets.get, targets.names()):
        if each.arch == wanted:
            return each
    raise TargetError(f"no target describes {name} ({wanted}); known are {', '.join(targets.names())}")


def _device(arrays: Mapping[str, Any]) -> Any:
    """The one device of all tensors. Raises InputError where they are on several, or one is no torch tensor."""
    import torch

    devices = {name: a.device for name, a in arrays.items() if isinstance(a, torch.Tensor)}
    if len(devices) < len(arrays):
        for name, a in arrays.items():
            if name not in devices and getattr(a, "shape", None):
                raise InputError(
                    f"{name} is {type(a).__module__}.{type(a).__name__}; backend triton takes torch tensors"
                )
    if not devices:
        raise InputError("backend triton takes torch tensors, and no argument is one")
    if len(set(devices.values())) > 1:
        raise InputError(f"tensors are on different devices: {', '.join(f'{n} on {d}' for n, d in devices.items())}")
    device = next(iter(devices.values()))
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"backend triton takes tensors of cuda and cpu devices, not of {device}")
    return device
