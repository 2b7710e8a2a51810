"""``kpt-tune export`` and ``import``: winners as a file that a person can review."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from autotune_db import shipped
from autotune_db.store import Store
from kpt.cli import options, output, stored
from kpt_dsl.errors import InputError, StoreError

MeasuredOnly = Annotated[bool, typer.Option("--measured", help="Leave predictions out.")]
Out = Annotated[Path | None, typer.Option("--output", "-o", help="A file; by default standard output.", metavar="FILE")]


def export(
    file: Out = None,
    kernel: stored.Only = None,
    device: stored.OnlyDevice = None,
    measured: MeasuredOnly = False,
    db: options.Database = None,
) -> None:
    """Write winners to a file: one line an entry, sorted, to be reviewed in a diff and shipped or imported elsewhere.

    Example:

        kpt-tune export --device H200 --measured -o nvidia-h200.json
    """
    found = stored.select(stored.entries(db), kernel, device)
    text = shipped.dump(entry for entry in found if entry.origin == "measured" or not measured)
    if file is None:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {file}: {error.strerror}") from None


def import_(
    files: Annotated[list[Path], typer.Argument(help="Files that `kpt-tune export` wrote.", metavar="FILE...")],
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Add the winners of files to the database, all or none: anything wrong in a file refuses them. Nothing stored is lost.

    What was measured on this machine goes before what is imported; `kpt-tune list` tells them apart.

    Example:

        kpt-tune import nvidia-h200.json
    """
    found = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")  # of a pipe as well, if that is what a person names
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{file} cannot be read: {error}") from None
        found += shipped.parse(text, str(file))
    with Store(db) as store:
        store.add_imported(found)
    if json:
        output.as_json({"imported": len(found)})
    else:
        print(f"{len(found)} entries imported")
