"""Running generated Triton source: on the GPU that holds the tensors, or under Triton's interpreter for tensors of the CPU.

A ``Launch`` is everything that one problem and config need on one device, ready: what changes from call to call are addresses
and scalars. It calls the compiled kernel's own ``run``, which costs less than half of ``kernel[grid](...)``, and keeps no
tensor alive.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kpt_dsl import ir, targets
from kpt_dsl.emit import Source, emit
from kpt_dsl.emit.triton_abi import Argument, Descriptor, Extent, Pointer, Scalar, Stride, TritonAbi
from kpt_dsl.emit.triton_facts import effective_strides
from kpt_dsl.errors import CompileError, InputError, TargetError
from kpt_dsl.runtime.triton_interpreter import interpret
from kpt_dsl.runtime.triton_module import function, triton_package

if TYPE_CHECKING:
    from kpt_dsl.problem import Problem
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
    return targets.get(STAND_IN) if device.type == "cpu" else _present(device.index)


def run(problem: "Problem", arrays: Mapping[str, Any], config: "Config") -> None:
    """Run a problem on torch tensors; outputs are written in place."""
    device = _device(arrays)
    if device.type == "cpu":
        interpret_for(targets.get(STAND_IN), problem, arrays, config)
    else:
        prepare(problem, config, device.index)(*(arrays[name] for name in problem.kernel.signature.parameters))


def launcher(problem: "Problem", arrays: Mapping[str, Any], config: "Config", target: "Target") -> Callable[[], None]:
    """A launch with all arguments bound. It keeps them alive, as measuring needs."""
    device = _device(arrays)
    if device.type == "cpu":
        return lambda: interpret_for(target, problem, arrays, config)
    launch = prepare(problem, config, device.index)
    arguments = tuple(arrays[name] for name in problem.kernel.signature.parameters)
    return lambda: launch(*arguments)


class Launch:
    """A kernel ready to run on one device: call it with the kernel's arguments, all of them, in the order of its signature.

    The arguments must have the dtypes, shapes, strides, alignment and statics of the problem it was prepared for; that is
    for the caller to know, and not checked again.
    """

    __slots__ = ("_current_device", "_device", "_fixed", "_kernel", "_numbers", "_scalars", "_stream", "_tensors")

    def __init__(self, problem: "Problem", source: Source, kernel: Any, device: int) -> None:
        import torch

        abi: TritonAbi = source.abi
        positions = {name: i for i, name in enumerate(problem.kernel.signature.parameters)}
        self._device = device
        self._tensors = [
            (positions[a.tensor], _maker(a, problem)) for a in abi.arguments if isinstance(a, Pointer | Descriptor)
        ]
        self._scalars = [positions[a.scalar] for a in abi.arguments if isinstance(a, Scalar)]
        self._numbers = numbers(abi, problem)
        programs = abi.tiles(dict(problem.dims))
        if abi.persistent:
            programs = min(programs, torch.cuda.get_device_properties(device).multi_processor_count)
        self._fixed = (programs, 1, 1)
        self._kernel = kernel
        active = triton_package().runtime.driver.active
        self._current_device: Callable[[], int] = active.get_current_device
        self._stream: Callable[[int], int] = active.get_current_stream
        with torch.cuda.device(device):
            try:
                kernel._init_handles()
            except Exception as error:
                raise CompileError(
                    f"{source.name} cannot be loaded on {torch.cuda.get_device_name(device)}: {error}"
                ) from error

    def __call__(self, *arguments: Any) -> None:
        """Start the kernel on the current stream of its device. Raises CompileError where the driver refuses."""
        device = self._device
        if self._current_device() != device:
            import torch

            with torch.cuda.device(device):
                self(*arguments)
            return
        kernel = self._kernel
        if not self._fixed[0]:
            return
        try:
            kernel.run(
                *self._fixed, self._stream(device), kernel.function, kernel.packed_metadata, None, None, None,
                *[make(arguments[i]) for i, make in self._tensors], *[arguments[i] for i in self._scalars], *self._numbers,
            )  # fmt: skip
        except RuntimeError as error:
            raise CompileError(f"launching {kernel.name} failed: {error}") from error


def prepare(problem: "Problem", config: "Config", device: int) -> Launch:
    """A launch of a problem on a CUDA or ROCm device, compiled if it has to be.

    Raises ConfigError or CompileError where the config does not fit, TargetError for a GPU that no target describes.
    """
    # The precision that the user allows now is part of what is remembered.
    return _prepared(problem, _with_precision(problem, config, _present(device)), device)


@lru_cache(maxsize=4096)
def _prepared(problem: "Problem", config: "Config", device: int) -> Launch:
    from kpt_dsl.build.triton import binary

    chip = _present(device)
    source = emit(problem, chip, config)
    return Launch(problem, source, binary(source, chip.arch, chip.warp_lanes, device), device)


def numbers(abi: TritonAbi, problem: "Problem") -> tuple[int, ...]:
    """The values of the arguments that the problem alone decides, in order: extents and strides."""
    extents = dict(problem.dims)
    found = []
    for a in abi.arguments:
        if isinstance(a, Extent):
            found.append(extents[a.dim])
        elif isinstance(a, Stride):
            found.append(effective_strides(problem, a.tensor)[a.axis])
    return tuple(found)


def _address(tensor: Any) -> int:
    # A number instead of the tensor: the driver is then not asked whose memory it is.
    address: int = tensor.data_ptr()
    return address


def _maker(a: Argument, problem: "Problem") -> Callable[[Any], Any]:
    """What makes the value of a tensor argument out of a tensor."""
    if isinstance(a, Pointer):
        return _address
    assert isinstance(a, Descriptor)
    shape, strides, block = list(problem.shape(a.tensor)), list(effective_strides(problem, a.tensor)), list(a.block)
    from triton.tools.tensor_descriptor import TensorDescriptor

    return lambda tensor: TensorDescriptor(tensor, shape, strides, block)


def interpret_for(chip: "Target", problem: "Problem", arrays: Mapping[str, Any], config: "Config") -> None:
    """Run the code generated for a GPU under Triton's interpreter, on tensors of the CPU."""
    import torch

    source = emit(problem, chip, config)
    abi: TritonAbi = source.abi
    programs = abi.tiles(dict(problem.dims))
    if not programs:
        return
    if abi.persistent:
        programs = min(programs, INTERPRETED_CORES)
    known = iter(numbers(abi, problem))
    values: list[Any] = []
    for a in abi.arguments:
        match a:
            case Pointer():
                tensor = arrays[a.tensor].detach()
                values.append(tensor.view(torch.uint8) if a.bits else tensor)
            case Descriptor():
                values.append(_maker(a, problem)(arrays[a.tensor].detach()))
            case Scalar():
                values.append(arrays[a.scalar])
            case _:
                values.append(next(known))
    interpret(function(source), programs, values)


def _with_precision(problem: "Problem", config: "Config", chip: "Target") -> "Config":
    """The config, with float32 products rounded to TF32 where PyTorch's user allowed it and the chip can."""
    import torch

    allowed = torch.get_float32_matmul_precision() != "highest"
    if allowed and "tf32" in chip.flops_per_s and _multiplies_f32(problem.lower()):
        return config | {"precision": "tf32"}
    return config


def _multiplies_f32(kernel: ir.Kernel) -> bool:
    return any(isinstance(e, ir.Dot) and e.a.type.dtype.bits == 32 for e in ir.every_expr(kernel.body))


@lru_cache(maxsize=64)
def _present(device: int) -> "Target":
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
    """The one device of all tensors. Raises InputError where they are on several, or none is a torch tensor."""
    import torch

    devices = {name: a.device for name, a in arrays.items() if isinstance(a, torch.Tensor)}
    if not devices:
        raise InputError("backend triton takes torch tensors, and no argument is one")
    if len(set(devices.values())) > 1:
        raise InputError(f"tensors are on different devices: {', '.join(f'{n} on {d}' for n, d in devices.items())}")
    device = next(iter(devices.values()))
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"backend triton takes tensors of cuda and cpu devices, not of {device}")
    return device


__all__ = ["Launch", "launcher", "prepare", "run", "target"]
