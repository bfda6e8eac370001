"""The table of docs/rewards.md from what the scorers say of themselves; run it to see it."""

from typing import Any

from flowopd import plugins
from flowopd.rewards.scorer import About, MetricInfo

ELSEWHERE = {"remote"}
"""Scorers that are whatever is behind them."""


def lines() -> dict[str, str]:
    """A line for each scorer, without those that are known only once they are set up."""
    names = [name for name in plugins.found("scorers") if name not in ELSEWHERE]
    return {name: line(name, plugins.load_scorer(name)) for name in names}


def line(name: str, scorer: Any) -> str:
    about: About = getattr(scorer, "about", About())
    cells = [
        f"`{name}`",
        "<br>".join(metric(info) for info in scorer.metrics),
        ", ".join(sorted(scorer.tasks)) if scorer.tasks is not None else "all",
        "<br>".join(about.models) or "–",
        about.licence,
        about.cost,
    ]
    return f"| {' | '.join(cells)} |"


def metric(info: MetricInfo) -> str:
    low = "" if info.low is None else f"{info.low:g}"
    high = "" if info.high is None else f"{info.high:g}"
    bounds = f" {low}…{high}" if low or high else ""
    scale = "" if info.scale == 1 else f" (÷ {info.scale:g})"
    return f"`{info.name}`{bounds}{scale}"


if __name__ == "__main__":
    print("\n".join(lines().values()))
