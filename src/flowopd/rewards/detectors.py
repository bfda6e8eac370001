"""Cheap numbers in which reward hacking shows: grids, blur, darkness, emptiness.

They judge nothing by themselves; a curve of one of them that leaves its beginning is a reason to
look at the pictures.
"""

import numpy as np
from numpy.typing import NDArray

DARK = 0.1
BINS = 4  # a channel, for the colour histogram


def detect(images: NDArray[np.uint8]) -> dict[str, float]:
    """Of pictures [B, H, W, 3], the means of

    edges: the mean step between neighbouring pixels (falls with blur and emptiness, rises with
    noise); entropy: of the colour histogram, 0 to 1; grid: the highest peak of the spectrum away
    from the low frequencies, against the mean there (rises with regular patterns); dark: the share
    of pixels below a tenth of full brightness.
    """
    pixels = images.astype(np.float32) / 255
    grey = pixels.mean(-1)
    return {
        "edges": float(np.mean([_edges(one) for one in grey])),
        "entropy": float(np.mean([_entropy(one) for one in images])),
        "grid": float(np.mean([_grid(one) for one in grey])),
        "dark": float((grey < DARK).mean()),
    }


def _edges(grey: NDArray[np.float32]) -> float:
    return float((np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2)


def _entropy(image: NDArray[np.uint8]) -> float:
    levels = (image.astype(np.int64) * BINS) // 256
    codes = (levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]
    shares = np.bincount(codes.reshape(-1), minlength=BINS**3) / codes.size
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(BINS**3)) + 0.0


def _grid(grey: NDArray[np.float32]) -> float:
    window = np.outer(np.hanning(grey.shape[0]), np.hanning(grey.shape[1]))
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2
    rows = np.minimum(np.arange(grey.shape[0]), grey.shape[0] - np.arange(grey.shape[0]))
    radius = np.hypot(rows[:, None], np.arange(power.shape[1])[None])
    high = power[radius > min(grey.shape) / 8]
    return float(high.max() / high.mean()) if high.mean() > 1e-12 else 0.0
