"""Reads the code out of a Markdown page, so that tests can run what people will copy.

A page is run like this, in an empty folder:

- blocks marked ``python title="name.py"`` are written to files of that name first; one with a folder in its name
  (``ops/softmax/op.py``) is written into a copy of the checkout, which the page then runs with;
- ``diff`` blocks are applied to that copy; a hunk's place is found by its text, which must stand there once;
- a ``toml`` block is a ``pyproject.toml``: the folder is made to look as if that project were installed in it;
- the other ``python`` blocks run in order as one program. Its lines have the numbers that they have on the page, so a
  traceback points at the page. A ``text`` block right after one is what it prints (``...`` stands for anything);
- ``sh`` blocks run after that, each line as a reader would type it. One marked ``sh not-run`` is left out: it installs
  something, or needs a device; the prose beside it says so.
"""

import doctest
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\s*(.*)$")
TITLE = re.compile(r'title="([^"]+)"')
LOOSE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the rest of its first line, the line it starts on (1-based), and its text."""

    language: str
    info: str
    line: int
    text: str


@dataclass(frozen=True)
class Page:
    """What a page runs. ``program`` prints ``end(n)`` after the block that ends on line n, ``printed[n]`` before it."""

    files: dict[str, str] = field(default_factory=dict)
    diffs: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    program: str = ""
    printed: dict[int, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    inside: tuple[str, str, int] | None = None
    body: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if inside is None and match:
            inside, body = (match[1], match[2], number), []
        elif inside is not None and line.startswith("```"):
            found.append(Block(*inside, "\n".join(body)))
            inside = None
        elif inside is not None:
            body.append(line)
    return found


def end(line: int) -> str:
    """What the program prints after the block whose closing fence stands on a line."""
    return f"--- end of the block on line {line} ---"


def read(path: Path) -> Page:
    """The runnable parts of a page."""
    files: dict[str, str] = {}
    printed: dict[int, str] = {}
    commands: list[str] = []
    others: dict[str, list[str]] = {"diff": [], "toml": []}
    lines: dict[int, str] = {}
    last_end = 0
    text = path.read_text()
    source = text.splitlines()
    for block in blocks(text):
        stop = block.line + len(block.text.splitlines()) + 1
        title = TITLE.search(block.info)
        if block.language == "python" and title:
            files[title[1]] = block.text + "\n"
        elif block.language == "python":
            lines.update(enumerate(block.text.splitlines(), block.line + 1))
            lines[stop] = f"print({end(stop)!r})"
            last_end = stop
        elif block.language == "text" and last_end and not "".join(source[last_end : block.line - 1]).strip():
            printed[last_end] = block.text
        elif block.language in others:
            others[block.language].append(block.text)
        elif block.language == "sh" and "not-run" not in block.info:
            commands.append(block.text)
    program = "\n".join(lines.get(number, "") for number in range(1, max(lines, default=0) + 1))
    return Page(
        files, tuple(others["diff"]), tuple(others["toml"]), program + "\n" if lines else "", printed, tuple(commands)
    )


def misprints(page: Page, output: str) -> list[str]:
    """What a page's program printed otherwise than the page says."""
    found = []
    for line, expected in page.printed.items():
        got = output.partition(end(line))[0].rpartition("---\n")[2]
        if not doctest.OutputChecker().check_output(expected + "\n", got, LOOSE):
            found.append(f"before line {line}, printed:\n{got}")
    return found


def links(path: Path) -> list[str]:
    """The relative links of a page, without their anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    return [t.partition("#")[0] for t in targets if "://" not in t and t.partition("#")[0]]


def apply(diff: str, root: Path) -> None:
    """Change the files of a tree as a diff says."""
    header, *hunks = diff.split("\n@@ @@\n")
    file = root / header.splitlines()[-1].removeprefix("+++ b/")
    text = file.read_text()
    for hunk in hunks:
        lines = hunk.splitlines()
        old = "\n".join(line[1:] for line in lines if not line.startswith("+")) + "\n"
        new = "\n".join(line[1:] for line in lines if not line.startswith("-")) + "\n"
        assert text.count(old) == 1, f"{file.name} has this {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    file.write_text(text)


def install(project: str, folder: Path) -> None:
    """Write what an installer would write beside the modules of a project: its name, version and entry points."""
    data = tomllib.loads(project)["project"]
    information = folder / f"{data['name'].replace('-', '_')}-{data['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {data['name']}\nVersion: {data['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in data["entry-points"].items()
    ]
    (information / "entry_points.txt").write_text("\n".join(groups))
