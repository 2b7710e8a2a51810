"""What a benchmark leaves behind: one JSON file with device, versions, date and command, one plot, one table on screen."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from kpt_dsl import KptError

PACKAGES = (
    "kpt-dsl", "torch", "triton", "liger-kernel", "flash-attn", "flash-attn-4", "jax", "jaxlib", "libtpu", "tokamax",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """What is drawn of a suite's rows. ``of``: the key whose values are.

    "bars": a group a row, of a bar for each candidate by name. "sorted": one number a row, from the least to the greatest.
    """

    of: str = "rate"
    axis: str = ""
    kind: Literal["bars", "sorted"] = "bars"
    logarithmic: bool = False


def device() -> str:
    """The GPU that is present, by its name; else the processor."""
    import torch

    if torch.cuda.is_available():
        name: str = torch.cuda.get_device_name()
        return name
    return f"CPU ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def environment(program: str) -> dict[str, Any]:
    """Device, driver, versions, date (UTC) and the command that was run: ``python -m program`` and its arguments."""
    import torch

    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "device": device(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "versions": found,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", program, *_without_folder(sys.argv[1:])]),
    }


def _without_folder(arguments: list[str]) -> list[str]:
    """The arguments that decide what is measured: where the files go does not."""
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


def write(
    folder: Path,
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    picture: Picture | None = None,
    about: Mapping[str, Any] | None = None,
    add: bool = False,
) -> Path:
    """``folder/name.json`` of a suite. ``about``: what is said of all rows together. ``add``: beside the rows of other cases
    that are there, of the same device and versions; each says then when it was measured, and by which command."""
    if add:
        rows = _added(folder / f"{name}.json", rows, {**environment("benchmarks"), **(about or {})})
    found = {**(about or {}), "picture": asdict(picture or Picture()), "rows": list(rows)}
    return save(folder, name, title, found, "benchmarks")


def _added(path: Path, rows: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Raises KptError where what is there was measured elsewhere."""
    earlier = json.loads(path.read_text()) if path.exists() else {**now, "rows": []}
    for key in ("device", "cuda", "versions"):
        if earlier[key] != now[key]:
            raise KptError(f"{path} has {key} {earlier[key]}, and here it is {now[key]}; accepted by --add: the same")
    found = {row["case"]: {**_when(earlier), **row} for row in earlier["rows"]}
    found |= {row["case"]: {**row, **_when(now)} for row in rows}
    return list(found.values())


def _when(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: environment[key] for key in ("date", "command")}


def save(folder: Path, name: str, title: str, found: Mapping[str, Any], program: str) -> Path:
    """``folder/name.json``: what was found, and the environment that it was found in. Written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"suite": name, "title": title, **environment(program), **found}, indent=1) + "\n")
    partial.replace(path)
    return path


def plot(path: Path) -> Path:
    """The picture of a written JSON file, beside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = json.loads(path.read_text())
    rows, picture = found["rows"], Picture(**found["picture"])
    wide = 1.4 * len(rows) if picture.kind == "bars" else 0.0
    figure, axes = plt.subplots(figsize=(max(7.0, wide), 4.2), layout="constrained")
    if picture.kind == "bars":
        _bars(axes, rows, picture)
    else:
        axes.plot(sorted(row[picture.of] for row in rows), ".-")
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set_xlabel(f"{len(rows)} cases, in order")
    if picture.logarithmic:
        axes.set_yscale("log")
    axes.margins(y=0.15)  # room for the legend
    axes.set_ylabel(picture.axis or rows[0]["unit"])
    axes.set_title(f"{found['title']} — {found['device']}, {found['date'][:10]}")
    drawn = path.with_suffix(".png")
    figure.savefig(drawn, dpi=120)
    plt.close(figure)
    return drawn


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], picture: Picture) -> None:
    """One group a row, one bar a candidate; none where a row lacks it."""
    names = list(dict.fromkeys(name for row in rows for name in row[picture.of]))
    width = 0.85 / len(names)
    for position, name in enumerate(names):
        offset = (position - (len(names) - 1) / 2) * width
        known = [(i + offset, row[picture.of][name]) for i, row in enumerate(rows) if name in row[picture.of]]
        axes.bar([x for x, _ in known], [height for _, height in known], width, label=name)
    axes.set_xticks(range(len(rows)), [row["case"] for row in rows], rotation=20, ha="right")
    axes.legend(ncols=len(names), fontsize="small")
