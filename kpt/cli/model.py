"""What a model of Transformers calls, found from its config alone: it is built and run without values."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpt_dsl.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from kpt.ops.calls import Calls

DEFAULT_DTYPE = "bf16"

INSTEAD = "run it within kpt.ops.recording, save the calls, and give them as --calls"


def calls_of(name: str, batch: int, length: int, level: str, training: bool, dtype: str | None) -> "Calls":
    """The calls of a forward of a model after ``kpt.optimize``, or of a step of its training, with its loss.

    ``name``: a folder with a config.json, or what the Hugging Face hub calls the model. ``dtype``: by default the one of its
    config. Raises InputError where there is no such config, or the model cannot be run without values.
    """
    import torch

    import kpt
    from kpt.ops.dtypes import torch_dtype
    from kpt.ops.rehearsal import Rehearsal

    config = _config(name)
    from transformers.initialization import no_init_weights

    own = torch_dtype(dtype) if dtype else getattr(config, "dtype", None) or torch_dtype(DEFAULT_DTYPE)
    kind, rehearsal = _class(config), Rehearsal()
    try:
        with rehearsal.nothing_computed(), no_init_weights(), _default_dtype(own):
            model = kind(config).train(training)
        kpt.optimize(model, level, loss=training)
        with rehearsal.noting() as calls, torch.set_grad_enabled(training):
            outputs = model(**_inputs(model, batch, length, training, own))
            if training:
                _loss(outputs).backward()
    except InputError:
        raise
    except Exception as error:  # of a stranger's code
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(f"--model {name}: {kind.__name__} could not be run without values ({reason}); {INSTEAD}") from None
    return calls


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """Within the block, parameters are made of this type."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _config(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("--model needs transformers: pip install -U transformers") from error
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise InputError(f"--model {name}: the folder has no config.json")
    try:
        return transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        where = "a name is looked for in the Hugging Face cache and on its hub; a folder has a config.json"
        raise InputError(f"--model {name}: {reason} ({where})") from None


def _class(config: Any) -> Any:
    """That of the model which the config was saved with; else one with a language model's head, where there is one."""
    import transformers

    named = [getattr(transformers, each, None) for each in config.architectures or ()]
    if named and named[0] is not None:
        return named[0]
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise InputError(f"Transformers has no model for {type(config).__name__}")


def _inputs(model: Any, batch: int, length: int, training: bool, dtype: Any) -> dict[str, Any]:
    import torch

    known = inspect.signature(model.forward).parameters
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(batch, model.config.num_channels, height, width, dtype=dtype)}
    if model.main_input_name != "input_ids":
        kind = type(model).__name__
        raise InputError(f"{kind} takes {model.main_input_name}, not input_ids or pixel_values; {INSTEAD}")
    tokens = torch.arange(length).expand(batch, length) % model.config.get_text_config().vocab_size
    given = {"input_ids": tokens, "use_cache": False}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = tokens
    if training:
        given["labels"] = tokens
    return {name: value for name, value in given.items() if name in known}


def _loss(outputs: Any) -> Any:
    """A number that a training might make less."""
    first = outputs[0]
    return first if first.ndim == 0 else first.float().square().mean()
