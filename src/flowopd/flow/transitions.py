"""One sampler step as a Gaussian `N(mean, std^2 I)`: Equations (2)-(6) of docs/math.md.

Shapes: x, v, mean [B, ...]; t, t_next, std, gain, sigma, dt all [B], or all 0-d.
Arithmetic is float32 whatever the network's precision; float64 inputs stay float64.
Numbers are checked where they are on the host: to look at those on a device is to wait for it.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flowopd.errors import FlowOPDError

Kind = Literal["ode", "flow_sde", "cps"]
Weighting = Literal["kl", "released", "uniform", "ode"]


@dataclass(frozen=True)
class Transition:
    """A sampler's step from `t` to `t_next`, and all that a loss needs to know about it."""

    mean: Tensor
    std: Tensor
    gain: Tensor
    """`d mean / d v`, a scalar per sample."""
    sigma: Tensor
    """What the `released` weighting divides by: `sigma_t` of (2); CPS: std; ODE: 0."""
    dt: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The next state for standard normal `noise`."""
        _check_same_shape("noise", noise, "the transition's mean", self.mean)
        return self.mean + per_sample(self.std, self.mean) * noise.to(self.mean.dtype)


def transition(
    kind: Kind,
    x: Tensor,
    v: Tensor,
    t: Tensor | float,
    t_next: Tensor | float,
    *,
    noise_level: float = 0.7,
    t_clamp: float | Tensor | None = None,
) -> Transition:
    """The step of sampler `kind` from `t` to `t_next` at state `x` with velocity `v`.

    `t_clamp` is the `t_1` that Flow-SDE needs where t = 1, a number or one for each t; the other
    samplers do not use it.
    """
    check_kind(kind)
    _check_same_shape("v", v, "x", x)
    x, v = at_least_float32(x), at_least_float32(v)
    dtype = torch.promote_types(x.dtype, v.dtype)
    x, v = x.to(dtype), v.to(dtype)
    t, t_next = _times("t", t, x), _times("t_next", t_next, x)
    shape = torch.broadcast_shapes(t.shape, t_next.shape)
    t, t_next = t.expand(shape), t_next.expand(shape)
    if kind == "ode":
        return _ode(x, v, t, t_next)
    _check_stochastic(kind, t, t_next, noise_level)
    if kind == "cps":
        return _cps(x, v, t, t_next, noise_level)
    return _flow_sde(x, v, t, t_next, noise_level, t_clamp)


def _flow_sde(
    x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, a: float, t_clamp: float | Tensor | None
) -> Transition:
    """Equation (2)."""
    dt = t_next - t
    sigma = flow_sde_sigma(t, noise_level=a, t_clamp=t_clamp)
    x_factor = 1 + sigma**2 / (2 * t) * dt
    gain = (1 + sigma**2 * (1 - t) / (2 * t)) * dt
    mean = per_sample(x_factor, x) * x + per_sample(gain, x) * v
    return Transition(mean, std=sigma * (-dt).sqrt(), gain=gain, sigma=sigma, dt=dt)


def flow_sde_sigma(t: Tensor, *, noise_level: float, t_clamp: float | Tensor | None) -> Tensor:
    """`sigma_t = a sqrt(t / (1 - t))` of (2), with `t_clamp` inside the root where t = 1.

    The only place that knows of the singularity; mean, log-density and KL all come through here.
    """
    at_one = t == 1
    if _usable(t_clamp) or bool(at_one.any()):
        t = torch.where(at_one, _clamps(t_clamp, t, at_one), t)
    return noise_level * (t / (1 - t)).sqrt()


def _usable(t_clamp: float | Tensor | None) -> bool:
    """Whether it can be put in place of any t, as far as that shows on the host."""
    if isinstance(t_clamp, Tensor) and on_host(t_clamp):
        return bool(((t_clamp > 0) & (t_clamp < 1)).all())
    return isinstance(t_clamp, Tensor) or (t_clamp is not None and 0 < t_clamp < 1)


def _clamps(t_clamp: float | Tensor | None, t: Tensor, at_one: Tensor) -> Tensor:
    """`t_clamp` for each t; it need not be usable where it is not used."""
    if t_clamp is None:
        raise FlowOPDError(singular_at_one("None"))
    if isinstance(t_clamp, Tensor):
        clamps = t_clamp.to(t.device, t.dtype, non_blocking=True)
    else:
        clamps = torch.full_like(t, t_clamp)
    if clamps.ndim > 0 and clamps.shape != t.shape:
        raise FlowOPDError(
            f"t_clamp has shape {list(clamps.shape)}; it must be a number or one for each t, "
            f"{list(t.shape)}."
        )
    clamps = clamps.expand(t.shape)
    if on_host(clamps) and not bool(((clamps > 0) & (clamps < 1))[at_one].all()):
        raise FlowOPDError(singular_at_one(str(clamps.tolist())))
    return clamps


def singular_at_one(t_clamp: str) -> str:
    """The sentence that refuses Flow-SDE at t = 1 without a level to put in its place."""
    return (
        f"Flow-SDE is singular at t = 1 and t_clamp is {t_clamp}; "
        "pass the schedule's second level, which must lie between 0 and 1 "
        "(a schedule of one step has none: use more steps, or the ODE for that step)."
    )


def _cps(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, a: float) -> Transition:
    """Equation (3), its `sqrt(t'^2 - s^2)` written `t' cos(a pi/2)`: no rounding below 0."""
    std = t_next * math.sin(a * math.pi / 2)
    kept = t_next * math.cos(a * math.pi / 2)
    x0_hat = x - per_sample(t, x) * v
    x1_hat = x + per_sample(1 - t, x) * v
    mean = per_sample(1 - t_next, x) * x0_hat + per_sample(kept, x) * x1_hat
    gain = -t * (1 - t_next) + (1 - t) * kept
    return Transition(mean, std=std, gain=gain, sigma=std, dt=t_next - t)


def _ode(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor) -> Transition:
    """Equation (4)."""
    dt = t_next - t
    zero = torch.zeros_like(dt)
    return Transition(x + per_sample(dt, x) * v, std=zero, gain=dt, sigma=zero, dt=dt)


def mean_log_prob(transition: Transition, x_next: Tensor) -> Tensor:
    """Equation (5): the Gaussian log-density of `x_next`, its mean over dimensions, `[B]`."""
    _check_same_shape("x_next", x_next, "the transition's mean", transition.mean)
    _check_has_density(transition, "log-density")
    std = per_sample(transition.std, transition.mean)
    z = (x_next.to(transition.mean.dtype) - transition.mean) / std
    return (-0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def kl_weight(transition: Transition, weighting: Weighting = "kl") -> Tensor:
    """`w` in `w |v_S - v_T|^2`, shaped like t: Equation (6), or another weighting of (13)."""
    if weighting == "kl":
        _check_has_density(transition, "KL")
        return transition.gain**2 / (2 * transition.std**2)
    if weighting == "released":
        _check_has_density(transition, "KL")
        return transition.gain**2 / (2 * transition.sigma**2)
    if weighting == "uniform":
        return torch.ones_like(transition.gain)
    if weighting == "ode":
        return transition.dt**2 / 2
    raise FlowOPDError(f"weighting {weighting!r} is unknown; it is one of {get_args(Weighting)}.")


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is when it has float64."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def on_host(*tensors: Tensor) -> bool:
    """Whether the numbers can be looked at without waiting for a device."""
    return all(tensor.device.type == "cpu" for tensor in tensors)


def per_sample(scalars: Tensor, like: Tensor) -> Tensor:
    """`[B]` as `[B, 1, ...]`, to broadcast against `like`; 0-d stays 0-d."""
    return scalars if scalars.ndim == 0 else scalars.view(-1, *[1] * (like.ndim - 1))


def check_kind(kind: str) -> None:
    """Refuse the name of a sampler that there is not."""
    if kind not in get_args(Kind):
        raise FlowOPDError(f"sampler kind {kind!r} is unknown; it is one of {get_args(Kind)}.")


def _times(name: str, t: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16):
        raise FlowOPDError(f"{name} is {t.dtype}, too coarse for noise levels; pass float32.")
    times = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if times.ndim > 1 or (times.ndim == 1 and len(times) != len(x)):
        raise FlowOPDError(
            f"{name} has shape {list(times.shape)}; it must be a number or one each, [{len(x)}]."
        )
    return times


def _check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise FlowOPDError(
            f"{name} has shape {list(tensor.shape)}, but {other_name} has {list(other.shape)}; "
            "they must be the same."
        )


def _check_stochastic(kind: Kind, t: Tensor, t_next: Tensor, noise_level: float) -> None:
    falling = (t > 0) & (t <= 1) & (t_next >= 0) & (t_next < t)
    if on_host(t, t_next) and not bool(falling.all()):
        raise FlowOPDError(
            f"a {kind} step goes from t = {t.tolist()} to {t_next.tolist()}; "
            "it must go down, with 1 >= t > t_next >= 0."
        )
    highest = 1.0 if kind == "cps" else math.inf
    if not 0 <= noise_level <= highest:
        raise FlowOPDError(
            f"noise_level is {noise_level}; for {kind} it must lie between 0 and {highest}."
        )


def _check_has_density(transition: Transition, what: str) -> None:
    if on_host(transition.std) and not bool((transition.std > 0).all()):
        raise FlowOPDError(
            f"a deterministic step (std 0) has no {what}: ODE steps and the last CPS step are "
            "such. Leave them out, or use a weighting that needs no density ('uniform' or 'ode')."
        )
