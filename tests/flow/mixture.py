"""A 2-D Gaussian mixture whose exact velocity is known, to see what a sampler really samples.

Shapes: N samples, C components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.flow import NoiseSource, Sampler, rollout, sigma_schedule


@dataclass(frozen=True)
class Mixture:
    weights: Tensor
    """[C]"""
    means: Tensor
    """[C, 2]"""
    covariances: Tensor
    """[C, 2, 2]"""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """`E[x1 - x0 | x_t = x]`, each component's own answer weighted by its posterior."""
        t = t[:, None]
        log_posterior, per_component = [], []
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            variances, axes = torch.linalg.eigh(covariance)
            noisy = (1 - t) ** 2 * variances + t**2
            offset = (x - (1 - t) * mean) @ axes
            log_density = -0.5 * (offset**2 / noisy + noisy.log()).sum(1)
            log_posterior.append(weight.log() + log_density)
            per_component.append(((t - (1 - t) * variances) / noisy * offset) @ axes.T - mean)
        posterior_NC = torch.stack(log_posterior, 1).softmax(1)
        return (posterior_NC[..., None] * torch.stack(per_component, 1)).sum(1)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Exact samples, [N, 2]."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator, dtype=self.means.dtype)
        roots = torch.linalg.cholesky(self.covariances)
        return self.means[which] + (roots[which] @ noise[..., None])[..., 0]

    def component_of(self, x: Tensor) -> Tensor:
        """The likeliest component of each sample, [N]."""
        scores = []
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            component = torch.distributions.MultivariateNormal(mean, covariance)
            scores.append(weight.log() + component.log_prob(x))
        return torch.stack(scores, 1).argmax(1)

    def errors(self, samples: Tensor) -> "Errors":
        """How far the moments of `samples` are from the mixture's."""
        component = self.component_of(samples)
        means, covariances, spreads, weights = [], [], [], []
        for index, (weight, mean, covariance) in enumerate(
            zip(self.weights, self.means, self.covariances, strict=True)
        ):
            own = samples[component == index]
            found = torch.cov(own.T)
            weights.append((len(own) / len(samples) - weight).abs())
            means.append((own.mean(0) - mean).norm())
            covariances.append((found - covariance).norm() / covariance.norm())
            spreads.append((found.trace() / covariance.trace()).sqrt())
        return Errors(
            weight=float(torch.stack(weights).max()),
            mean=float(torch.stack(means).max()),
            covariance=float(torch.stack(covariances).max()),
            spread=float(torch.stack(spreads).mean()),
        )


@dataclass(frozen=True)
class Errors:
    """The worst component's error in each moment."""

    weight: float
    """Absolute."""
    mean: float
    """Distance."""
    covariance: float
    """Frobenius norm, relative."""
    spread: float
    """Mean ratio of standard deviations, found over true: below 1 is too narrow."""


MIXTURE = Mixture(
    weights=torch.tensor([0.5, 0.3, 0.2]),
    means=torch.tensor([[2.0, 0.0], [-1.5, 1.5], [-1.0, -2.0]]),
    covariances=torch.tensor(
        [[[0.16, 0.06], [0.06, 0.09]], [[0.09, -0.04], [-0.04, 0.12]], [[0.10, 0.0], [0.0, 0.05]]]
    ),
)


def sample_with(sampler: Sampler, steps: int, count: int) -> Tensor:
    """`count` samples drawn by `sampler` on the even grid of `steps`, [N, 2]."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return MIXTURE.velocity(x[0], t.expand(count))[None]

    noise = NoiseSource([0])
    x = noise.draw((count, 2))  # the whole cloud of points is one "sample", with one stream
    for step in rollout(velocity, x, sigma_schedule(steps), sampler=sampler, noise=noise):
        x = step.x_next
    return x[0]
