"""What a benchmark leaves behind: one JSON file with device, versions, date and command, one plot, one table on screen."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("kpt-dsl", "torch", "triton", "liger-kernel", "flash-attn", "flash-attn-4", "jax")


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


def write(folder: Path, name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """``folder/name.json`` of a suite."""
    return save(folder, name, title, {"rows": list(rows)}, "benchmarks")


def save(folder: Path, name: str, title: str, found: Mapping[str, Any], program: str) -> Path:
    """``folder/name.json``: what was found, and the environment that it was found in. Written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"suite": name, "title": title, **environment(program), **found}, indent=1) + "\n")
    partial.replace(path)
    return path


def plot(path: Path) -> Path:
    """Bars of a written JSON file beside it, one group a case."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = json.loads(path.read_text())
    rows = found["rows"]
    key = "rate" if "rate" in rows[0] else "microseconds"
    names = list(dict.fromkeys(n for row in rows for n in row[key]))
    figure, axes = plt.subplots(figsize=(max(7.0, 1.4 * len(rows)), 4.2), layout="constrained")
    width = 0.85 / len(names)
    for position, name in enumerate(names):
        heights = [row[key].get(name, 0.0) for row in rows]
        offset = (position - (len(names) - 1) / 2) * width
        axes.bar([i + offset for i in range(len(rows))], heights, width, label=name)
    axes.set_xticks(range(len(rows)), [row["case"] for row in rows], rotation=20, ha="right")
    axes.set_ylabel(rows[0].get("unit", "µs a call"))
    axes.set_title(f"{found['title']} — {found['device']}, {found['date'][:10]}")
    axes.legend(ncols=len(names), fontsize="small")
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture
