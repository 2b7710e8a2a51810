"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Calls = Annotated[
    Path | None,
    typer.Option("--calls", help="The calls of a program: a file that kpt.ops.recording saved.", metavar="FILE"),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A model of Transformers: a folder with a config.json, or its name on the hub.",
        metavar="NAME-OR-FOLDER",
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Of the model's input.")]
Length = Annotated[int, typer.Option("--length", min=1, help="Of the model's input, in tokens.")]
Level = Annotated[
    str, typer.Option("--level", help="Of kpt.optimize: conservative, balanced or aggressive.", metavar="NAME")
]
Training = Annotated[bool, typer.Option("--training", help="A step of the model's training, with its loss.")]
Ops = Annotated[
    list[str] | None,
    typer.Option("--op", help="An op of kpt, such as flash_attention. May be repeated.", metavar="NAME"),
]
Kernel = Annotated[
    str | None, typer.Option("--kernel", help="A kernel of yours, by its import name.", metavar="PACKAGE.MODULE:KERNEL")
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="The shapes of a model (llama-8b …); a wrong name lists all.", metavar="NAME"),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shapes",
        help="Extents by dim: attention B,H,G,M,N,D; linear and fp8 M,N,K; norms M,N. Semicolons separate shapes.",
        metavar='"M=4096,N=1024"',
    ),
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        help="bf16, f16, f32, f8e4m3 … May be repeated. A kernel takes exceptions: bf16,scale=f32,bias=none.",
        metavar="NAME",
    ),
]
Flags = Annotated[
    list[str] | None,
    typer.Option(
        "--flags", help="Semantic options of the op, or static arguments of the kernel.", metavar='"causal=true"'
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", help="The chip (see `kpt-tune targets`); by default the GPU that is here.", metavar="NAME"
    ),
]
Device = Annotated[int | None, typer.Option("--device", help="Number of the GPU, from 0.", metavar="NUMBER")]
Database = Annotated[
    str | None,
    typer.Option(
        "--db", help="The config database: a path, or a PostgreSQL URL. KPT_DB does the same.", metavar="PATH"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
