"""Plots of the report, as SVG text that stands in a page by itself. Knows numbers and names only."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREY, RED = "#2166ac", "#d95f02", "#8a8f98", "#b2182b"

STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
    "svg.hashsalt": "kpt",  # the same plot is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
}


@dataclass(frozen=True)
class Search:
    """One key's search: microseconds of each trial in the order tried (None: rejected), and of the first config."""

    title: str
    microseconds: tuple[float | None, ...]
    first: float


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def searches(found: Sequence[Search], quantity: str) -> str:
    """A panel a key: every trial's time, the best so far, the first config's, and where candidates were rejected.

    ``quantity`` says what the times are: measured or predicted.
    """
    with mpl.rc_context(STYLE):
        columns = 2
        rows = -(-len(found) // columns)
        figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
        handles: dict[str, Artist] = {}
        for place, search in enumerate(found):
            axes = figure.add_subplot(rows, columns, place + 1)
            times = [t if t is not None else np.nan for t in search.microseconds]
            numbers = np.arange(1, len(times) + 1)
            axes.axhline(search.first, color=ORANGE, linestyle="--", linewidth=1.2, label="first config, by rule")
            if not np.isnan(times).all():
                axes.step(numbers, np.fmin.accumulate(times), where="post", color=BLUE, label="best so far")
            axes.scatter(numbers, times, s=14, color=BLUE, alpha=0.6, linewidths=0, label="candidate")
            rejected = numbers[np.isnan(times)]
            if rejected.size:
                top, place_of = np.ones(rejected.size), axes.get_xaxis_transform()
                axes.scatter(rejected, top, 18, RED, "x", transform=place_of, clip_on=False, label="rejected")
            axes.set_title(search.title, loc="left")
            known = [search.first, *(t for t in search.microseconds if t is not None)]
            axes.set_ylim(min(known) - 0.08 * search.first, max(known) + 0.08 * search.first)
            axes.set_xlim(0, len(times) + 1)
            axes.set_ylabel(f"µs, {quantity}")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_xlabel("trial")
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure)


def similarities(original: NDArray[np.float64], replaced: NDArray[np.float64], labels: Sequence[str]) -> str:
    """Cosine similarity of every pair of sentences by either model, and the difference."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        panels = (
            ("PyTorch", original, "Blues", 0.0, 1.0),
            ("kpt", replaced, "Blues", 0.0, 1.0),
            ("difference", np.abs(replaced - original), "Oranges", 0.0, None),
        )
        for place, (title, values, colours, low, high) in enumerate(panels):
            axes = figure.add_subplot(1, 3, place + 1)
            image = axes.imshow(values, cmap=colours, vmin=low, vmax=high)
            axes.set_title(title, loc="left")
            axes.set_xticks(range(len(labels)), labels)
            axes.set_yticks(range(len(labels)), labels)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.8, aspect=30)
            bar.outline.set_visible(False)  # type: ignore[operator]
        return _svg(figure)
