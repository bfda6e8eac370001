"""What `flowopd run --worker STAGE` is, with the fakes of the tests as plug-ins and trainings."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


def main(study: str, folder: str, stage: str, parent: str) -> None:
    from studies import kinds

    from flowopd.study.lifeline import end_with_parent

    end_with_parent(int(parent))
    from fakes import POINTS
    from flowopd import plugins
    from flowopd.errors import FlowOPDError
    from flowopd.study.config import load_study
    from flowopd.study.run import run_worker

    def found(group: plugins.Group) -> dict[str, EntryPoint]:
        points = POINTS[group].items()
        return {name: EntryPoint(name, value, f"flowopd.{group}") for name, value in points}

    plugins.found = found  # type: ignore[assignment]
    try:
        run_worker(load_study(Path(study)), Path(folder), stage, kinds=kinds())
    except FlowOPDError as error:
        sys.exit(f"flowopd: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
