"""``kpt-tune doctor``: whether everything that kpt needs is here and well, and what to do where it is not."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer

from autotune_db import environment
from autotune_db.location import VARIABLE, local_file, location, path_of, without_secrets
from autotune_db.store import Store
from kpt.cli import options, output, stored
from kpt_dsl import targets
from kpt_dsl.build import cache
from kpt_dsl.errors import KptError

State = Literal["ok", "note", "fault"]

LOW_DISK_BYTES = 1 << 30
"""Less free space than this is worth a note: compiled kernels and the database grow."""

_PACKAGES = {
    "torch": ("2.9", True, "pip install torch"),
    "triton": ("3.6", True, "pip install triton (Linux; torch's CUDA wheels bring it)"),
    "optuna": ("4.0", True, "pip install optuna"),
    "sqlalchemy": ("2.0", True, "pip install sqlalchemy"),
    "numpy": ("1.26", True, "pip install numpy"),
    "jax": ("0.10", False, "for TPU kernels: pip install 'kpt-dsl[tpu]'"),
    "libtpu": ("0.0", False, "to compile for TPUs in full, under Google's terms: pip install 'kpt-dsl[libtpu]'"),
    "psycopg": ("3.0", False, "for a PostgreSQL database that a fleet shares: pip install psycopg[binary]"),
}
"""Package -> oldest version that kpt works with, whether it is needed, and how to get it."""


@dataclass(frozen=True)
class Check:
    """``note``: works, but something is absent or worth knowing. ``fault``: something that kpt needs does not work."""

    name: str
    state: State
    found: str
    remedy: str = ""


def doctor(db: options.Database = None, json: options.Json = False) -> None:
    """Check packages, device, database and caches, and say what to do. Exit code 1 where something is at fault."""
    checks = [*_packages(), *_devices(), *_database(db), *_folders(db)]
    if json:
        output.as_json([asdict(check) for check in checks])
    else:
        output.table(("", "", "", ""), [(c.state, c.name, c.found, c.remedy) for c in checks])
    if any(check.state == "fault" for check in checks):
        raise typer.Exit(1)


def _packages() -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())
    for package, (oldest, needed, how) in _PACKAGES.items():
        found = environment.version(package)
        if found == "absent":
            yield Check(package, "fault" if needed else "note", "not installed", how)
        elif _numbers(found) < _numbers(oldest):
            yield Check(package, "fault" if needed else "note", found, f"{oldest} or newer is needed: {how}")
        else:
            yield Check(package, "ok", found)


def _devices() -> Iterator[Check]:
    try:
        import torch

        environment.look_for_devices()
        present = environment.present_devices()
    except (ImportError, RuntimeError, OSError) as error:
        yield Check("device", "fault", str(error).splitlines()[0], "reinstall torch, or the driver of the GPU")
        return
    if not present:
        built_for = torch.version.cuda or torch.version.hip
        found = "no GPU" if built_for else "no GPU (torch is the CPU build)"
        yield Check(
            "device", "note", found, "tune for a chip that is not here with --target, as in --target nvidia-h200"
        )
    for number, name in enumerate(present):
        target = targets.of_device(name)
        if target is None:
            yield Check(
                f"device {number}",
                "note",
                name,
                "kpt has no target for it, so PyTorch serves its calls (docs: add a target)",
            )
        else:
            yield Check(f"device {number}", "ok", f"{name}: {target.name}")


def _database(db: str | None) -> Iterator[Check]:
    try:
        if not stored.is_made(db):
            place = db or location()
            found = f"{without_secrets(str(path_of(place)), place)}: none yet"
            yield Check("database", "note", found, "kpt-tune run makes it; till then shipped configs and rules serve")
            return
        with Store(db, read_only=True) as store:
            trouble = store.damage()
            entries = store.entries()
            trials = len(store.trials())
    except KptError as error:
        yield Check("database", "fault", str(error), "dispatch does without it")
        return
    if trouble or store.lost:
        yield Check(
            "database",
            "fault",
            f"{store.shown}: {trouble or store.lost}",
            "`kpt-tune export` saves what can be read; then move the file away",
        )
        return
    devices = ", ".join(sorted({entry.key.device for entry in entries})) or "no device yet"
    yield Check("database", "ok", f"{store.shown}: {len(entries)} winners and {trials} trials for {devices}")
    if missing := stored.unreadable(store):
        first = store.damaged[0]
        found = f"{missing}, which are left out; the first: {first.table} {first.number}: {first.why}"
        yield Check("database rows", "note", found, "`kpt-tune remove --damaged` deletes them")
    if stale := {e.key.compiler for e in entries} - {environment.compiler(e.key.backend) for e in entries}:
        found = f"entries of {', '.join(sorted(stale))}"
        yield Check("database age", "note", found, "they serve as siblings; tune anew for the compiler that is here")


def _folders(db: str | None) -> Iterator[Check]:
    try:
        place = path_of(db or location()) or local_file()
    except KptError:  # told of the database already
        place = None
    if place is not None:
        yield _folder("database folder", place.absolute().parent, f"name another database with {VARIABLE} or --db")
    if why := cache.refusal():
        yield Check("cache folder", "note", why, "kernels are compiled again in each process")
    else:
        yield _folder("cache folder", cache.folder().absolute(), f"name another folder with {cache.VARIABLE}")


def _folder(name: str, folder: Path, remedy: str) -> Check:
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Check(name, "note", f"{folder} cannot be written", remedy)
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free >= LOW_DISK_BYTES else "note"
    return Check(name, state, f"{folder}, {free / 1e9:.1f} GB free", "" if state == "ok" else "free some space")


def _numbers(version: str) -> tuple[int, ...]:
    found = []
    for part in version.partition("+")[0].split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
