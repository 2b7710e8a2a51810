"""Words of the command line: what they mean, and how wrong ones are refused."""

import pytest

from kpt.cli import parse
from kpt_dsl.errors import InputError


def test_shapes() -> None:
    assert parse.shapes(["M=4096, N=1024; M=1,N=7", "M=2,N=2"]) == [
        {"M": 4096, "N": 1024},
        {"M": 1, "N": 7},
        {"M": 2, "N": 2},
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is not NAME=VALUE"),
        ("M", "'M' is not NAME=VALUE; write it like 'M=4096,N=1024'"),
        ("M=4096,", "'' is not NAME=VALUE"),
        ("M=4096 N=3", "M='4096 N=3' is not a positive whole number"),
        ("M=4k", "M='4k' is not a positive whole number"),
        ("M=-1", "M='-1' is not a positive whole number"),
        ("M=0", "M='0' is not a positive whole number"),
        ("M=1.5", "M='1.5' is not a positive whole number"),
        ("M=1,M=2", "M is given twice; put a semicolon between shapes"),
        ("4096=M", "'4096=M' is not NAME=VALUE"),
    ],
)
def test_malformed_shapes(text: str, told: str) -> None:
    with pytest.raises(InputError) as raised:
        parse.shapes([text])
    assert told in str(raised.value)
    assert "--shapes" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90", 90), ("2m", 120), ("1h", 3600), ("0.5m", 30), (" 5 s ", 5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "-5s", "0", "5 days", "1e3", "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError, match=r"--budget .* is not a duration; write 60s"):
        parse.seconds(text)


def test_flags() -> None:
    assert parse.flags(["causal=true,window=512", "activation=gelu,scale=0.5,bias=none"]) == {
        "causal": True,
        "window": 512,
        "activation": "gelu",
        "scale": 0.5,
        "bias": None,
    }


def test_dtypes() -> None:
    tensors = ("x", "scale", "bias")
    assert parse.dtypes("bf16", tensors) == {"x": "bf16", "scale": "bf16", "bias": "bf16"}
    assert parse.dtypes("bf16,scale=float32,bias=none", tensors) == {"x": "bf16", "scale": "f32", "bias": None}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x=bf16", "says nothing about scale"),
        ("bf16,y=f32", "no tensor 'y'; it has x, scale"),
        ("bf17", "'bf17' is not one"),
    ],
)
def test_wrong_dtypes(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse.dtypes(text, ("x", "scale"))
