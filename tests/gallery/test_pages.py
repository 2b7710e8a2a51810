"""The pages of docs/gallery: their code is that of the files beside them, and runs; what they say of sizes and gaps is so."""

import ast
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from benchmarks import gallery
from benchmarks.formulas import SHOWN
from tests.gallery.sizes import GAPS
from tests.packaging import pages

FOLDER = Path(__file__).parents[2] / "docs" / "gallery"
PAGES = sorted(set(FOLDER.glob("*.md")) - {FOLDER / "README.md"})
ROW = re.compile(r"(\| `.*?` \| .*?) \| (\S+) \| (\S+) \| (\S+), (.*) \|")
MOST_LINES = 34
"""Of a kernel, its decorator and docstring among them."""


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are imported as a reader does who copied their files."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for file in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path: Path) -> None:
    page = pages.read(path)
    assert page.files == {f"{path.stem}.py": path.with_suffix(".py").read_text()}
    output = StringIO()
    with redirect_stdout(output):
        exec(compile(page.program, path, "exec"), {"__name__": path.stem})
    assert page.printed
    assert not pages.misprints(page, output.getvalue())


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_says_what_is_so(name: str) -> None:
    """The row of its size and times is what the command prints, but for what a finer model or another measurement says."""
    kernel = SHOWN[name].kernels[0]
    page = (FOLDER / f"{kernel.qualname.partition(':')[0].rpartition('.')[2]}.md").read_text()
    if name not in gallery.measured():
        assert gallery.line(name) in page
        return
    size, *microseconds, peer = ROW.fullmatch(gallery.line(name)).groups()
    ((*told, beside),) = (row.groups()[1:] for row in ROW.finditer(page) if row[1] == size)
    assert [float(n) for n in told] == pytest.approx([float(n) for n in microseconds], rel=0.25), gallery.line(name)
    assert beside == peer, gallery.line(name)
    assert GAPS.get(name, "") in page


def test_of_a_new_kernel_nothing_is_told_that_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "measured", dict)
    assert gallery.line("rope_halves").endswith("| not yet | |")


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_kernels_are_short(file: Path) -> None:
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        first = min(node.lineno for node in (function, *function.decorator_list))
        assert function.end_lineno is not None
        assert function.end_lineno - first < MOST_LINES, function.name


def test_all_pages_are_listed_and_shown() -> None:
    listed = pages.links(FOLDER / "README.md")
    assert {path.name for path in PAGES} <= set(listed)
    assert {path.stem for path in PAGES} == {
        kernel.qualname.partition(":")[0].rpartition(".")[2] for shown in SHOWN.values() for kernel in shown.kernels
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    assert all((path.parent / link).exists() for link in pages.links(path))
