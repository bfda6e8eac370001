"""A scorer of one's own: flowopd reward check examples/sharpness.py:Sharpness"""

import numpy as np

from flowopd.rewards import Finding, MetricInfo, Scores

STRIPES = np.zeros((1, 64, 64, 3), np.uint8)
STRIPES[:, :, ::2] = 255


class Sharpness:
    name, version, grouped = "sharpness", 1, False
    tasks = None  # prompts of every kind
    metrics = (MetricInfo("sharpness", low=0, high=1),)

    def score(self, images, records):
        grey = images.mean(axis=-1) / 255  # of uint8 [B, H, W, 3]
        return [Scores({"sharpness": float(np.abs(np.diff(one)).mean())}) for one in grey]

    def self_check(self):
        value = self.score(STRIPES, [None])[0].values["sharpness"]
        return [Finding("black and white stripes", value, "1", value == 1)]
