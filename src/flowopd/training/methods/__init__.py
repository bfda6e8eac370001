"""Each algorithm at work: where its data come from, and its losses on them."""

from collections.abc import Mapping

from flowopd.training.method import Method
from flowopd.training.methods.grpo import GRPO
from flowopd.training.methods.nft import NFT
from flowopd.training.methods.opd import OPD
from flowopd.training.methods.sft import SFT

METHODS: Mapping[str, type[Method]] = {"grpo": GRPO, "nft": NFT, "opd": OPD, "sft": SFT}
