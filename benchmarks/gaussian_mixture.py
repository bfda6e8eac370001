"""How far each sampler lands from a Gaussian mixture whose exact velocity it is given.

    python benchmarks/gaussian_mixture.py            # about half a minute on one core

prints the table of docs/math.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from flow.mixture import MIXTURE, Errors, sample_with
from flowopd.flow import Sampler

SAMPLERS = {
    "ODE": Sampler("ode"),
    "Flow-SDE, a = 0.7": Sampler("flow_sde", noise_level=0.7),
    "CPS, a = 0.7": Sampler("cps", noise_level=0.7),
}


def row(name: str, steps: object, errors: Errors) -> str:
    numbers = f"{errors.weight:.4f} | {errors.mean:.4f} | {errors.covariance:.3f}"
    return f"| {name} | {steps} | {numbers} | {errors.spread:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 40, 200])
    arguments = parser.parse_args()
    print("| sampler | steps | weight error | mean error | covariance error | spread |")
    print("|---|---:|---:|---:|---:|---:|")
    exact = MIXTURE.sample(arguments.samples)
    print(row("exact samples", "", MIXTURE.errors(exact)))
    for name, sampler in SAMPLERS.items():
        for steps in arguments.steps:
            samples = sample_with(sampler, steps, arguments.samples)
            print(row(name, steps, MIXTURE.errors(samples)), flush=True)


if __name__ == "__main__":
    main()
