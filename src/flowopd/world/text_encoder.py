"""Words to embeddings: one token a word, one a letter of a quoted word, eight tokens a prompt."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowopd.errors import FlowOPDError
from flowopd.world.grammar import NUMBERS, RELATIONS, plural
from flowopd.world.palette import COLORS, LETTERS, SHAPES

LENGTH = 8
WIDTH = 64
PAD = "<pad>"
WORDS: tuple[str, ...] = (
    "a",
    "and",
    "the",
    "word",
    *dict.fromkeys(part for relation in RELATIONS for part in relation.split()),
    *NUMBERS,
    *COLORS,
    *SHAPES,
    *(plural(shape) for shape in SHAPES),
)
VOCABULARY = (PAD, *WORDS, *(f'"{letter}"' for letter in LETTERS))
_INDEX = {token: i for i, token in enumerate(VOCABULARY)}


def split(prompt: str) -> list[str]:
    """The tokens of a prompt; a quoted word is spelled."""
    tokens: list[str] = []
    for quoted, plain in re.findall(r'"([^"]*)"|([^\s"]+)', prompt):
        tokens += [f'"{letter}"' for letter in quoted.upper()] if quoted else [plain.lower()]
    return tokens


def tokenize(prompt: str) -> list[int]:
    """Eight token ids; a word that the world has no picture of is refused by name."""
    tokens = split(prompt)
    unknown = [token for token in tokens if token not in _INDEX or token == PAD]
    if unknown:
        raise FlowOPDError(
            f"The world does not know {', '.join(unknown)} (in the prompt '{prompt}'). "
            f"It knows the words {', '.join(WORDS)} and, in double quotes, the letters {LETTERS}."
        )
    if len(tokens) > LENGTH:
        raise FlowOPDError(
            f"The prompt '{prompt}' has {len(tokens)} tokens; the world's prompts have at most "
            f"{LENGTH} (a word is one, each letter of a quoted word is one)."
        )
    return [_INDEX[token] for token in tokens] + [0] * (LENGTH - len(tokens))


class TextEncoder(nn.Module):
    """Two pre-norm transformer layers over word embeddings; pooled = mean over the tokens."""

    def __init__(self, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(VOCABULARY), WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, heads, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, 8] to (sequence [B, 8, 64], pooled [B, 64])."""
        sequence = self.norm(self.layers(self.tokens(ids) + self.positions))
        return sequence, sequence.mean(dim=1)


def token_ids(prompts: Sequence[str]) -> Tensor:
    return torch.tensor([tokenize(prompt) for prompt in prompts], dtype=torch.long)
