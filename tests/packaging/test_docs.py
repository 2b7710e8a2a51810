"""Every piece of code in README.md and docs/ runs, and prints what the page says it prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging import pages

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(command: list[str], folder: Path) -> str:
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"], "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_packages(folder: Path) -> None:
    """The packages as they lie in the checkout, with a link that gives ops/ its import name."""
    for room in ("kpt", "ops", "autotune_db", "kpt_dsl"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "kpt" / "ops").symlink_to(folder / "ops")


def prepare(page: pages.Page, folder: Path) -> None:
    """Puts everything that a page's code needs into a folder."""
    if page.diffs or any("/" in name for name in page.files):
        copy_packages(folder)
    for name, text in page.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for diff in page.diffs:
        pages.apply(diff, folder)
    for project in page.projects:
        pages.install(project, folder)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path) -> None:
    page = pages.read(path)
    prepare(page, tmp_path)
    if page.program:
        program = f"page_{path.stem.replace('-', '_')}.py"
        (tmp_path / program).write_text(page.program)
        output = run([sys.executable, program], tmp_path)
        assert not (wrong := pages.misprints(page, output)), wrong
    for commands in page.commands:
        run(["bash", "-euo", "pipefail", "-c", commands], tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    broken = [link for link in pages.links(path) if not (path.parent / link).exists()]
    assert not broken, broken
