"""The command, run in this process, with a database of its own."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune_db import location, lookup
from kpt.cli import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "folder" / "configs.sqlite"
    monkeypatch.setenv(location.VARIABLE, str(path))
    lookup.forget()
    yield path
    lookup.forget()


@pytest.fixture
def tune(database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``tune("run", "--op", …)``: exit code, standard output and error of the command."""

    def command(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["kpt-tune", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Done(int(ended.value.code or 0), shown.out, shown.err)

    return command
