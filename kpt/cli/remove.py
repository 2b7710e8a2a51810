"""``kpt-tune remove``: forget winners, so that dispatch asks the next source."""

from typing import Annotated

import typer

from autotune_db.store import Store
from kpt.cli import options, stored
from kpt_dsl.errors import InputError


def remove(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids in `kpt-tune list`, or their beginnings.", metavar="[ID]...")
    ] = None,
    imported: Annotated[
        bool, typer.Option("--imported", help="Only what was imported; of every key without IDs.")
    ] = False,
    damaged: Annotated[bool, typer.Option("--damaged", help="Rows that cannot be read, as doctor finds them.")] = False,
    db: options.Database = None,
) -> None:
    """Remove winners from the database. Their trials stay, and what dispatch asks next serves: see `kpt-tune explain`.

    Examples:

        kpt-tune remove 3f2a91c0

        kpt-tune remove --imported

        kpt-tune remove --damaged
    """
    if not (ids or imported or damaged):
        raise InputError("say what to remove: IDs as `kpt-tune list` shows them, --imported, or --damaged")
    found = stored.entries(db)  # also finds that there is no database, and does not make one
    chosen = [entry for one in ids for entry in stored.of_id(found, one)] if ids else found if imported else []
    chosen = [entry for entry in chosen if entry.imported or not imported]
    rows = 0
    if chosen:
        with Store(db) as store:
            rows = store.remove(chosen)
    print(f"{len(chosen)} winners removed" + (f" ({rows} rows, with earlier ones)" if rows > len(chosen) else ""))
    if damaged and stored.is_made(db):
        with Store(db) as store:
            store.entries()
            store.trials()
            print(f"{store.remove_damaged()} damaged rows removed")
