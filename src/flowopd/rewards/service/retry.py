"""How long to wait before one tries again."""

import random
from collections.abc import Mapping

FIRST, LONGEST = 0.25, 15.0


def backoff(failures: int) -> float:
    """Seconds: twice as long each time, and never quite the same for two who wait."""
    return min(LONGEST, FIRST * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str], failures: int) -> float:
    """What a server asked for, if it did so in seconds and within reason, and a little more."""
    try:
        asked = float(headers.get("retry-after", ""))
    except ValueError:
        return backoff(failures)
    if not 0 <= asked <= 4 * LONGEST:
        return backoff(failures)
    return asked + random.uniform(0.0, FIRST)
