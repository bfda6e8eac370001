"""One of several processes of tests/training/test_processes.py: does what its orders say."""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


def main(orders_file: str) -> None:
    from fakes import POINTS
    from flowopd import plugins
    from flowopd.training.ranks import Ranks

    def found(group: plugins.Group) -> dict[str, EntryPoint]:
        points = POINTS[group].items()
        return {name: EntryPoint(name, value, f"flowopd.{group}") for name, value in points}

    plugins.found = found  # type: ignore[assignment]
    folder = Path(orders_file).parent
    orders = json.loads(Path(orders_file).read_text())
    ranks = Ranks()
    said: dict[str, Any] = {"count": ranks.count}
    if "gradients" in orders:
        gradients(orders["gradients"], folder, ranks, said)
    if "trainings" in orders:
        trainings(orders["trainings"], folder, said)
    if "cache" in orders:
        cache(folder, ranks, said)
    if "faults" in orders:
        faults(orders["faults"], folder, ranks, said)
    if "failure" in orders:
        failure(orders["failure"], folder, ranks, said)
    (folder / f"said-{ranks.index}.json").write_text(json.dumps(said))
    ranks.leave()


def gradients(configs: dict[str, Any], folder: Path, ranks: Any, said: dict[str, Any]) -> None:
    """The gradient of an update by each algorithm, and who has which samples."""
    from runs import make
    from safetensors.torch import save_file

    from flowopd.config import build
    from flowopd.training.config import TrainConfig

    found = {}
    for name, data in configs.items():
        made = make(folder / name, build(TrainConfig, data))
        batch = made.batch()
        said[name] = [[part.task, len(part)] for part in batch.parts]
        gradient = made.gradient
        ranks.add([gradient])
        found[name] = gradient
    if ranks.main:
        save_file(found, folder / "gradients.safetensors")


def trainings(configs: dict[str, Any], folder: Path, said: dict[str, Any]) -> None:
    """Whole runs, from wherever their folders are."""
    from flowopd.config import build
    from flowopd.training.config import TrainConfig
    from flowopd.training.run import prepare, train

    for name, data in configs.items():
        outcome = train(prepare(build(TrainConfig, data)), folder / name)
        said[name] = [outcome.images, outcome.forwards]


def cache(folder: Path, ranks: Any, said: dict[str, Any]) -> None:
    """Every process encodes its part of the prompts, and reads all of them."""
    from fakes import FakeModel
    from flowopd.policy.protocol import PromptEmbeds
    from flowopd.policy.text_cache import through_cache

    class Counting(FakeModel):
        text_key = "counting"

        def encode_prompts(self, prompts: Any) -> Any:
            encoded.extend(prompts)
            embeds = super().encode_prompts(prompts)
            return PromptEmbeds(embeds.sequence.clone(), embeds.pooled)

    encoded: list[str] = []
    prompts = [f"prompt {n}" for n in range(9)]
    get = through_cache(folder / "cache", Counting(0), [*prompts, *prompts], team=ranks)
    said["encoded"] = list(encoded)
    said["read"] = get(prompts).pooled.tolist()
    said["encoded again"] = encoded[len(said["encoded"]) :]


def faults(data: dict[str, Any], folder: Path, ranks: Any, said: dict[str, Any]) -> None:
    """The last process has a loss that is not finite, in the samples of one task."""
    from flowopd.config import build
    from flowopd.errors import FlowOPDError
    from flowopd.training.config import TrainConfig
    from flowopd.training.methods.opd import OPD
    from flowopd.training.run import prepare, train

    inner = OPD._pathwise

    def broken(self: Any, part: Any, v: Any, target: Any, move: Any) -> Any:
        loss = inner(self, part, v, target, move)
        bad = ranks.index == ranks.count - 1 and part.task == "words"
        return loss * float("nan") if bad else loss

    OPD._pathwise = broken  # type: ignore[method-assign]
    try:
        train(prepare(build(TrainConfig, data)), folder / "faults")
    except FlowOPDError as error:
        said["fault"] = str(error)
    finally:
        OPD._pathwise = inner  # type: ignore[method-assign]


def failure(data: dict[str, Any], folder: Path, ranks: Any, said: dict[str, Any]) -> None:
    """The last process cannot decode its pictures."""
    from fakes import FakeModel
    from flowopd.config import build
    from flowopd.errors import FlowOPDError
    from flowopd.training.config import TrainConfig
    from flowopd.training.run import prepare, train

    if ranks.index == ranks.count - 1:

        def fail(*_: Any) -> Any:
            raise FlowOPDError("The decoder is broken.")

        FakeModel.decode = fail  # type: ignore[method-assign]
    try:
        train(prepare(build(TrainConfig, data)), folder / "failure")
    except FlowOPDError as error:
        said["failure"] = str(error)


if __name__ == "__main__":
    main(sys.argv[1])
