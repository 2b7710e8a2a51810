"""A key changes with everything that decides which config is best, and with nothing else."""

import dataclasses
from typing import Any

import pytest

import kpt_dsl as kd
from autotune_db.key import Key, key_of
from kpt_dsl.buckets import Span
from kpt_dsl.errors import StoreError
from kpt_dsl.instance import Instance
from tests.autotune_db import instances, kernels


def key(instance: Instance, device: str = "NVIDIA H200", backend: str = "triton", compiler: str = "triton 3.9.0") -> Key:
    return key_of(instance, device, backend, compiler)


BASE = instances.linear()


def laid_out(**changed: Any) -> Instance:
    """The same with other strides or alignment."""
    return Instance(BASE.specialisation, dataclasses.replace(BASE.extents, **changed))


OTHER_INSTANCES = {
    "dtype": instances.linear(dtype="f16"),
    "absent bias": instances.linear(bias=False),
    "activation": instances.linear(activation=kernels.double),
    "bucketed dim": instances.linear(M=4097),
    "exact dim N": instances.linear(N=520),
    "exact dim K": instances.linear(K=264),
    "strides": laid_out(strides=(("x", (512, 1)), *BASE.extents.strides[1:])),
    "transposed": laid_out(strides=(("x", (1, 4096)), *BASE.extents.strides[1:])),
    "alignment": laid_out(aligned=BASE.extents.aligned - {"weight"}),
    "kernel": instances.softmax(),
}


@pytest.mark.parametrize("what", OTHER_INSTANCES)
def test_another_instance_has_another_key(what: str) -> None:
    assert key(OTHER_INSTANCES[what]).digest != key(BASE).digest
    assert key(OTHER_INSTANCES[what]) != key(BASE)


@pytest.mark.parametrize(
    "place", [{"device": "NVIDIA H100 80GB HBM3"}, {"backend": "gluon"}, {"compiler": "triton 3.6.0"}], ids=str
)
def test_another_device_or_compiler_has_another_key(place: dict[str, str]) -> None:
    assert key(BASE, **place).digest != key(BASE).digest


def test_another_source_of_the_same_kernel_has_another_key() -> None:
    def version(text: int) -> kd.Kernel:
        if text == 1:

            @kd.kernel(x="N", y="N")
            def copy(x: kd.In, y: kd.Out) -> None:
                for n in kd.parallel(kd.tile("N")):
                    y[n] = x[n] * 1.0
        else:

            @kd.kernel(x="N", y="N")
            def copy(x: kd.In, y: kd.Out) -> None:
                for n in kd.parallel(kd.tile("N")):
                    y[n] = x[n] * 2.0

        return copy

    one, two = (key(Instance.of_shapes(version(text), {"N": 64}, {"x": "f32", "y": "f32"})) for text in (1, 2))
    assert one.kernel == two.kernel
    assert one.digest != two.digest


def test_another_text_of_a_function_given_as_argument_has_another_key() -> None:
    def version(text: int) -> object:
        if text == 1:

            @kd.function
            def activation(x: kd.Value) -> kd.Value:
                return x * 2.0
        else:

            @kd.function
            def activation(x: kd.Value) -> kd.Value:
                return x * 3.0

        return activation

    one, two = (key(instances.linear(activation=version(text))) for text in (1, 2))
    assert one.title == two.title
    assert one.digest != two.digest


ANOTHER: dict[str, Any] = {
    "kernel": "other:kernel",
    "source": "0" * 16,
    "device": "other",
    "backend": "other",
    "compiler": "other",
    "dtypes": (("x", "f32"),),
    "layouts": (("x", "strided"),),
    "flags": (("activation", None),),
    "shape": (("M", Span(1, 1)),),
}


@pytest.mark.parametrize("component", [f.name for f in dataclasses.fields(Key)])
def test_every_component_is_in_the_digest(component: str) -> None:
    changed = dataclasses.replace(key(BASE), **{component: ANOTHER[component]})
    assert changed.digest != key(BASE).digest


@pytest.mark.parametrize("same", [instances.linear(M=2049), instances.linear(M=3000)], ids=str)
def test_extents_of_one_bucket_share_a_key(same: Instance) -> None:
    assert key(same).digest == key(BASE).digest


def test_true_and_one_are_different_flags() -> None:
    one, true = (dataclasses.replace(key(BASE), flags=(("causal", value),)) for value in (1, True))
    assert one.digest != true.digest and one != true and one.exact_flags != true.exact_flags


@pytest.mark.parametrize("instance", [BASE, *OTHER_INSTANCES.values()], ids=str)
def test_a_key_is_read_back_from_its_data(instance: Instance) -> None:
    original = key(instance)
    assert Key.from_dict(original.to_dict()) == original
    assert Key.from_dict(original.to_dict()).digest == original.digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("shape"),
        lambda data: data.update(kernel=None),
        lambda data: data.update(shape={"M": "many"}),
        lambda data: data.update(dtypes="bf16"),
    ],
)
def test_what_is_not_a_key_is_refused(damage: Any) -> None:
    data = key(BASE).to_dict()
    damage(data)
    with pytest.raises(StoreError, match="not a key"):
        Key.from_dict(data)


def test_the_digest_does_not_change_between_versions_of_kpt() -> None:
    """Entries are found again by it: a change here loses every stored winner, and needs a new schema version."""
    fixed = Key(
        kernel="package.module:softmax",
        source="0123456789abcdef",
        device="NVIDIA H200",
        backend="triton",
        compiler="triton 3.9.0",
        dtypes=(("x", "bf16"), ("bias", None)),
        layouts=(("x", "dense 16B"),),
        flags=(("causal", True),),
        shape=(("M", Span(2049, 4096)), ("N", Span(1024, 1024))),
    )
    assert fixed.digest == "941b83a9fb423cca6a229516dca9f4a7"
