"""Every piece of code in README.md and docs/ runs, and prints what the page says it prints."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging import pages

ROOT = Path(__file__).parents[2]
LOOSE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(command: list[str], folder: Path) -> str:
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"], "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path) -> None:
    page = pages.read(path)
    for name, text in page.files.items():
        (tmp_path / name).write_text(text)
    if page.program:
        (tmp_path / f"page_{path.stem.replace('-', '_')}.py").write_text(page.program)
        output = run([sys.executable, f"page_{path.stem.replace('-', '_')}.py"], tmp_path)
        for line, expected in page.printed.items():
            before, _, _ = output.partition(pages.end(line))
            got = before.rpartition("---\n")[2]
            same = doctest.OutputChecker().check_output(expected + "\n", got, LOOSE)
            assert same, f"{path.name}, before line {line}, printed:\n{got}"
    for commands in page.commands:
        run(["bash", "-euo", "pipefail", "-c", commands], tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    broken = [link for link in pages.links(path) if not (path.parent / link).exists()]
    assert not broken, broken
