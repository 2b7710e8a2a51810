"""Compiling generated Triton source: to a report for any GPU, and to a binary that ``runtime`` launches.

The ``triton`` wheel carries LLVM, ptxas and AMD's linker, so no GPU and no toolkit is needed.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kpt_dsl.build import cache, launcher
from kpt_dsl.build.cache import Entry
from kpt_dsl.build.report import Report
from kpt_dsl.emit import Source, emit
from kpt_dsl.errors import CompileError
from kpt_dsl.runtime.triton_module import LOCK, function, triton_package

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

HOPPER = "sm_90"

OLDER = "TRITON_PTXAS_PATH"
ASSEMBLERS = {OLDER: "ptxas", "TRITON_PTXAS_BLACKWELL_PATH": "ptxas-blackwell"}
"""By the variables by which a user names one, those that Triton brings."""

_LAUNCHED = (".json", ".cubin", ".hsaco", ".amdgcn")
"""What is read of a binary in Triton's cache. Of AMD's the assembly says what a thread takes."""


def compile(instance: "Instance", target: "Target", config: "Config") -> Report:
    """Compile, or find the report of an earlier compilation. Raises as ``kpt_dsl.build.compile`` says."""
    source = emit(instance, target, config)
    entry = Entry("triton-reports", _key(source, target))
    if (found := entry.get_json("report.json")) is not None:
        with contextlib.suppress(TypeError, KeyError):
            return _fitting(Report.from_dict(found | {"seconds": 0.0}), target)
    return _fitting(_compiled(source, target, config, entry), target)


def _compiled(source: Source, target: "Target", config: "Config", entry: Entry) -> Report:
    import json

    started = time.perf_counter()
    kernel = binary(source, target.arch, target.warp_lanes)
    seconds = time.perf_counter() - started
    registers, spills = _resources(kernel, target.vendor)
    made = sorted(Path(_a_file(kernel)).parent.glob(f"{source.name[:150]}.*"))
    forms = (("source", str(entry.path / "source.py")), *((p.suffix[1:], str(p)) for p in made if p.suffix != ".source"))
    report = Report(
        target.name, str(config), registers, spills, int(kernel.metadata.shared), seconds=round(seconds, 3), forms=forms
    )
    entry.put({"source.py": source.text, "report.json": json.dumps(report.to_dict())})
    return report


def _key(source: Source, target: "Target") -> str:
    """Everything that a report depends on."""
    parts = (source.text, repr(source.abi), target.name, target.arch, triton_package().__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _fitting(report: Report, target: "Target") -> Report:
    """The report, if a block fits on the target."""
    if target.shared_bytes and (report.shared_bytes or 0) > target.shared_bytes:
        raise CompileError(
            f"[{report.config}] takes {report.shared_bytes:,} bytes of shared memory, and a block on {target.name} has "
            f"{target.shared_bytes:,}; fewer stages or smaller blocks take less"
        )
    return report


@lru_cache(maxsize=1024)
def binary(source: Source, arch: str, warp_lanes: int, device: int | None = None, launched: bool = False) -> Any:
    """A ``triton.compiler.CompiledKernel`` for an architecture. Raises CompileError where Triton refuses the source.

    Loaded on one device it cannot serve another, so each ``device`` has its own; it is compiled once all the same.
    ``launched``: another process will load it on one.
    """
    triton = triton_package()
    from triton.backends.compiler import GPUTarget

    kind, name = ("cuda", int(arch.removeprefix("sm_"))) if arch.startswith("sm_") else ("hip", arch)
    asked = _asked(source)
    made = partial(triton.compile, asked, target=GPUTarget(kind, name, warp_lanes), options=dict(source.abi.options))
    starts = kind == "cuda" and (launched or device is not None)
    beside = launcher.made_beside(asked.signature, here=device is not None) if starts else contextlib.nullcontext()
    quickly = _found_quickly(asked, source, arch, beside)
    with LOCK, quickly as keep_in, contextlib.redirect_stdout(_Hush()):  # it prints
        try:
            keep_in(cache.binaries())
            try:
                compiled = _sound(made)
            except OSError as error:  # a full disk, or another process that tidied up
                cache.warn_once(str(error))
                keep_in(cache.temporary())
                compiled = made()
        except Exception as error:
            raise CompileError(f"Triton does not compile {source.name} for {arch}: {_reason(error)}") from error
    cache.used(_a_file(compiled), _checksum(compiled))
    cache.added()
    return compiled


def _asked(source: Source) -> Any:
    """The source as Triton takes it, which reads the text of its function, as slowly as it was written, only to compile it."""
    if source.abi.language == "gluon":
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    else:
        from triton.compiler import ASTSource
    later = property(lambda _: function(source), lambda *_: None)
    named = SimpleNamespace(__name__=source.name)
    return type("Asked", (ASTSource,), {"fn": later})(named, source.abi.signature(), {}, source.abi.attributes())


class _Hush:
    """Stands for the standard output: silent for the thread that compiles, for others what it was."""

    def __init__(self) -> None:
        self._theirs, self._thread = sys.stdout, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._theirs.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs, name)


@contextlib.contextmanager
def _found_quickly(
    asked: Any, source: Source, arch: str, beside: AbstractContextManager[None]
) -> Iterator[Callable[[str], None]]:
    """How Triton finds this compilation in its cache. Its own names hash all of Triton's files, half a second a process; these
    do not. Where it finds nothing of that name, and asks its backend for the stages, the assembler is chosen: to ask those that
    there are for their versions starts them, which a binary that was found need not wait for; and what goes on ``beside`` the
    compilation begins. Of what it finds it reads what is launched, and not the texts that it made on the way to that, which
    are megabytes. Gives what names the folder of that cache; that of all else is left as it is."""
    from triton.compiler import compiler

    their_key, their_manager, thread = compiler.get_cache_key, compiler.get_cache_manager, threading.get_ident()
    folders, knobs = list[str](), triton_package().knobs.cache

    def key(src: Any, backend: Any, options: Any, **more: Any) -> str:
        if src is not asked:  # another thread's
            return str(their_key(src, backend, options, **more))
        stages = backend.add_stages

        def add_stages(*given: Any) -> None:
            compiling.enter_context(assembler(arch))
            compiling.enter_context(beside)
            stages(*given)

        backend.add_stages = add_stages
        tools = f"{backend.target} {_nvidia_tools()}"
        return "\0".join((_triton(), source.text, repr(source.abi), tools, options.hash(), repr(sorted(more.items()))))

    def manager(name: str) -> Any:
        if threading.get_ident() != thread:
            return their_manager(name)
        with knobs.scope():
            knobs.dir = folders[-1]
            found = their_manager(name)
        whole = found.get_group
        found.get_group = lambda file: {n: path for n, path in (whole(file) or {}).items() if n.endswith(_LAUNCHED)}
        return found

    with contextlib.ExitStack() as compiling:
        for name, theirs, ours in (("get_cache_key", their_key, key), ("get_cache_manager", their_manager, manager)):
            compiling.callback(setattr, compiler, name, theirs)
            setattr(compiler, name, ours)
        yield folders.append


@lru_cache(maxsize=1)
def _triton() -> str:
    """Which Triton this is: its version, and how large its compiler."""
    from triton._C import libtriton

    return f"{triton_package().__version__} {Path(libtriton.__file__).stat().st_size}"


@contextlib.contextmanager
def assembler(arch: str) -> Iterator[None]:
    """One of those that Triton brings, for Hopper the newer one, unless the user named one (``TRITON_PTXAS_PATH``).

    That of CUDA 12.8, in Triton 3.6, loses the address of an operand in shared memory now and then: attention's dk and dv of
    100 keys read whatever else was there, or ended the context. Triton has 12.9 beside it, for Blackwell.
    """
    nvidia = triton_package().knobs.nvidia
    with nvidia.scope():
        if not _named(OLDER):
            if os.environ.get(OLDER):
                nvidia.ptxas = str(_brought(OLDER))
            with contextlib.suppress(AttributeError, RuntimeError):  # a build of Triton without one of them
                if arch == HOPPER:
                    nvidia.ptxas = max(nvidia.ptxas, nvidia.ptxas_blackwell, key=_version).path
        yield


def _named(variable: str) -> str:
    """The assembler that the user names; not what Inductor does, which names that of PyTorch, for the whole process, once it
    has compiled anything."""
    named = os.environ.get(variable, "")
    return "" if named == _pytorchs_assembler() else named


def _brought(variable: str) -> Path:
    """The assembler that Triton brings for where the user names none."""
    return Path(triton_package().__file__).with_name("backends") / "nvidia" / "bin" / ASSEMBLERS[variable]


def _version(tool: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in tool.version.split("."))


def _pytorchs_assembler() -> str:
    """Where PyTorch, if it was imported, may bring an assembler."""
    torch = sys.modules.get("torch")
    return "" if torch is None else str(Path(torch.__file__ or "").absolute().with_name("bin") / "ptxas")


def _nvidia_tools() -> str:
    """Which assemblers may be taken: how large each is. Triton's own word is that of the first that the process asked for."""
    files = (Path(_named(variable) or _brought(variable)) for variable in ASSEMBLERS)
    return " ".join(str(file.stat().st_size) for file in files if file.is_file())


def _sound(made: Callable[[], Any]) -> Any:
    """What Triton makes, or finds in its cache as it was made; what is damaged there is made again in its place."""
    knobs = triton_package().knobs
    found: list[bool] = []
    with knobs.compilation.scope():
        others = knobs.compilation.listener

        def listen(*, cache_hit: bool, **event: Any) -> None:
            found.append(cache_hit)
            if others:
                others(cache_hit=cache_hit, **event)

        knobs.compilation.listener = listen
        with contextlib.suppress(ValueError, LookupError, TypeError, StopIteration, RecursionError):  # garbled files
            compiled = made()
            if not found[-1] or cache.sealed(_a_file(compiled)) == _checksum(compiled):
                return compiled
        knobs.compilation.always_compile = True
        return made()


def _a_file(compiled: Any) -> str:
    return str(next(iter(compiled.metadata_group.values())))


def _checksum(compiled: Any) -> str:
    """Of all that is launched of a kernel: a disk that fails, or fills, must not become a wrong result."""
    return hashlib.sha256(repr(compiled.metadata).encode() + compiled.kernel).hexdigest()


def _reason(error: BaseException) -> str:
    """The innermost cause, on a few lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[:2000]


def _resources(kernel: Any, vendor: str) -> tuple[int | None, int | None]:
    """Registers and spilled bytes of a thread."""
    if vendor == "amd":
        text = kernel.asm["amdgcn"]
        # Scratch is memory; scalar registers that run out go to lanes of vector registers and are not counted.
        found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
        return int(found["vgpr_count"]), int(found["private_segment_fixed_size"])
    usage = _usage(kernel.metadata_group)
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", usage)}
    return found.get("REG"), found.get("STACK")


def _usage(files: dict[str, Any]) -> str:
    """What NVIDIA's tool for binaries reads from the file's header."""
    path = next(str(p) for name, p in files.items() if name.endswith(".cubin"))
    tool = triton_package().knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
