"""What a rehearsal found."""

from collections.abc import Mapping
from dataclasses import dataclass

from flowopd.planning.phases import Phase
from flowopd.training.division import Division


@dataclass(frozen=True)
class Rehearsed:
    """What one device holds, in bytes, and how the work is divided."""

    division: Division
    parameters: int
    """How many numbers are trained."""
    student: int
    experts: int
    """Other adapters, with copies of layers that they are folded into."""
    networks: int
    """Whole networks beside the base."""
    hosted: int
    """What of them lies in host memory."""
    away: int
    """What of them is not on the device, at any time."""
    gradients: int
    optimizer: int
    averages: int
    embeddings: int
    """Of the prompts of a batch."""
    peaks: Mapping[Phase, int]
    """Above all of these and the weights."""
