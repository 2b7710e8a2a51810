"""The order of look-up, the provenance of each answer, and what dispatch never does."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import autotune_db
from autotune_db import environment, lookup, shipped, snapshot
from autotune_db.entry import Entry
from autotune_db.store import Store
from kpt_dsl import classes, targets
from kpt_dsl.errors import ConfigError, InputError, StoreError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from tests.autotune_db import instances, kernels
from tests.autotune_db.entries import H200, entry, stored

TARGET = targets.get("nvidia-h200")
USER, SHIPPED, PREDICTED = (Config(block_M=m, num_warps=2) for m in (1, 2, 4))


@pytest.fixture(autouse=True)
def machine(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200, nothing shipped, an empty database."""
    monkeypatch.setattr(environment, "present_devices", lambda: (H200,))
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "devices")
    shipped.FOLDER.mkdir()


def ship(*entries: Entry) -> None:
    (shipped.FOLDER / "nvidia-h200.json").write_text(shipped.dump(entries))
    lookup.forget()


def store(*entries: Entry) -> None:
    stored(*entries)
    lookup.forget()


def answer(instance: Instance | None = None, config: Config | None = None) -> tuple[Config, str]:
    found = autotune_db.choose(instance or instances.softmax(), TARGET, config)
    return found.config, found.source


def test_all_configs_of_these_tests_are_legal_and_none_is_the_first() -> None:
    options = space(instances.softmax(), TARGET)
    assert [options.why_illegal(c) for c in (USER, SHIPPED, PREDICTED)] == [None] * 3
    assert options.first not in (USER, SHIPPED, PREDICTED)


def test_the_order() -> None:
    first = classes.options(instances.softmax(), TARGET).first
    assert answer() == (first, "rule")
    near = entry(instances.softmax(M=8192), PREDICTED)
    store(near)
    assert answer() == (PREDICTED, "measured (sibling: M=4097..8192)")
    store(entry(config=PREDICTED, origin="predicted", device="nvidia-h200"))
    assert answer() == (PREDICTED, "predicted")
    ship(entry(config=SHIPPED))
    assert answer() == (SHIPPED, "shipped")
    store(entry(config=USER))
    assert answer() == (USER, "measured")
    with autotune_db.overlay({kernels.softmax: SHIPPED}):
        assert answer() == (SHIPPED, "overlay")
        with autotune_db.overlay({kernels.softmax.qualname: PREDICTED}):
            assert answer() == (PREDICTED, "overlay")
            assert answer(config=USER) == (USER, "argument")
        assert answer() == (SHIPPED, "overlay")
    assert answer() == (USER, "measured")


def test_an_overlay_is_for_the_kernels_that_it_names() -> None:
    with autotune_db.overlay({kernels.scores: USER}):
        assert answer()[1] == "rule"


def test_illegal_configs_from_people_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"from the argument is illegal.*block_M"):
        answer(config=Config(block_M=3, num_warps=2))
    with (
        autotune_db.overlay({kernels.softmax: Config(num_warps=2)}),
        pytest.raises(ConfigError, match="overlay is illegal"),
    ):
        answer()
    with pytest.raises(InputError, match="overlay"), autotune_db.overlay({kernels.softmax: {"block_M": 1}}):  # type: ignore[dict-item]
        pass


def test_illegal_configs_from_files_are_passed_over() -> None:
    store(entry(config=Config(block_M=3, num_warps=2)))
    ship(entry(config=SHIPPED))
    assert answer() == (SHIPPED, "shipped")


def test_the_name_of_a_schedule_comes_and_goes_with_the_choice() -> None:
    """Where only the compiler's schedule serves an instance, no config names it; of a sibling the program is the same."""
    named = Config(
        schedule="pipelined", block_M=32, block_N=64, block_K=32, num_warps=4, num_stages=3, group=1, persistent=False,
        descriptors=False, epilogue=1,
    )  # fmt: skip
    unnamed = Config({name: value for name, value in named.items() if name != "schedule"})
    enough, few = instances.linear(M=128), instances.linear(M=20)  # warpgroups multiply 64 rows or more
    store(entry(enough, unnamed))
    assert answer(enough) == (named, "measured")
    store(entry(enough, named))
    assert answer(few) == (unnamed, "measured (sibling: M=65..128)")
    store(entry(enough, named | {"schedule": "warp_specialised"}))
    assert answer(enough)[1] == "rule"  # what is missing are knobs


def test_another_extent_of_the_bucket_is_the_same_entry() -> None:
    store(entry(instances.softmax(M=4096), USER))
    assert answer(instances.softmax(M=2500)) == (USER, "measured")


@pytest.mark.parametrize(
    ("instance", "source"),
    [
        (instances.softmax(M=8 * 4096), "measured (sibling: M=2049..4096)"),
        (instances.softmax(M=16 * 4096), "rule"),  # too far
        (instances.softmax(N=1032), "rule"),  # exact dims agree or it is no sibling
        (instances.softmax(dtype="f16"), "rule"),
    ],
)
def test_who_is_a_sibling(instance: Instance, source: str) -> None:
    store(entry(config=USER))
    assert answer(instance)[1] == source


def test_the_nearest_sibling_that_is_legal_answers() -> None:
    store(
        entry(instances.softmax(M=4 * 4096), USER),
        entry(instances.softmax(M=2 * 4096), Config(block_M=3, num_warps=1)),  # nearer, but illegal
        entry(instances.softmax(M=8 * 4096), SHIPPED),
    )
    assert answer() == (USER, "measured (sibling: M=8193..16384)")


def test_an_entry_of_another_compiler_or_source_is_a_sibling() -> None:
    from dataclasses import replace

    old = entry(config=USER, compiler="triton 2.0.0")
    store(replace(old, key=replace(old.key, source="0" * 16)))
    assert answer() == (USER, "measured (sibling: triton 2.0.0, other kernel source)")
    store(replace(old, config=SHIPPED))
    assert answer() == (SHIPPED, "measured (sibling: triton 2.0.0)")


def test_an_h100_is_no_sibling_of_an_h200() -> None:
    store(entry(config=USER, device="NVIDIA H100 80GB HBM3"))
    assert answer()[1] == "rule"


def test_a_machine_without_the_device_knows_what_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "present_devices", lambda: ())
    ship(entry(config=SHIPPED))
    assert answer() == (SHIPPED, "shipped")
    store(entry(config=USER))
    assert answer() == (USER, "measured")


def test_a_database_that_is_damaged_is_told_once_and_the_next_source_answers(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ship(entry(config=SHIPPED))
    database.parent.mkdir()
    database.write_bytes(b"This is no database." * 100)
    with caplog.at_level(logging.WARNING, "kpt"):
        for _ in range(3):
            assert answer() == (SHIPPED, "shipped")
            answer(instances.softmax(N=8))
    assert [r.message for r in caplog.records] == [
        f"config database {database} is left out: file is not a database; see `kpt-tune doctor`"
    ]


def test_shipped_files_that_are_damaged_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    (shipped.FOLDER / "nvidia-h200.json").write_text('{"format": "something else"}')
    with caplog.at_level(logging.WARNING, "kpt"):
        for width in (8, 16, 24):
            assert answer(instances.softmax(N=width))[1] == "rule"
    (record,) = caplog.records
    assert "shipped configs are left out" in record.message


def test_the_database_is_read_once(database: Path) -> None:
    store(entry(config=USER))
    assert answer()[1] == "measured"
    database.unlink()
    assert answer(instances.softmax(M=100))[1] == "rule"
    assert answer()[1] == "measured"
    lookup.forget()
    assert answer()[1] == "rule"


def test_use_moves_the_database(tmp_path: Path) -> None:
    autotune_db.use(tmp_path / "elsewhere.sqlite")
    store(entry(config=USER))
    assert (tmp_path / "elsewhere.sqlite").exists()
    assert answer() == (USER, "measured")


def test_dispatch_does_not_write(database: Path) -> None:
    answer()
    assert not database.parent.exists()
    store(entry(config=USER))
    before = database.read_bytes()
    answer()
    assert database.read_bytes() == before


def test_neighbours_are_the_nearest_first() -> None:
    store(
        entry(instances.softmax(M=4 * 4096), USER), entry(instances.softmax(M=2 * 4096), SHIPPED), entry(config=PREDICTED)
    )
    assert lookup.neighbours(instances.softmax(), TARGET, 5) == [PREDICTED, SHIPPED, USER]


def test_the_provider_is_what_the_language_finds() -> None:
    store(entry(config=USER))
    assert autotune_db.provider(instances.softmax(), TARGET) == (USER, "measured")


def test_dispatch_imports_nothing_heavy(database: Path) -> None:
    store(entry(config=USER))
    code = """
import sys
from kpt_dsl import targets
from tests.autotune_db.instances import softmax
import autotune_db
print(autotune_db.choose(softmax(), targets.get("nvidia-h200")).provenance)
heavy = {"optuna", "sqlalchemy", "torch", "triton", "jax", "numpy"} & set(sys.modules)
print(sorted(heavy))
"""
    path = os.pathsep.join(p or "." for p in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["measured", "[]"]


def test_a_lookup_that_was_made_before_costs_next_to_nothing() -> None:
    import timeit

    instance = instances.softmax()
    answer(instance)
    assert timeit.timeit(lambda: autotune_db.choose(instance, TARGET), number=1000) / 1000 < 200e-6


def test_what_others_measured_goes_after_what_was_measured_here_and_before_what_is_shipped() -> None:
    ship(entry(config=SHIPPED))
    imported(entry(config=PREDICTED))
    assert answer() == (PREDICTED, "imported")
    store(entry(config=USER))
    assert answer() == (USER, "measured")
    imported(entry(config=SHIPPED))  # later, and still
    assert answer() == (USER, "measured")


def test_a_prediction_of_others_goes_after_ones_own() -> None:
    store(entry(config=USER, origin="predicted"))
    imported(entry(config=PREDICTED, origin="predicted"))
    assert answer() == (USER, "predicted")


def test_of_siblings_that_are_equally_near_ones_own_goes_first() -> None:
    imported(entry(instances.softmax(M=2 * 4096), PREDICTED))
    store(entry(instances.softmax(M=2 * 4096), USER))
    assert answer() == (USER, "measured (sibling: M=4097..8192)")
    imported(entry(instances.softmax(M=2 * 4096), SHIPPED))
    assert answer() == (USER, "measured (sibling: M=4097..8192)")


def imported(*entries: Entry) -> None:
    with Store() as opened:
        opened.add_imported(entries)
    lookup.forget()


def test_an_entry_under_the_id_of_another_key_does_not_answer(database: Path) -> None:
    store(entry(config=USER), entry(instances.softmax(N=8)))
    with sqlite3.connect(database) as connection:  # the second row says that it is the first
        connection.execute("DELETE FROM kpt_winners WHERE key_id = 1")
        connection.execute("UPDATE kpt_winners SET key_id = 1")
        connection.execute("UPDATE kpt_keys SET body = (SELECT body FROM kpt_keys WHERE id = 2) WHERE id = 1")
    lookup.forget()
    assert answer()[1] == "rule"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "deep", "cut"])
def test_whatever_stands_in_the_place_of_what_is_shipped(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    file = shipped.FOLDER / "nvidia-h200.json"
    ship(entry(config=SHIPPED))
    text = file.read_text()
    file.unlink()
    {
        "fifo": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "device": lambda: file.symlink_to("/dev/zero"),
        "deep": lambda: file.write_text("[" * 100_000),
        "cut": lambda: file.write_text(text[: len(text) // 2]),
    }[kind]()
    lookup.forget()
    with caplog.at_level(logging.WARNING, "kpt"):
        assert answer()[1] == "rule"
    (record,) = caplog.records
    assert "shipped configs are left out" in record.message


def test_every_truncation_of_what_is_shipped_is_told() -> None:
    file = shipped.FOLDER / "nvidia-h200.json"
    ship(entry(config=SHIPPED))
    text = file.read_bytes()
    for length in range(len(text.rstrip())):
        file.write_bytes(text[:length])
        with pytest.raises(StoreError):
            shipped.load("nvidia-h200")


def test_without_a_home_folder_there_is_no_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does without $HOME and an account
    for place in (None, "~/configs.sqlite", "~nobody-of-that-name/configs.sqlite"):
        monkeypatch.delenv("KPT_DB", raising=False)
        if place:
            monkeypatch.setenv("KPT_DB", place)
        lookup.forget()
        assert answer()[1] == "rule"
        with pytest.raises(StoreError, match=r"no (such )?home folder"):
            Store()
    assert [p.name for p in tmp_path.iterdir()] == ["devices"]  # and no folder called "~"


def test_a_look_up_parses_what_it_needs_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long among many entries as among few: those of other families are not looked at twice."""
    many = [entry(instances.softmax(N=8 * n), USER) for n in range(1, 300)]
    imported(*many)
    answer(instances.softmax(N=5000))  # indexes the kernel
    parsed: list[object] = []
    sound = snapshot.parsed
    monkeypatch.setattr(snapshot, "parsed", lambda *fields, **more: parsed.append(fields) or sound(*fields, **more))
    monkeypatch.setattr(snapshot.files, "from_json", lambda text: parsed.append(text) or json.loads(text))
    assert answer(instances.softmax(M=8 * 4096, N=80))[1] == "imported (sibling: M=2049..4096)"
    assert answer(instances.softmax(M=8 * 4096, N=6000))[1] == "rule"
    assert len(parsed) < 10
