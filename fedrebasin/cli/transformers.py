"""Models of transformers from the configuration in a folder: no weights are loaded, no code of the folder is run."""

import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedrebasin.errors import RebasinError, one_line
from fedrebasin.files import config_of

#: Models with more parameters are traced on the meta device, and not run with random ones to check that.
LARGE = 200_000_000
_LAYERS = re.compile(r"(?:^|_)(?:n_)?(?:layers?|blocks?|depths?)(?:$|_)")
_MOST_LAYERS = 10_000
_PLACES = 16


def model_of(folder: Path, run: bool) -> nn.Module:
    """The model that a folder's configuration names, in evaluation mode.

    Args:
        folder: with a ``config.json``.
        run: whether the model is to be run, however large it is; else large ones lie on the meta device.

    Raises:
        RebasinError: if there is no configuration, or transformers does not know the model.
    """
    _demand_modest(folder, config_of(folder))
    name = f"model transformers:{folder}"
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise RebasinError(f"{name}: {one_line(error)}: install transformers") from None
    importlib.import_module("transformers.utils.logging").set_verbosity_error()
    try:
        config = library.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        architecture = next(iter(getattr(config, "architectures", None) or ()), "")
        make = getattr(library, architecture, None) if architecture.isidentifier() else None
        if make is None:
            raise RebasinError(
                f"{name}: transformers has no {architecture or 'architecture in the configuration'}: "
                "give --model package.module:callable"
            )
        with torch.device("meta"):
            model = make(config)
        if run or sum(tensor.numel() for tensor in model.parameters()) <= LARGE:
            with torch.random.fork_rng(devices=[]):
                model = make(config)
    except RebasinError:
        raise
    except Exception as error:  # whatever a stranger's configuration makes the library raise
        raise RebasinError(f"{name}: {one_line(error)}") from None
    return cast(nn.Module, model.eval())


def example_of(model: nn.Module) -> Any:
    """Inputs that a model of transformers takes, from its configuration: two examples.

    Raises:
        RebasinError: if it does not say what it takes.
    """
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    found: dict[str, Tensor] = {}
    if main == "input_ids" or hasattr(config, "text_config"):
        found["input_ids"] = _tokens(config)
    if main == "pixel_values" or (main == "input_ids" and hasattr(config, "vision_config")):
        found["pixel_values"] = _pixels(getattr(config, "vision_config", config))
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = _tokens(config)
    if main not in found:
        raise RebasinError(f"a {type(model).__name__} takes {main}: give its shape, --input {main}:float32:2,...")
    return found


def names_in_files(model: nn.Module) -> dict[str, str]:
    """What the library calls the model's tensors in its files, where that is something else.

    Raises:
        RebasinError: if it packs several of a file into one.
    """
    try:
        convert = importlib.import_module("transformers.core_model_loading").revert_weight_conversion
    except (ImportError, AttributeError):  # before transformers 5 they were called the same
        return {}
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        on_meta = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
        found: Mapping[str, Tensor] = convert(model, dict(on_meta))
    keys = {id(tensor): key for key, tensor in found.items()}
    if packed := [name for name, tensor in on_meta.items() if id(tensor) not in keys]:
        raise RebasinError(
            f"{type(model).__name__}: transformers packs several tensors of its files into {packed[0]}: average them "
            "as they are (--method average), or give --spec of the tensors in the files"
        )
    return {name: key for name, tensor in on_meta.items() if (key := keys[id(tensor)]) != name}


def _tokens(config: Any) -> Tensor:
    text = config.get_text_config()
    size = int(getattr(text, "vocab_size", 0) or 2)
    places = min(_PLACES, int(getattr(text, "max_position_embeddings", 0) or _PLACES))
    return torch.randint(0, size, (2, max(1, places)), generator=torch.Generator().manual_seed(0))


def _pixels(config: Any) -> Tensor:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.zeros(2, int(getattr(config, "num_channels", 3)), int(height), int(width))


def _demand_modest(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that would keep the library at work for ever."""
    if not config:
        raise RebasinError(f"{folder}: there is no config.json that says what model it is")
    for key, value in config.items():
        inner = value.items() if isinstance(value, Mapping) else ((key, value),)
        for name, number in inner:
            if isinstance(number, int | float) and _LAYERS.search(str(name)) and not 0 <= number <= _MOST_LAYERS:
                raise RebasinError(f"{folder}: config.json has {name} {number}")
            if isinstance(number, float) and not math.isfinite(number):
                raise RebasinError(f"{folder}: config.json has {name} {number}")
