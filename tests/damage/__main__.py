"""``python -m tests.damage``: the config database against damage and kills, as many as are asked for.

    python -m tests.damage databases --count 648
    python -m tests.damage kills --count 1000

Prints the figures and every fault; exit code 1 where there is one. A share of each is in ``tests/autotune_db/test_damage.py``.
"""

import argparse
import logging
import sys

from tests.damage import databases, kills


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.damage")
    parser.add_argument("what", choices=("databases", "kills", "all"))
    parser.add_argument("--count", type=int, help="by default 648 databases, 1000 kills")
    parser.add_argument("--seed", type=int, default=0, help="another tries others")
    given = parser.parse_args()
    logging.getLogger("kpt").setLevel(logging.ERROR)  # each damage is warned of, as it should be
    faults: list[str] = []
    if given.what in ("kills", "all"):
        killed = kills.try_all(given.count or 1000, given.seed)
        print(
            f"{killed.kills} kills of a process that writes: {killed.stored} entries stored, {killed.imports} imports, "
            f"{len(killed.faults)} faults, {killed.seconds:.0f} s"
        )
        faults += killed.faults
    if given.what in ("databases", "all"):
        damaged = databases.try_all(given.count or 648, given.seed)
        print(
            f"{damaged.databases} damaged databases, asked {damaged.asked} times by dispatch and the command: "
            f"{len(damaged.faults)} raised, waited or lost a sound row, {damaged.seconds:.0f} s"
        )
        faults += damaged.faults
    for fault in faults:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
