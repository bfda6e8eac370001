"""Which model a configuration means: a family and its keys, or a short name for them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationInfo

from flowopd import plugins
from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.policy.protocol import ModelConfig, VelocityModel

PIPELINE_FAMILY = "sd3"
"""The family that opens diffusers pipelines: what a folder or a hub id alone means."""


def model_keys(name: str) -> dict[str, Any]:
    """The keys that a short name stands for: a family's name, a pipeline's folder or hub id."""
    families = list(plugins.found("models"))
    if name in families:
        return {"family": name}
    if "/" in name or "\\" in name or Path(name).exists():
        return {"family": PIPELINE_FAMILY, "path": name}
    close = get_close_matches(name, families, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise FlowOPDError(
        f"There is no model {name!r}.{hint} Give a family ({', '.join(families)}), the folder of a "
        "pipeline, or a hub id (owner/name)."
    )


def resolve_model(value: Any, info: ValidationInfo) -> Any:
    """The family's own configuration, checked key by key."""
    if isinstance(value, str):
        value = model_keys(value)
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("family"), str):
        families = ", ".join(plugins.found("models"))
        raise FlowOPDError(
            f"The key 'model.family' is missing; it names what kind of model it is ({families})."
        )
    family = plugins.load("models", value["family"])
    return build(family, value, prefix="model", context=info.context)


@contextmanager
def opened(config: ModelConfig) -> Iterator[VelocityModel]:
    """The model with its weights, for the time of a command.

    On a terminal the libraries' bars show while it is opened, for a download can be long. After
    that, and off a terminal, they are left out: they would draw over ours.
    """
    if not sys.stderr.isatty():
        with _library_bars_off():
            yield config.open()
        return
    print("opening the model", file=sys.stderr, flush=True)
    model = config.open()
    with _library_bars_off():
        yield model


@contextmanager
def _library_bars_off() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


ModelField = Annotated[SerializeAsAny[ModelConfig], BeforeValidator(resolve_model)]
