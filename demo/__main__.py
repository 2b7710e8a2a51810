"""``python -m demo``: the whole path on one machine, told on the terminal and in one HTML report."""

import argparse
import inspect
import platform
import time
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.syntax import Syntax

import kpt_dsl as kd
from autotune_db.environment import version
from demo import plots, sentences, tuning
from demo.comparison import Comparison, compare
from demo.report import Code, Plot, Section, Table, Text, page
from demo.tuning import Tuned
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.space import space
from kpt_dsl.targets import Target

console = Console(highlight=False)


def main() -> None:
    """Tune, generate, encode, report."""
    arguments = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    arguments.add_argument("--report", type=Path, default=Path("build/demo.html"), help="where to write the report")
    path: Path = arguments.parse_args().report
    started = time.monotonic()
    here = tuning.device()
    target = here or targets.get("nvidia-h200")
    where = f"measured on {target.name}" if here else f"predicted for {target.name}, which is not here"

    console.rule(f"[bold]1  Four ops, tuned: {where}")
    tuned = []
    for one in tuning.tune(target, here is not None, path.parent / "demo" / "configs.sqlite"):
        tuned.append(one)
        console.print(f"[bold]{one.task.op}[/]  {one.task}\n   {_summary(one)}", soft_wrap=True)

    console.rule("[bold]2  One source, three generators")
    sources = _sources(target, tuned)
    code = Syntax("", "python", background_color="default")
    console.print(code.highlight(sources[1].text), soft_wrap=True)

    console.rule("[bold]3  A real model, before and after")
    device, every = ("cuda" if here else "cpu"), len(sentences.SENTENCES)
    found = compare(device, {"triton": every} if here else {"numpy": every, "triton": 2})
    for run in found.runs:
        for op, counts in run.served.items():
            for name, calls in counts.items():
                if calls:
                    console.print(f"{op}: {calls} calls served by {_WAYS[(name, device)]}", soft_wrap=True)
        console.print(f"   largest difference of {run.sentences} sentence vectors: {run.difference:.1e}", soft_wrap=True)
    console.print(f"after undoing the replacement: {found.undone:.1e}")

    sections = [
        _tuning_section(tuned, target, where),
        Section("One source, three generators", (_ABOUT_SOURCES, *sources)),
        _model_section(found, device),
    ]
    seconds = time.monotonic() - started
    machine = f"{platform.python_implementation()} {platform.python_version()}, torch {torch.__version__}"
    subtitle = f"{machine}, triton {version('triton')}, jax {version('jax')} · configs {where} · {seconds:.0f} s"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page("kpt, from one source to a running model", subtitle, sections))
    console.rule(f"[bold]The report: {path}  ({seconds:.0f} s)")


# ------------------------------------------------------------------ tuning
def _summary(one: Tuned) -> str:
    result = one.result
    times = f"{_number(result.microseconds)} µs, first config {_number(result.first_microseconds)} µs"
    return f"{result.config}\n   {times}; {len(result.trials)} trials in {result.seconds:.0f} s"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _tuning_section(tuned: list[Tuned], target: Target, where: str) -> Section:
    searches = [
        plots.Search(
            f"{one.task.op} {one.task.dtype}",
            tuple(trial.microseconds for trial in one.result.trials),
            one.result.first_microseconds or float("nan"),
        )
        for one in tuned
    ]
    quantity = tuned[0].result.origin
    table = Table(
        ("op", "shape", "config", "µs", "first config's", "points", "registers", "spills", "shared KiB"),
        tuple(
            (
                one.task.op,
                str(one.task),
                str(one.result.config),
                _number(one.result.microseconds),
                "the same" if one.result.config == one.result.first else _number(one.result.first_microseconds),
                f"{space(one.instance, target).size:,}",
                str(one.report.registers),
                str(one.report.spills),
                f"{(one.report.shared_bytes or 0) / 1024:.0f}",
            )
            for one in tuned
        ),
        frozenset({"µs", "first config's", "points", "registers", "spills", "shared KiB"}),
    )
    return Section(
        "Four ops, tuned",
        (
            Text(
                f"Times are {where}. A first config comes from a rule, without any search; candidates that spill registers or "
                "do not fit are rejected after compiling. The winner goes into the device's database, where dispatch finds it. "
                "Points are those of the search space, legal or not; registers are a thread's, shared memory a block's."
            ),
            Plot(plots.searches(searches, quantity), f"Every trial of every search; times are {quantity}."),
            table,
        ),
    )


# ------------------------------------------------------------------ sources
_ABOUT_SOURCES = Text(
    "The layer norm as its author wrote it, and what is generated from it. Tile sizes, masks, pipelining and memory paths "
    "are in the generated text only."
)


def _sources(target: Target, tuned: list[Tuned]) -> tuple[Code, Code, Code, Code]:
    norm = next(one for one in tuned if one.task.op == "layer_norm")
    extents, text = dict(norm.instance.extents.dims), emit(norm.instance, target, norm.result.config).text
    return (
        Code("As written: ops/layer_norm/kernels.py", inspect.getsource(layer_norm_fwd.fn), opened=True),
        Code(f"Triton, for {target.name}, as tuned: {norm.result.config}", text),
        Code("Pallas, for tpu-v6e", kd.source(layer_norm_fwd, "tpu-v6e", shapes=extents)),
        Code("NumPy", kd.source(layer_norm_fwd, "cpu", shapes=extents)),
    )


# ------------------------------------------------------------------ a model
_WAYS = {
    ("triton", "cuda"): "the generated Triton kernel, on the GPU",
    ("triton", "cpu"): "the generated Triton source, in Triton's interpreter",
    ("numpy", "cpu"): "the tile program, in NumPy",
    ("reference", "cpu"): "PyTorch",
    ("reference", "cuda"): "PyTorch",
}


def _model_section(found: Comparison, device: str) -> Section:
    count = len(sentences.SENTENCES)
    kinds = Counter(change.kind for change in found.changes.changes)
    replaced = " and ".join(f"{kind} ({number})" for kind, number in kinds.items())
    served = tuple(
        (str(run.sentences), op, _WAYS[(name, device)], str(calls), f"{run.difference:.1e}", f"{run.seconds:.1f}")
        for run in found.runs
        for op, counts in run.served.items()
        for name, calls in counts.items()
        if calls
    )
    heads = ("sentences", "op", "served by", "calls", "largest difference", "seconds, whole model")
    return Section(
        "A real model, before and after",
        (
            Text(
                f"all-MiniLM-L6-v2 encodes {count} sentences with PyTorch's modules, then with {replaced} replaced, then again "
                "after undoing that. Differences are of elements of the sentence vectors, which have length one."
            ),
            Table(heads, served, frozenset(heads) - {"op", "served by"}),
            Plot(
                plots.similarities(found.original, found.replaced, [str(n + 1) for n in range(count)]),
                f"Cosine similarity of every pair of sentences; the largest difference is {found.difference:.1e}. "
                f"After restoring the modules it is {found.undone:.1e}.",
            ),
            Table(("", "sentence"), tuple((str(n), text) for n, text in enumerate(sentences.SENTENCES, 1))),
            Code("What was replaced", str(found.changes)),
        ),
    )


if __name__ == "__main__":
    main()
