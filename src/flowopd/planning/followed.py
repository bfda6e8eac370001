"""An outline whose calls say in which phase of a run the memory is in use."""

from collections.abc import Sequence

from torch import Tensor

from flowopd.planning.memory import LiveMemory
from flowopd.planning.outline import Outline
from flowopd.planning.phases import Phase
from flowopd.policy.protocol import PromptEmbeds


class Followed:
    """Takes the place of a model's encoding and decoding."""

    def __init__(self, model: Outline, memory: LiveMemory) -> None:
        self._memory, self._model = memory, model
        self._encode, self._decode = model.encode_prompts, model.decode
        self._encoding: int | None = None
        model.encode_prompts = self.encode  # type: ignore[method-assign]
        model.decode = self.decode  # type: ignore[method-assign]

    def encode(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The encoders run once, for however many prompts: these go through them in turn."""
        with self._memory.during(Phase.ENCODE):
            if self._encoding is None:
                with self._memory.watch() as watch:
                    self._model.run_encoders()
                self._encoding = watch.above
            self._memory.reach(self._encoding)
            return self._encode(prompts)

    def decode(self, latents: Tensor) -> Tensor:
        outer = self._memory.phase
        own = outer if outer in (Phase.PROBE, Phase.SAMPLE) else Phase.DECODE
        with self._memory.during(own):
            return self._decode(latents)
