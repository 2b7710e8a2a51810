"""``kpt-tune warm``: compiles what a program will call before it calls it."""

import time
from typing import Annotated

import typer

from autotune_db import lookup
from autotune_db.ahead import compile_ahead
from kpt.cli import options, output, select
from kpt.cli.place import place
from kpt.cli.progress import Count
from kpt_dsl.build import cache

FAILED = 1


def warm(
    calls: options.Calls = None,
    op: options.Ops = None,
    kernel: options.Kernel = None,
    preset: options.Preset = None,
    shapes: options.Shapes = None,
    dtype: options.Dtypes = None,
    flags: options.Flags = None,
    target: options.Target = None,
    device: options.Device = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Compiling at a time; by default one a core.")
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Compile kernels ahead, for every length of the classes that the shapes given are of.

    Binaries go into the cache folder (`KPT_CACHE_DIR`), where every process finds them, with the configs that dispatch takes
    now: tune first. The folder may be copied to another machine of the same device and versions. The calls of a program are
    what `kpt.ops.recording` noted.

    Examples:

        kpt-tune warm --calls calls.json

        kpt-tune warm --preset llama-8b --target nvidia-h200

        kpt-tune warm --op rms_norm --shapes "M=4096,N=4096"
    """
    if db:
        lookup.use(db)
    where = place(target, device).target
    instances = select.instances(op or [], kernel, preset, shapes or [], dtype or [], flags or [], where, select.loaded(calls))
    began = time.monotonic()
    with Count("compiling", shown=not json) as count:
        made = compile_ahead(instances, where, processes, count)
    seconds = round(time.monotonic() - began, 1)
    failed = list(dict.fromkeys(made.failed))
    found = {
        "target": where.name, "problems": len(instances), "binaries": made.binaries, "seconds": seconds,
        "cache": str(cache.folder()), "failed": failed,
    }  # fmt: skip
    if json:
        output.as_json(found)
    else:
        print(
            f"{made.binaries} binaries of {len(instances)} kernels for {where.name} in {seconds} s, in {cache.folder()}"
        )
        for why in failed:
            print(f"not made: {why}")
    if failed:
        raise typer.Exit(FAILED)
