"""Where configs come from: a provider of another package first, the rule otherwise."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from kpt_dsl import configs, targets
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from tests.space import instances

H200 = targets.get("nvidia-h200")
INSTANCE = instances.layer_norm(64, 512)
TUNED = Config(whole_row=True, block_M=4, num_warps=4)


@pytest.fixture(autouse=True)
def _providers_anew() -> Iterator[None]:
    configs.providers.cache_clear()
    yield
    configs.providers.cache_clear()


def _offer(monkeypatch: pytest.MonkeyPatch, *answers: tuple[Config, str] | None) -> None:
    def entry(answer: tuple[Config, str] | None) -> SimpleNamespace:
        def provider(instance: Instance, target: targets.Target) -> tuple[Config, str] | None:
            return answer

        return SimpleNamespace(load=lambda: provider)

    monkeypatch.setattr(configs, "entry_points", lambda *, group: [entry(answer) for answer in answers])


def test_without_a_provider_the_rule_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch)
    assert configs.choose(INSTANCE, H200) == (space(INSTANCE, H200).first, "rule")


def test_a_provider_comes_before_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, None, (TUNED, "measured"))
    assert configs.choose(INSTANCE, H200) == (TUNED, "measured")


def test_a_provider_without_an_answer_leaves_it_to_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, None)
    assert configs.choose(INSTANCE, H200)[1] == "rule"
