"""One of two processes of tests/training/test_full_student.py, each with a share of the student."""

import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopd.config import build
from flowopd.training import sharding
from flowopd.training.config import TrainConfig
from flowopd.training.ranks import Ranks
from flowopd.training.run import prepare, train
from flowopd.training.trainer import Trainer


def main(orders_file: str) -> None:
    folder = Path(orders_file).parent
    gathered, saving = Gathered(sharding.whole), Trainer._save
    sharding.whole = gathered

    def save(trainer: Trainer) -> None:
        gathered.most = 0
        saving(trainer)
        seen.append(gathered.most)

    Trainer._save = save  # type: ignore[method-assign]
    said: dict[str, Any] = {}
    for name, data in json.loads(Path(orders_file).read_text()).items():
        seen: list[int] = []
        train(prepare(build(TrainConfig, data)), folder / name)
        said[name] = seen
    ranks = Ranks()
    (folder / f"said-{ranks.index}.json").write_text(json.dumps(said))
    ranks.leave()


class Gathered:
    """Takes the place of `whole`, and knows the most bytes of whole tensors at a time."""

    def __init__(self, whole: Callable[[Tensor], Tensor]) -> None:
        self._whole, self._living, self.most = whole, dict[int, int](), 0

    def __call__(self, tensor: Tensor) -> Tensor:
        found = self._whole(tensor)
        if found is not tensor:
            self._living[id(found)] = found.nbytes
            weakref.finalize(found, self._living.pop, id(found))
            self.most = max(self.most, sum(self._living.values()))
        return found


if __name__ == "__main__":
    main(sys.argv[1])
