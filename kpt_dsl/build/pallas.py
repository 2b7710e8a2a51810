"""Compiling generated Pallas source for a TPU, present or not: lowering by JAX alone, then Google's compiler.

Figures of TPUs are predicted, never measured. ``cycles`` estimates a whole run from the compiler's final code
(``tpu_bundles``); divided by the target's clock it gives seconds.
"""

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from kpt_dsl.build.cache import Entry
from kpt_dsl.build.report import Report
from kpt_dsl.build.tpu_bundles import BELIEVED, cycles
from kpt_dsl.build.tpu_compiler import COMPILER, versions
from kpt_dsl.emit import Source, emit
from kpt_dsl.errors import CompileError, TargetError

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target


def compile(instance: "Instance", target: "Target", config: "Config") -> Report:
    """Compile, or find the report of an earlier compilation.

    Raises CompileError where the compiler refuses (a kernel that does not fit VMEM, with the sizes), MissingPackageError
    without JAX or libtpu, and as ``emit`` does.
    """
    source = emit(instance, target, config)
    key = f"{source.text}\0{target.name}\0{versions()}\0{BELIEVED}"
    entry = Entry("pallas-reports", hashlib.sha256(key.encode()).hexdigest()[:32])
    if (found := entry.get_json("report.json")) is not None:
        with suppress(TypeError, KeyError):
            return Report.from_dict(found | {"seconds": 0.0})
    return _compiled(source, target, config, entry)


def _compiled(source: Source, target: "Target", config: "Config", entry: Entry) -> Report:
    abi = source.abi
    arguments = [(a.shape, a.dtype) for a in (*abi.inputs, *abi.scalars)]
    answer = COMPILER.run({"name": source.name, "text": source.text, "arch": target.arch, "arguments": arguments})
    listing = next((text for kernel, text in answer["bundles"].items() if kernel.split(".")[0] == source.name), "")
    forms = {"source": str(entry.path / "source.py"), "bundles": str(entry.path / "bundles.txt")}
    report = Report(
        target.name, str(config), vmem_bytes=answer["vmem_bytes"], cycles=cycles(listing, abi, target),
        seconds=answer["seconds"], forms=tuple(forms.items()),
    )  # fmt: skip
    entry.put({"source.py": source.text, "bundles.txt": listing, "report.json": json.dumps(report.to_dict())})
    return report


def lower(source: Source) -> str:
    """Generated source lowered for TPUs by JAX alone, as StableHLO text with the Mosaic kernel in it. Needs no libtpu.

    Raises CompileError where Pallas refuses: a block's shape, an operation that TPUs do not have.
    """
    from kpt_dsl.runtime.pallas import define, jax_package, on_abstract_tpu, specs

    jax = jax_package()
    abi = source.abi
    try:
        function = jax.jit(define(source.name, source.text))
        arguments = specs([(a.shape, a.dtype) for a in (*abi.inputs, *abi.scalars)])
        with on_abstract_tpu("TPU v5 lite", 1):
            text: str = jax.export.export(function, platforms=["tpu"])(*arguments).mlir_module()
    except TargetError:
        raise
    except Exception as error:
        raise CompileError(f"Pallas refuses {source.name}: {str(error)[:2000]}") from error
    return text
