"""What a stage can be: a training, a merge, an evaluation; how each is checked and run."""

from collections.abc import Mapping

from flowopd.study.kinds.evaluate import EvaluateKind
from flowopd.study.kinds.kind import Kind, Made, Work
from flowopd.study.kinds.merge import MergeKind
from flowopd.study.kinds.train import TrainKind

TRAIN, MERGE, EVALUATE = "train", "merge", "evaluate"
KINDS: Mapping[str, Kind] = {TRAIN: TrainKind(), MERGE: MergeKind(), EVALUATE: EvaluateKind()}

__all__ = ["EVALUATE", "KINDS", "MERGE", "TRAIN", "Kind", "Made", "Work"]
