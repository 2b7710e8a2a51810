"""The picture of a comparison: the loss curves, and their difference beside what rounding alone does. Knows records only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.verdict import Window

BLUE, ORANGE, GREY = "#2166ac", "#d95f02", "#8a8f98"


def draw(path: Path, title: str, curves: Mapping[str, Sequence[float]], windows: Sequence[Window]) -> None:
    """``curves``: "kpt", "PyTorch", then PyTorch's other roundings; losses by step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    above.plot(curves["PyTorch"], color=ORANGE, linewidth=2.4, label="PyTorch")
    above.plot(curves["kpt"], color=BLUE, linewidth=1.0, label="kpt")
    above.set_ylabel("loss, nats a byte")
    above.set_title(title, loc="left", fontsize=10)
    above.legend(frameon=False)

    for place, (name, curve) in enumerate(others(curves).items()):
        label = "PyTorch, rounded otherwise" if place == 0 else None
        below.plot(_less(curve, curves["PyTorch"]), color=GREY, linewidth=0.8, alpha=0.8, label=label, gid=name)
    below.plot(_less(curves["kpt"], curves["PyTorch"]), color=BLUE, linewidth=1.0, label="kpt")
    for place, window in enumerate(windows):
        label = "allowed root mean square" if place == 0 else None
        for side in (window.allowed, -window.allowed):
            below.hlines(side, window.first, window.last - 1, colors=ORANGE, linestyles="--", linewidth=1, label=label)
            label = None
    below.set_ylabel("less PyTorch's loss")
    below.set_xlabel("step")
    figure.legend(
        *below.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def others(curves: Mapping[str, Any]) -> dict[str, Any]:
    """PyTorch's runs with other roundings."""
    return {name: curve for name, curve in curves.items() if name not in ("kpt", "PyTorch")}


def _less(curve: Sequence[float], base: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(curve, base, strict=True)]
