"""Where the files of a scorer's model are: in a folder here, or fetched from the hub."""

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from flowopd.errors import FlowOPDError
from flowopd.hub import hub_errors, hub_name, not_fetched
from flowopd.rewards.scorer import About
from flowopd.rewards.settings import ScorerSettings

CONFIG = "config.json"
SAFE_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer*.json", "vocab.json", "vocab.txt", "merges.txt", "*_tokens*.json")
PICTURES = ("preprocessor_config.json",)


def about(settings: ScorerSettings, models: Sequence[str], licence: str, cost: str) -> About:
    """What a scorer with these settings says of itself; ``models``: as ``{tokenizer} (tokenizer)``.

    The licence is that of the published models, and says nothing of others.
    """
    given, published = (_called(models, one) for one in (settings, type(settings)()))
    return About(given, licence if given == published else "that of the models", cost)


def network_folder(scorer: str, key: str, place: str) -> Path:
    """The folder of a transformers network: its configuration and its weights.

    Pickled weights are fetched only where there are no others.
    """
    folder = _folder(scorer, key, place, (CONFIG, *SAFE_WEIGHTS))
    if not _holds(folder, SAFE_WEIGHTS):
        folder = _folder(scorer, key, place, (CONFIG, *PICKLED_WEIGHTS))
    _check(scorer, key, place, folder, (CONFIG,))
    _check(scorer, key, place, folder, (*SAFE_WEIGHTS, *PICKLED_WEIGHTS))
    return folder


def tokenizer_folder(scorer: str, key: str, place: str) -> Path:
    """The folder of a tokenizer."""
    folder = _folder(scorer, key, place, (CONFIG, *TOKENIZER))
    _check(scorer, key, place, folder, TOKENIZER)
    return folder


def pictures_folder(scorer: str, key: str, place: str) -> Path:
    """The folder of what says how pictures are prepared."""
    folder = _folder(scorer, key, place, PICTURES)
    _check(scorer, key, place, folder, PICTURES)
    return folder


def weights_file(scorer: str, key: str, place: str, names: Sequence[str]) -> Path:
    """A file of weights: the place itself, or the first of these names in a folder or the hub."""
    if Path(place).is_file():
        return Path(place)
    folder = _folder(scorer, key, place, tuple(names))
    _check(scorer, key, place, folder, names)
    return next(folder / name for name in names if (folder / name).is_file())


def _called(models: Sequence[str], settings: ScorerSettings) -> tuple[str, ...]:
    """The models as they may be shown: a file or folder by its name, wherever it is here."""
    names = {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in settings
    }
    return tuple(one.format_map(names) for one in models)


def _folder(scorer: str, key: str, place: str, patterns: tuple[str, ...]) -> Path:
    """The place, if it is here; else what the patterns name of it, from the hub."""
    if Path(place).exists():
        return Path(place)
    name = hub_name(place)
    if name is None:
        raise FlowOPDError(
            f"The scorer {scorer!r} has {place!r} as its {key}, which is no file or folder here "
            "and no hub id (org/name)."
        )
    try:
        return _fetched(name.repository, name.revision, patterns)
    except hub_errors() as error:
        raise FlowOPDError(
            f"The scorer {scorer!r} has no {key}: "
            f"{not_fetched(name.repository, name.revision, error)} "
            f"Fetch it where there is a network (hf download {name.repository}), or name a folder "
            f"that has it: {{name: {scorer}, {key}: FOLDER}}."
        ) from error


@cache
def _fetched(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _check(scorer: str, key: str, place: str, folder: Path, patterns: Sequence[str]) -> None:
    if _holds(folder, patterns):
        return
    cut = (
        f" (or it was fetched in part; fetch it again: hf download {place.partition('@')[0]})"
        if not Path(place).exists()
        else ""
    )
    raise FlowOPDError(
        f"The scorer {scorer!r} has {place} as its {key}, in which there is none of "
        f"{', '.join(patterns)}{cut}."
    )
