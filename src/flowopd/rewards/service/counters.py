"""Counts of what a server did, in the text format that Prometheus reads."""

import threading
import time

from flowopd.rewards.work.memory import resident_memory

PREFIX = "flowopd_reward"
HELP = {
    "requests_total": ("counter", "Requests that were answered, by path and status."),
    "images_total": ("counter", "Pictures that were scored."),
    "missing_total": ("counter", "Values that could not be had."),
    "failures_total": ("counter", "Pictures on which the scorer failed."),
    "score_seconds_sum": ("counter", "Seconds that the scorer worked."),
    "score_seconds_count": ("counter", "Requests that the scorer worked on."),
    "requests_in_flight": ("gauge", "Requests that are read, wait or are scored."),
    "uptime_seconds": ("gauge", "Seconds since the server started."),
    "resident_memory_bytes": ("gauge", "Memory that the process holds."),
}
Labels = tuple[tuple[str, str], ...]


class Counters:
    """Numbers by name and labels; may be used by several threads."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, Labels], float] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        for name in HELP:
            if name != "requests_total":
                self.add(name, 0)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def of(self, name: str, **labels: str) -> float:
        with self._lock:
            return self._numbers.get((name, tuple(sorted(labels.items()))), 0.0)

    def text(self) -> str:
        """All of them, as Prometheus reads them."""
        with self._lock:
            numbers = dict(self._numbers)
        numbers["uptime_seconds", ()] = time.monotonic() - self._started
        numbers["resident_memory_bytes", ()] = resident_memory()
        lines = []
        for name, (kind, words) in HELP.items():
            lines += [f"# HELP {PREFIX}_{name} {words}", f"# TYPE {PREFIX}_{name} {kind}"]
            for (owner, labels), value in sorted(numbers.items()):
                if owner == name:
                    lines.append(f"{PREFIX}_{name}{_braces(labels)} {value!r}")
        return "\n".join(lines) + "\n"


def _braces(labels: Labels) -> str:
    named = ",".join(f'{key}="{value}"' for key, value in labels)
    return f"{{{named}}}" if named else ""
