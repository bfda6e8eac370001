"""How adapters are merged."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from flowopd.config import Config, Seed

Method = Literal["exact", "svd", "ties", "dare", "factors"]
DENSITY = 0.5

# The options of each method. What a method does not read is refused, not ignored.
OPTIONS: dict[str, tuple[str, ...]] = {
    "exact": (),
    "svd": ("rank",),
    "ties": ("rank", "density"),
    "dare": ("rank", "density", "seed"),
    "factors": (),
}


class MergeConfig(Config):
    """A method and its options; `docs/merging.md` says what each method computes."""

    method: Method = "svd"
    rank: int | None = Field(None, ge=1)
    """Of the result, at most. None: the largest rank among the adapters."""
    density: float | None = Field(None, gt=0, le=1)
    """The share of entries that ties and dare keep. None: 0.5."""
    seed: Seed = 0
    """Of the draw of dare."""
    any_sum: bool = False
    """Allow weights that do not sum to 1 (task arithmetic)."""

    @field_validator("rank", "density", "seed")
    @classmethod
    def _method_reads_it(cls, value: Any, info: ValidationInfo) -> Any:
        method, name = info.data.get("method"), info.field_name or ""
        if method is None:
            return value
        if name in OPTIONS[method]:
            return DENSITY if name == "density" and value is None else value
        if value is not None and value != cls.model_fields[name].default:
            readers = [other for other, options in OPTIONS.items() if name in options]
            raise ValueError(
                f"it goes with {' and '.join(readers)}, and the method is {method}: leave it out"
            )
        return value

    def options(self) -> dict[str, Any]:
        """The method's name and the options that it reads."""
        return {"method": self.method} | {
            name: getattr(self, name) for name in OPTIONS[self.method]
        }
