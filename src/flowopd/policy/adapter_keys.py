"""The keys of adapter files, without what wrappers around the trained network left in them.

DistributedDataParallel puts `module.` before every name of the network that it wraps, and
torch.compile puts `_orig_mod.` before the names of what it compiled: all of it, or some blocks.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flowopd.errors import FlowOPDError

PEFT_PREFIX = "base_model.model."
DISTRIBUTED, COMPILED = "module.", "_orig_mod."


def unwrapped(keys: Iterable[str], prefix: str, file: Path) -> dict[str, str]:
    """Every key, and what it is without wrappers; `prefix` is the format's own, and is kept.

    A wrapper may be within the prefix or around it: `module.base_model.model.…` is seen, too.
    """
    names = {key: key.replace(COMPILED, "") for key in keys}
    for before, after in ((DISTRIBUTED, ""), (prefix + DISTRIBUTED, prefix)):
        if names and all(name.startswith(before) for name in names.values()):
            names = {key: after + name.removeprefix(before) for key, name in names.items()}
    require_distinct(names, file)
    return names


def require_distinct(names: Mapping[str, str], file: Path) -> None:
    """Refuse two keys of the file that are two spellings of one name."""
    first: dict[str, str] = {}
    for key, name in names.items():
        if name in first:
            raise FlowOPDError(
                f"{file} holds {name} twice, as {first[name]} and as {key}. Keep the one that the "
                "adapter was trained to."
            )
        first[name] = key


def require_one_prefix(keys: Iterable[str], file: Path) -> None:
    """PEFT's prefix on every key or on none: with both, two keys could mean one tensor."""
    keys = list(keys)
    prefixed = [key for key in keys if key.startswith(PEFT_PREFIX)]
    plain = [key for key in keys if not key.startswith(PEFT_PREFIX)]
    if not prefixed or not plain:
        return
    twins = [key for key in plain if PEFT_PREFIX + key in prefixed]
    one, other = (PEFT_PREFIX + twins[0], twins[0]) if twins else (prefixed[0], plain[0])
    raise FlowOPDError(
        f"{file} has keys with PEFT's prefix and keys without it ({one} and {other}); all should "
        f"begin with {PEFT_PREFIX}, or none."
    )
