"""The folder of a made-up study that has everything a report can show."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

UPDATES, PROBE_EVERY, IMAGES_AN_UPDATE = 100, 10, 96
AVERAGE = {"compose": 1.0, "text": 1.0, "quality": 5.0, "preference": 1.0}
SEEDS = {"grpo-mix": (0, 1, 2), "opd-merge": (0, 1, 2)}
PROMPTS = ("a red circle", "two green squares", 'the word "HAT"', "a blue cross left of a circle")
PANEL_SEEDS = (0, 1)
HALVES = {"compose": 0.04, "text": 0.037, "quality": 0.06, "preference": 0.013, "diversity": 0.02}

#                        compose text  quality preference diversity
ROWS: dict[str, tuple[float, float, float, float, float]] = {
    "base": (0.490, 0.678, 4.190, 0.290, 0.219),
    "teacher-compose": (0.871, 0.640, 4.102, 0.281, 0.190),
    "teacher-text": (0.472, 0.934, 4.155, 0.286, 0.201),
    "teacher-preference": (0.331, 0.601, 4.210, 0.655, 0.102),
    "teacher-quality": (0.502, 0.690, 4.655, 0.330, 0.199),
    "grpo-mix": (0.652, 0.801, 4.330, 0.402, 0.160),
    "sft+grpo-mix": (0.741, 0.843, 4.291, 0.395, 0.171),
    "merge+grpo-mix": (0.762, 0.851, 4.182, 0.398, 0.169),
    "opd-sft": (0.851, 0.910, 4.402, 0.320, 0.205),
    "opd-merge": (0.868, 0.934, 4.512, 0.325, 0.208),
    "opd-merge-no-mar": (0.860, 0.928, 4.240, 0.310, 0.202),
    "nft": (0.702, 0.822, 4.260, 0.361, 0.150),
}
MERGES = ("merged",)
NEEDS = {
    "opd-merge": ["merged", "teacher-compose", "teacher-text", "teacher-quality"],
    "opd-merge-no-mar": ["merged", "teacher-compose", "teacher-text"],
    "merge+grpo-mix": ["merged"],
    "merged": ["teacher-compose", "teacher-text"],
}
FIGURES: list[dict[str, Any]] = [
    {
        "kind": "bars",
        "title": "The seesaw, and its cure",
        "caption": "Every teacher pays for its own skill with others; the student does not.",
        "rows": list(ROWS),
        "metrics": ["compose", "text", "quality", "preference"],
    },
    {
        "kind": "curves",
        "title": "What does it cost?",
        "caption": "Probes against the images that a stage has generated.",
        "rows": ["opd-merge", "grpo-mix", "teacher-compose", "teacher-text"],
        "metrics": ["compose", "text", "average"],
        "goals": {
            "compose": {"row": "teacher-compose", "share": 0.95},
            "text": {"row": "teacher-text", "share": 0.95},
        },
    },
    {
        "kind": "points",
        "title": "Steps trained on",
        "caption": "The average against K of T steps.",
        "metrics": ["compose", "text"],
        "x_label": "K",
        "series": {
            "uniform": {1: "opd-sft", 4: "opd-merge", 9: "opd-merge-no-mar"},
            "stratified": {1: "merge+grpo-mix", 4: "opd-sft", 9: "opd-merge"},
            "beta(5,2)": {1: "nft", 4: "sft+grpo-mix", 9: "opd-sft"},
        },
    },
    {
        "kind": "interference",
        "title": "Gradient interference",
        "caption": "Cosine between the gradients of two tasks.",
        "rows": ["grpo-mix", "opd-merge"],
    },
    {
        "kind": "log",
        "title": "Divergences",
        "caption": "As logged in training.",
        "rows": ["opd-merge", "opd-merge-no-mar", "opd-sft"],
        "keys": ["task/compose/divergence", "task/text/divergence", "anchor/divergence"],
    },
]


def stages_of(row: str) -> list[str]:
    return [row, *(f"{row}.s{seed}" for seed in SEEDS.get(row, (0,))[1:])]


def write_study(folder: Path, *, figures: Sequence[dict[str, Any]] = FIGURES) -> Path:
    """A finished study of twelve rows, two of them with three seeds."""
    trained = [row for row in ROWS if row != "base"]
    stages: dict[str, Any] = {name: {"train": {"updates": UPDATES}} for name in trained}
    for name, seeds in SEEDS.items():
        stages[name]["seeds"] = list(seeds)
    stages["merged"] = {"merge": {"adapters": {"teacher-compose": 0.5, "teacher-text": 0.5}}}
    study = {
        "name": "world-short",
        "model": "world",
        "stages": stages,
        "evaluation": {"protocol": "eval.yaml", "rows": list(ROWS), "average": AVERAGE},
        "report": {
            "title": "Multi-teacher on-policy distillation in the built-in world",
            "intro": "Teachers for composition, text, preference and quality; students that learn "
            "from all of them on their own trajectories; mixtures of rewards to compare with.",
            "best_of": [row for row in ROWS if not row.startswith("teacher")],
            "figures": list(figures),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    write_json(folder / "results.json", results())
    for row in trained:
        for number, stage in enumerate(stages_of(row)):
            write_training(folder / "stages" / stage, row, number)
    write_stage(folder / "stages/merged", "merge", NEEDS["merged"])
    for row in ROWS:
        for stage in stages_of(row):
            write_evaluation(folder / f"stages/eval.{stage}", stage)
        write_panel(folder / f"stages/eval.{row}", row)
    return folder


def results() -> dict[str, Any]:
    rows = []
    for row, values in ROWS.items():
        seeds = SEEDS.get(row, ())
        means = dict(zip(HALVES, values, strict=True))
        n = 512 * max(1, len(seeds))
        metrics = {name: interval(mean, HALVES[name], n) for name, mean in means.items()}
        metrics["compose_soft"] = interval(means["compose"] + 0.1, 0.03)
        for number, tag in enumerate(("counting", "colors", "position")):
            metrics[f"compose/{tag}"] = interval(means["compose"] + 0.05 * (number - 1), 0.1)
        metrics["average"] = interval(average(means), 0.012)
        images = 0 if row == "base" else UPDATES * IMAGES_AN_UPDATE
        rows.append(
            {
                "name": row,
                "metrics": metrics,
                "images": images,
                "images_total": images + 20000 * len(NEEDS.get(row, [])),
                "seconds": images / 16,
                "seconds_total": images / 16 + 1250 * len(NEEDS.get(row, [])),
                "seeds": [
                    {
                        "stage": stage,
                        "metrics": {
                            name: round(mean + 0.01 * number - 0.01, 4)
                            for name, mean in (means | {"average": average(means)}).items()
                        },
                    }
                    for number, stage in enumerate(stages_of(row))
                ],
            }
        )
    protocol = {
        "name": "world-v1",
        "hash": "5f" * 32,
        "prompts": [{"path": "compose.jsonl", "task": "", "count": 512, "images_per_prompt": 1}],
        "seed": 0,
        "steps": 10,
        "guidance": 1.0,
        "sampler": "ode",
    }
    return {"study": "world-short", "protocol": protocol, "average": AVERAGE, "rows": rows}


def average(means: dict[str, float]) -> float:
    return sum(means[name] / divisor for name, divisor in AVERAGE.items()) / len(AVERAGE)


def interval(mean: float, half: float, n: int = 512) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "missing": 0}


def write_stage(folder: Path, kind: str, needs: Sequence[str], **config: Any) -> None:
    identity = folder.name.encode().hex().ljust(64, "0")[:64]
    write_json(
        folder / "stage.json",
        {
            "name": folder.name,
            "kind": kind,
            "identity": identity,
            "config": {"seed": 0, **config},
            "needs": list(needs),
        },
    )
    outputs = {} if kind == "evaluate" else {"adapter/adapter_model.safetensors": "ab" * 32}
    done = {"identity": identity, "images": 9600, "forwards": 96000, "seconds": 600.0}
    write_json(folder / "done.json", {**done, "outputs": outputs})


def write_evaluation(folder: Path, stage: str) -> None:
    write_stage(folder, "evaluate", [stage] if stage != "base" else [])
    row = {
        "name": stage,
        "model": {"name": "world", "sha256": "0123456789abcdef" * 4},
        "device": "cpu",
        "versions": {"python": "3.11.7", "flowopd": "0.1.0", "torch": "2.13.0"},
    }
    if stage != "base":
        row["adapter"] = {"path": "adapter", "sha256": "cd" * 32}
    write_json(folder / "results.json", {"protocol": {}, "rows": [row]})


def write_training(folder: Path, row: str, number: int) -> None:
    write_stage(
        folder,
        "train",
        NEEDS.get(row, []),
        updates=UPDATES,
        algorithm={"name": "opd" if "opd" in row else "grpo", "weighting": "kl"},
        optimizer={"lr": 3e-4, "betas": [0.9, 0.999]},
    )
    rng = np.random.default_rng(sum(row.encode()) + number)
    start = dict(zip(HALVES, ROWS["base"], strict=True))
    end = dict(zip(HALVES, ROWS[row], strict=True))
    speed = 0.25 if "opd" in row else 0.6
    probes = [
        probe(update, start, end, speed, rng) for update in range(0, UPDATES + 1, PROBE_EVERY)
    ]
    write_lines(folder / "probe.jsonl", probes)
    log = [log_line(update, row, speed, rng) for update in range(1, UPDATES + 1)]
    write_lines(folder / "log.jsonl", log)
    for update in (0, 50, 100):
        path = folder / f"panels/{update:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet = Image.new("RGB", (96, 64), "white")
        for place in range(6):
            tile = picture(PROMPTS[place % 4], place, 0.1 * (1 - update / 100))
            sheet.paste(tile, (place % 3 * 32, place // 3 * 32))
        sheet.save(path)


def progress(update: int) -> dict[str, Any]:
    images = update * IMAGES_AN_UPDATE
    return {"update": update, "images": images, "forwards": images * 10, "seconds": images / 16}


def probe(
    update: int,
    start: dict[str, float],
    end: dict[str, float],
    speed: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    share = 1 - math.exp(-update / UPDATES / speed * 2)
    noise = {name: half * 0.35 * rng.normal() for name, half in HALVES.items()}
    scores = {name: start[name] + share * (end[name] - start[name]) + noise[name] for name in start}
    detectors = {
        "edges": 0.11 - 0.03 * share * (end["preference"] > 0.5) + 0.002 * rng.normal(),
        "entropy": 0.31 - 0.1 * share * (end["diversity"] < 0.16) + 0.004 * rng.normal(),
        "grid": 6.0 + 0.3 * rng.normal(),
        "dark": 0.05 + 0.03 * share + 0.002 * rng.normal(),
    }
    return {**progress(update), "scores": scores, "detectors": detectors}


def log_line(update: int, row: str, speed: float, rng: np.random.Generator) -> dict[str, Any]:
    decay = math.exp(-update / UPDATES / speed * 3)
    line = {**progress(update), "loss": decay, "lr": 3e-4, "grad_norm": 0.5 + 0.1 * rng.random()}
    if "opd" in row:
        line["task/compose/divergence"] = 2.0 * decay * math.exp(0.3 * rng.normal()) + 0.02
        line["task/text/divergence"] = 1.2 * decay * math.exp(0.3 * rng.normal()) + 0.03
    if "opd" in row and "no-mar" not in row:
        line["anchor/divergence"] = 0.4 + 0.3 * (1 - decay) + 0.05 * rng.normal()
    if update % 5 == 0 and row in SEEDS:
        centre = -0.25 if row == "grpo-mix" else 0.1
        for pair in ("compose|text", "compose|quality", "text|quality"):
            line[f"interference/{pair}"] = centre + 0.15 * rng.normal()
    return line


def write_panel(folder: Path, row: str) -> None:
    entries = []
    for prompt in PROMPTS:
        for seed in PANEL_SEEDS:
            path = folder / f"panel/{len(entries):02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = 0.15 if row == "base" else 0.05
            picture(prompt, seed + sum(row.encode()), noise).save(path)
            entries.append({"prompt": prompt, "seed": seed, "file": f"panel/{path.name}"})
    write_json(folder / "panel.json", entries)


def picture(prompt: str, seed: int, noise: float) -> Image.Image:
    """32 by 32 pixels with something on them."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    x, y = (int(value) for value in rng.integers(3, 12, size=2))
    color = next((name for name in ("red", "green", "blue") if name in prompt), "black")
    shape = draw.ellipse if "circle" in prompt else draw.rectangle
    shape((x, y, x + 11, y + 11), fill=color)
    if "two" in prompt or "left" in prompt:
        shape((x + 13, y + 2, x + 19, y + 10), fill=color)
    pixels = np.asarray(image) + 255 * noise * rng.normal(size=(32, 32, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
