"""Configuration: a YAML file, ``key.sub=value`` overrides, and errors that are sentences."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from flowopd.errors import FlowOPDError
from flowopd.hub import hub_name

Keys = tuple[str | int, ...]


class Config(BaseModel):
    """The base of every configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    shorthands: ClassVar[Mapping[str, Callable[[str], dict[str, Any]]]] = {}
    """Keys whose value may be a short name, and the keys and values that a name stands for. A key
    may be dotted, with ``*`` for any key of a mapping or entry of a list."""

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = set(_parts(annotation))
        if kinds & {int, float} and bool not in kinds and isinstance(value, bool):
            raise ValueError("it should be a number")
        return value


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None else Path(folder) / path


FilePath = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path that is relative to the configuration file in which it stands."""


def _adapter_place(path: Path, info: ValidationInfo) -> Path:
    beside = _beside_the_file(path, info)
    if beside.exists() or hub_name(path) is None:
        return beside
    return path.absolute() if path.exists() else path


AdapterPath = Annotated[Path, AfterValidator(_adapter_place)]
"""As a `FilePath`; where there is none such, from the working folder; where there is none either,
an adapter on the hub (``org/name``, ``org/name@revision``), which stays a relative path."""

Seed = Annotated[int, Field(ge=0, le=2**53)]
"""Far from where the seeds that are made from it would no longer be torch's."""

C = TypeVar("C", bound=Config)


class Override(NamedTuple):
    keys: Keys
    value: Any


def load_config(
    cls: type[C],
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, Any] | None = None,
) -> C:
    """The configuration of a YAML file, changed by options and then by overrides.

    ``options`` are dotted keys with values that are already Python's (the command line's options).
    An override is ``key.sub=value`` with a YAML value. Fields that hold paths may ask for the
    file's folder as ``info.context["folder"]``.
    """
    data = read_yaml(path) if path is not None else {}
    changes = [Override(split_key(key), value) for key, value in (options or {}).items()]
    changes += [parse_override(text) for text in overrides]
    _expand(cls, data)
    for change in changes:
        _assign(data, change)
        _expand(cls, data)
    folder = Path(path).absolute().parent if path is not None else Path.cwd()
    where = str(path) if path is not None else ""
    return build(cls, data, where=where, context={"folder": folder})


def build(
    cls: type[C],
    data: Any,
    *,
    prefix: str = "",
    where: str = "",
    context: dict[str, Any] | None = None,
) -> C:
    """``cls`` from plain data; what is wrong with it becomes one FlowOPDError."""
    place = f"{where}: " if where else ""
    try:
        return cls.model_validate(data, context=context)
    except ValidationError as error:
        sentences = [_sentence(cls, detail, prefix) for detail in error.errors()]
        raise FlowOPDError(place + "\n".join(sentences)) from None
    except FlowOPDError as error:
        raise FlowOPDError(f"{place}{error}") from None


def dump_yaml(config: Config) -> str:
    """The configuration as YAML that ``load_config`` reads back."""
    data = config.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FlowOPDError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FlowOPDError(f"The configuration file {path} cannot be read: {error}.") from None
    data = _parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise FlowOPDError(
            f"{path} holds {_show(data)}; a configuration file holds keys and values (key: value)."
        )
    return data


def parse_override(text: str) -> Override:
    """``a.b=value`` as a path of keys and a YAML value."""
    key, equals, value = text.partition("=")
    if not equals:
        raise FlowOPDError(f"The override {text!r} has no '='; write key=value or key.sub=value.")
    return Override(split_key(key), _parse_yaml(value, f"the override {_show(text)}"))


def split_key(key: str) -> Keys:
    """``prompts.0.path`` as ("prompts", 0, "path")."""
    parts = key.strip().split(".")
    if not all(parts):
        raise FlowOPDError(f"The key {key!r} has an empty part; write key=value or key.sub=value.")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


MERGE = "tag:yaml.org,2002:merge"
_WRONG_TAG = (TypeError, AttributeError, LookupError)
"""What PyYAML lets through where a value is not of its tag (!!timestamp x)."""


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, and not the last one's silent victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise FlowOPDError(f"The key {key!r} is given twice (line {line}); keep one.")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise FlowOPDError(f"{where} is not valid YAML: it is nested too deeply.") from None
    except _WRONG_TAG:
        raise FlowOPDError(f"{where} is not valid YAML: a value is not of its !!tag.") from None
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # 2024-13-45
        reason = " ".join(str(error).split())
        raise FlowOPDError(f"{where} is not valid YAML: {reason}.") from None
    except FlowOPDError as error:
        raise FlowOPDError(f"{where}: {error}") from None


def _expand(cls: type[Config], data: dict[str, Any]) -> None:
    """Replace short names, so that overrides can change single keys of what they stand for."""
    for key, keys_of in cls.shorthands.items():
        *path, last = key.split(".")
        for holder in _at(data, path):
            for place in _places(holder, last):
                if isinstance(holder[place], str):
                    holder[place] = keys_of(holder[place])


def _at(data: Any, path: Sequence[str]) -> Iterator[Any]:
    """What stands at a path of keys."""
    if not path:
        yield data
        return
    for place in _places(data, path[0]):
        yield from _at(data[place], path[1:])


def _places(holder: Any, key: str) -> list[Any]:
    """Where a key (`*`: each) is in a mapping or a list."""
    if isinstance(holder, list):
        return list(range(len(holder))) if key == "*" else []
    if not isinstance(holder, dict):
        return []
    return [one for one in holder if key in (one, "*")]


def _assign(data: dict[str, Any], change: Override) -> None:
    """Set one nested value, making the mappings on the way."""
    node: Any = data
    for depth, key in enumerate(change.keys):
        path = _dotted(change.keys[: depth + 1])
        last = depth == len(change.keys) - 1
        if isinstance(node, list):
            if not isinstance(key, int) or key >= len(node):
                raise FlowOPDError(f"The key {path!r} does not exist: {len(node)} entries there.")
        elif isinstance(node, dict):
            key = key if key in node else str(key)
        else:
            parent = _dotted(change.keys[:depth])
            raise FlowOPDError(
                f"The key {path!r} cannot be set: {parent!r} is {_show(node)}, which has no keys."
            )
        if last:
            node[key] = change.value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


def _sentence(cls: type[BaseModel], detail: ErrorDetails, prefix: str) -> str:
    """One pydantic error in words: the key, what was given, what would be right."""
    keys = tuple(detail["loc"])
    name = _dotted((prefix, *keys) if prefix else keys)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(cls, keys, name, prefix)
    if detail["type"] == "missing":
        return f"The key {name!r} is missing; it has to be given."
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "it should", 1)
    if detail["type"] == "model_type":
        message = "it should be keys and values"
    if not name:
        return f"{message.replace('it should', 'The configuration should', 1)}."
    return f"The key {name!r} is {_show(detail['input'])}; {message}."


def _unknown_key(cls: type[BaseModel], keys: Keys, name: str, prefix: str) -> str:
    parent = keys[:-1]
    valid = sorted({field for model in _models_at(cls, parent) for field in model.model_fields})
    inside = _dotted((prefix, *parent) if prefix else parent)
    close = [
        _dotted((inside, key)) if inside else key
        for key in get_close_matches(str(keys[-1]), valid, n=1)
    ]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    place = f" under {inside!r}" if inside else ""
    listed = f" The keys{place} are: {', '.join(valid)}." if valid else ""
    return f"Unknown key {name!r}.{hint}{listed}"


def _models_at(cls: type[BaseModel], keys: Keys) -> list[type[BaseModel]]:
    """The configuration classes that may stand at a path of keys."""
    found: list[type[BaseModel]] = [cls]
    for key in keys:
        if isinstance(key, int):
            continue
        inner = [
            model
            for candidate in found
            if key in candidate.model_fields
            for model in _models_in(candidate.model_fields[key].annotation)
        ]
        found = inner or found
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part


def _dotted(keys: Sequence[str | int]) -> str:
    return ".".join(str(key) for key in keys)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
