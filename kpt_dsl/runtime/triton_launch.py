"""Starting a compiled Triton kernel with as little host work as possible.

A ``Launch`` is everything that one instance and config need on one device, ready: what changes from call to call are addresses
and scalars. Tensors are handed over as plain addresses, and nothing keeps them alive.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from kpt_dsl.emit import Source
from kpt_dsl.emit.triton.abi import Argument, Descriptor, Extent, Pointer, Scalar, Stride, TritonAbi
from kpt_dsl.emit.triton.facts import TMA_BYTES, effective_strides
from kpt_dsl.errors import CompileError
from kpt_dsl.runtime.triton_module import triton_package

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance

RESERVED_SHARED_BYTES = 1024
"""Shared memory that each resident block takes beside its own (CUDA programming guide, compute capabilities 8.0 and later)."""

REGISTER_STEP = 8
"""Registers a thread are allotted in such steps (CUDA occupancy calculator)."""

Maker = Callable[[Any], Any]
"""Makes the value of an argument out of a tensor."""


class Start(NamedTuple):
    """Starts a kernel: ``function(programs, 1, 1, stream, *fixed, *values)``, or with the values as one list where it does not
    take them ``spread``."""

    function: Callable[..., object]
    fixed: tuple[Any, ...]
    spread: bool

    def __call__(self, programs: int, stream: int, values: Sequence[Any]) -> None:
        if self.spread:
            self.function(programs, 1, 1, stream, *self.fixed, *values)
        else:
            self.function(programs, 1, 1, stream, *self.fixed, values)


class Parts(NamedTuple):
    """All that a launch does, for who writes it out. ``tensors``: position of an argument, and what makes its value, None for a
    mere address. The kernel takes tensors, ``scalars`` by their positions, and ``numbers``, in this order."""

    device: int
    current_device: Callable[[], int]
    stream: Callable[[int], int]
    start: Start
    programs: int
    tensors: Sequence[tuple[int, Maker | None]]
    scalars: Sequence[int]
    numbers: Sequence[int]


class Launch:
    """A kernel ready to run on one device: call it with the kernel's arguments, all of them, in the order of its signature.

    The arguments must have the dtypes, shapes, strides, alignment and statics of the instance it was prepared for; that is
    for the caller to know, and not checked again.
    """

    __slots__ = (
        "_current_device",
        "_device",
        "_kernel",
        "_most",
        "_numbers",
        "_programs",
        "_scalars",
        "_start",
        "_stream",
        "_tensors",
    )

    def __init__(self, instance: "Instance", source: Source, kernel: Any, device: int) -> None:
        import torch

        abi: TritonAbi = source.abi
        positions = {name: i for i, name in enumerate(instance.kernel.signature.parameters)}
        tensors = [a for a in abi.arguments if isinstance(a, (Pointer, Descriptor))]
        self._tensors: Sequence[tuple[int, Maker]] = [(positions[a.tensor], maker(a, instance)) for a in tensors]
        self._scalars = [positions[a.scalar] for a in abi.arguments if isinstance(a, Scalar)]
        self._numbers = numbers(abi, instance)
        self._most: int | None = None
        """How many programs there are at most, where they go on from one tile to the next."""
        self._device = device
        self._kernel = kernel  # its binary is unloaded when the last reference goes
        active = triton_package().runtime.driver.active
        self._current_device: Callable[[], int] = active.get_current_device
        if self._current_device is torch.cuda.current_device:  # three functions of Python around one of C
            self._current_device = getattr(torch._C, "_cuda_getDevice", self._current_device)
        self._stream: Callable[[int], int] = active.get_current_stream
        with torch.cuda.device(device):
            try:
                self._start = starter(kernel)
            except Exception as error:
                where = torch.cuda.get_device_name(device)
                raise CompileError(f"{source.name} cannot be loaded on {where}: {error}") from error
        if abi.persistent:
            properties = torch.cuda.get_device_properties(device)
            self._most = int(properties.multi_processor_count * _resident(kernel, properties))
        self._programs = self._at_most(abi.tiles(dict(instance.extents.dims)))

    def of_extents(self, tiles: int, numbers: list[int], tensors: Sequence[tuple[int, Maker]]) -> "Launch":
        """The same kernel for other extents: so many tiles in its grid, the extents and strides that are handed over, and the
        positions of tensors with what makes their values; () where these are as here."""
        other = object.__new__(Launch)
        other._current_device, other._device, other._kernel = self._current_device, self._device, self._kernel
        other._most, other._scalars, other._start, other._stream = self._most, self._scalars, self._start, self._stream
        other._tensors, other._numbers = tensors or self._tensors, numbers
        other._programs = self._at_most(tiles)
        return other

    def parts(self) -> Parts:
        """What a call of this does. They hold while the launch is kept."""
        tensors = [(i, None if make is address else make) for i, make in self._tensors]
        return Parts(
            self._device, self._current_device, self._stream, self._start, self._programs, tensors, self._scalars,
            self._numbers,
        )  # fmt: skip

    def _at_most(self, tiles: int) -> int:
        return tiles if self._most is None else min(tiles, self._most)

    def __call__(self, *arguments: Any) -> None:
        """Start the kernel on the current stream of its device. Raises CompileError where the driver refuses."""
        device = self._device
        if self._current_device() != device:
            import torch

            with torch.cuda.device(device):
                self(*arguments)
        elif self._programs:
            values = [make(arguments[i]) for i, make in self._tensors]
            values += [arguments[i] for i in self._scalars]
            values += self._numbers
            try:
                self._start(self._programs, self._stream(device), values)
            except RuntimeError as error:
                raise CompileError(f"launching {self._kernel.name} failed: {error}") from error


class CheckedLaunch(Launch):
    """A launch that waits for its kernel, and raises IndexRangeError for the first bad index that this met; and before it, for
    groups that do not lie one behind the other."""

    __slots__ = ("_abi", "_extents", "_groups", "_name", "_word")

    def __init__(self, instance: "Instance", source: Source, kernel: Any, device: int) -> None:
        super().__init__(instance, source, kernel, device)
        self._abi, self._extents = source.abi, dict(instance.extents.dims)
        positions = {name: i for i, name in enumerate(instance.kernel.signature.parameters)}
        self._name = instance.kernel.name
        self._groups = [(positions[counted.starts], counted) for counted in self._abi.grid if counted.starts]
        self._word = _word(device)
        if self._abi.places:
            self._numbers = [*self._numbers, self._word.data_ptr()]

    def __call__(self, *arguments: Any) -> None:
        """Run the kernel on the current stream of its device."""
        for position, counted in self._groups:
            counted.check(self._name, arguments[position].tolist(), self._extents)
        super().__call__(*arguments)
        if word := int(self._word):  # which waits
            int(self._word.zero_())  # cleared before a kernel on any other stream is started
            raise self._abi.bad_index(word, self._extents)


def _word(device: int) -> Any:
    """A word of zero on a device."""
    import torch

    return torch.zeros(1, dtype=torch.int64, device=f"cuda:{device}")


def _resident(kernel: Any, properties: Any) -> int:
    """How many programs fit on one multiprocessor side by side: one's epilogue then hides behind another's products."""
    threads: int = kernel.metadata.num_warps * properties.warp_size
    registers = threads * -(-kernel.n_regs // REGISTER_STEP) * REGISTER_STEP
    fits: tuple[int, ...] = (
        properties.shared_memory_per_multiprocessor // (kernel.metadata.shared + RESERVED_SHARED_BYTES),
        properties.regs_per_multiprocessor // max(registers, 1),
        properties.max_threads_per_multi_processor // threads,
    )
    return max(1, min(fits))


class Described:
    """What Triton's launcher reads of a tensor descriptor. Its own class checks again what the emitter's facts already say."""

    __slots__ = ("base", "block_shape", "shape", "strides")
    padding = "zero"
    round_f32_to_tf32 = False

    def __init__(self, base: Any, shape: list[int], strides: list[int], block_shape: list[int]) -> None:
        self.base = base
        self.shape = shape
        self.strides = strides
        self.block_shape = block_shape


def maker(a: Argument, instance: "Instance") -> Maker:
    """What makes the value of a tensor argument out of a tensor."""
    if isinstance(a, Pointer):
        return address
    assert isinstance(a, Descriptor)
    return describer(list(instance.shape(a.tensor)), list(_strides(instance, a.tensor)), list(a.block))


def describer(shape: list[int], strides: list[int], block: list[int]) -> Maker:
    """What describes tensors of a shape and strides, moved in blocks. Along a dim of the same all over, only its first is."""
    if 0 in strides:
        shape, strides = [n if s else 1 for n, s in zip(shape, strides, strict=True)], [s or TMA_BYTES for s in strides]
    return partial(Described, shape=shape, strides=strides, block_shape=block)


def address(tensor: Any) -> int:
    """A number instead of the tensor: the driver is then not asked whose memory it is."""
    number: int = tensor.data_ptr()
    return number


def _strides(instance: "Instance", tensor: str) -> tuple[int, ...]:
    return effective_strides(instance.shape(tensor), instance.extents.stride(tensor))


def numbers(abi: TritonAbi, instance: "Instance") -> list[int]:
    """The values of the arguments that the instance alone decides, in order: extents and strides."""
    extents = dict(instance.extents.dims)
    found = []
    for a in abi.arguments:
        if isinstance(a, Extent):
            found.append(extents[a.dim])
        elif isinstance(a, Stride):
            found.append(_strides(instance, a.tensor)[a.axis])
    return found


def starter(kernel: Any) -> Start:
    """Load a compiled kernel on the current device and give the shortest way to start it.

    ``kernel.run`` is a Python object that gathers what its C function wants; where the version of Triton is known, that is
    gathered once here. Launch hooks (profilers that count launches in Triton) are not called.
    """
    run, function, packed = kernel.run, kernel.function, kernel.packed_metadata
    version = tuple(int(part) for part in triton_package().__version__.split(".")[:2])
    short = _SHORT.get(version)
    scratch = getattr(run, "global_scratch_size", 0) or getattr(run, "profile_scratch_size", 0)
    if short is not None and type(run).__name__ == "CudaLauncher" and not scratch:
        return short(run, function, packed)
    return Start(run, (function, packed, None, None, None), spread=True)


def _short_3_6(run: Any, function: Any, packed: Any) -> Start:
    asked = (run.launch_cooperative_grid, run.launch_pdl)
    return Start(run.launch, (function, *asked, None, None, packed, None, None, None), spread=True)


def _short_3_9(run: Any, function: Any, packed: Any) -> Start:
    asked, none = (run.launch_cooperative_grid, run.launch_pdl), (None,) * 5
    return Start(run.launch, (function, *asked, packed, *none, run.arg_annotations, run.kernel_signature), spread=False)


_SHORT: dict[tuple[int, ...], Callable[[Any, Any, Any], Start]] = {(3, 6): _short_3_6, (3, 9): _short_3_9}
"""Version of Triton -> how its CUDA launcher's C function is called; others go through the launcher itself."""
