"""Google's TPU compiler in a process of its own: it compiles for a TPU without one, and some inputs abort it.

The process (``serve``) reads jobs, a line of JSON each, and answers each with a line. It starts in
seconds and compiles in tenths, so it is kept; one that dies takes its job along.
"""

import atexit
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from kpt_dsl import children
from kpt_dsl.errors import CompileError, MissingPackageError

TIMEOUT_SECONDS = 300.0
"""First configs compile in seconds; float32 products with tiles of four million elements took a minute and a half."""

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
"""The smallest slice of each generation that the compiler can describe."""

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # asks no cloud metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process fails on a lock file
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

_VMEM = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"'
"""What a compiled module says of a kernel's bytes of vector memory."""


class Compiler:
    """A compiling process, started by the first job and again after one that died; a forked process starts its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = Lock()

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a job. Raises CompileError where the compiler refuses, aborts or does not end."""
        with self._lock:
            process = self._process
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                process = self._process = _start()
                self._owner = os.getpid()
            line = _answer(process, json.dumps(job))
            if line is None:
                self.stop()
                raise CompileError(f"the TPU compiler aborted or did not end on {job['name']} for {job['arch']}")
        answer: dict[str, Any] = json.loads(line)
        if reason := answer.get("error"):
            raise CompileError(f"the TPU compiler refuses {job['name']} for {job['arch']}: {reason}")
        return answer

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            self._process = None


COMPILER = Compiler()
"""The one of this process; it ends with it."""
atexit.register(COMPILER.stop)


def versions() -> str:
    """Versions of JAX and of the compiler. Raises MissingPackageError where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package, extra in (("jax", "tpu"), ("libtpu", "libtpu")):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            raise MissingPackageError(
                f"compiling for a TPU needs the package {package!r}: pip install 'kpt-dsl[{extra}]'"
            ) from None
    return ", ".join(found)


def _start() -> "subprocess.Popen[str]":
    command = children.command("from kpt_dsl.build.tpu_compiler import serve; serve()", ("kpt_dsl",))
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=children.environment() | _ENVIRONMENT,
    )  # fmt: skip


def _answer(process: "subprocess.Popen[str]", job: str) -> str | None:
    """The line that answers a job, None where the process ended or took too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    ready, _, _ = select.select([process.stdout], [], [], TIMEOUT_SECONDS)
    return process.stdout.readline() or None if ready else None


# ------------------------------------------------------------------ the other process
def serve() -> None:
    """Answer jobs until standard input ends. What the compiler prints goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with tempfile.TemporaryDirectory(prefix="kpt-tpu-") as dump:
        flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {os.environ.get('LIBTPU_INIT_ARGS', '')}"
        for line in sys.stdin:
            job = json.loads(line)
            try:
                answer = compiled(job, Path(dump))
            except Exception as error:
                text = " ".join(str(error).split("Please report a bug")[0].split())
                answer = {"error": f"{type(error).__name__}: {text[:2000]}"}
            print(json.dumps(answer), file=answers, flush=True)


def compiled(job: Mapping[str, Any], dump: Path) -> dict[str, Any]:
    """Compile ``job["text"]`` for ``job["arch"]``: bytes of VMEM, seconds, the program, the final bundles of its kernels."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from kpt_dsl.runtime.pallas import define, on_abstract_tpu, specs

    for file in dump.iterdir():
        with suppress(OSError):
            file.unlink()
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[job["arch"]]).devices[0]
    sharding = SingleDeviceSharding(device)
    started = time.perf_counter()
    with on_abstract_tpu(device.device_kind, getattr(device, "num_cores", None) or 1):
        function = jax.jit(define(job["name"], job["text"]), out_shardings=sharding)
        program = function.lower(*specs(job["arguments"], sharding)).compile().as_text()
    scoped = re.findall(_VMEM, "\n".join(line for line in program.splitlines() if "tpu_custom_call" in line))
    listings = {file.name.split("-", 1)[1].rsplit("-", 2)[0]: file for file in sorted(dump.glob("*-final_bundles.txt"))}
    return {
        "vmem_bytes": max(map(int, scoped), default=0),
        "seconds": round(time.perf_counter() - started, 3),
        "program": program,
        "bundles": {kernel: file.read_text(errors="replace") for kernel, file in listings.items()},
    }
