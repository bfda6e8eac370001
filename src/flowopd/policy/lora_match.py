"""Holding an adapter's keys and shapes against a model's layers, on any device, meta included."""

from collections.abc import Mapping, Sequence

from torch import nn

from flowopd.errors import FlowOPDError
from flowopd.policy.lora import A_SUFFIX, B_SUFFIX, LoraSettings, module_path


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Path -> (out, in) of every layer that can carry a LoRA. Works on the meta device."""
    return {
        path: (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def match_all_keys(
    shapes: Mapping[str, Sequence[int]],
    settings: LoraSettings,
    layers: Mapping[str, tuple[int, int]],
    where: str,
) -> None:
    """Every key has its place and every place its key, at the right shape; else name the keys."""
    if not shapes:
        raise FlowOPDError(f"{where} holds no LoRA keys; an adapter has {A_SUFFIX} and {B_SUFFIX}.")
    expected = expected_shapes(settings, layers)
    unknown = [key for key in shapes if module_path(key) not in layers]
    unselected = [key for key in shapes if key not in expected and key not in unknown]
    missing = [key for key in expected if key not in shapes]
    wrong = [
        f"{key} is {list(shapes[key])}, not {list(expected[key])}"
        for key in expected
        if key in shapes and tuple(shapes[key]) != expected[key]
    ]
    problems = [
        _named("that the model has no linear layer for", unknown),
        _named("that its own target_modules do not select", unselected),
        _named("missing", missing),
        _named("of the wrong shape", wrong),
    ]
    if any(problems):
        found = "; ".join(problem for problem in problems if problem)
        raise FlowOPDError(
            f"The adapter {where} does not fit this model: {found}. "
            "Use an adapter that was trained on this model, complete and undamaged."
        )


def expected_shapes(
    settings: LoraSettings, layers: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Key -> shape of the tensors that the settings call for in a model of these layers."""
    shapes = {}
    for path in settings.select(layers):
        out_features, in_features = layers[path]
        rank = settings.rank_of(path)
        shapes[path + A_SUFFIX] = (rank, in_features)
        shapes[path + B_SUFFIX] = (out_features, rank)
    return shapes


def _named(what: str, keys: Sequence[str], first: int = 4) -> str:
    if not keys:
        return ""
    more = f", and {len(keys) - first} more" if len(keys) > first else ""
    return f"{len(keys)} key{'s' if len(keys) > 1 else ''} {what} ({', '.join(keys[:first])}{more})"
