"""Random adapters on the tiny transformer, and the velocity that it computes with them."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from flowopd.policy.bank import AdapterBank, Role
from published import EIGHT, PEFT_PREFIX
from tiny_sd3 import JOINT_DIM, LATENT_SIZE, POOLED_DIM, tiny_transformer

__all__ = ["EIGHT", "PEFT_PREFIX"]


def velocity(transformer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """One forward pass at a fixed input, batch 2, in float32."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return transformer(
        hidden_states=draw(2, 16, LATENT_SIZE, LATENT_SIZE),
        encoder_hidden_states=draw(2, 5, JOINT_DIM),
        pooled_projections=draw(2, POOLED_DIM),
        timestep=torch.tensor([900.0, 250.0]),
        return_dict=False,
    )[0].float()


def randomise_adapter(bank: AdapterBank, name: str, seed: int) -> None:
    """B is zero in a new adapter; give it values that change the velocity by about a tenth."""
    generator = torch.Generator().manual_seed(seed)
    state = bank.state_dict(name)
    bank.load_state_dict(
        name, {key: 0.1 * torch.randn(t.shape, generator=generator) for key, t in state.items()}
    )


def bank_with_student(*, rank: int = 4, alpha: float = 10.0, targets: tuple[str, ...] = EIGHT):
    bank = AdapterBank(tiny_transformer(0), base_name="tiny", fingerprint="f00d")
    bank.create("student", Role.STUDENT, rank=rank, alpha=alpha, targets=targets)
    randomise_adapter(bank, "student", seed=1)
    return bank


def save_plain_peft(folder: Path, seed: int = 3, **config: object) -> Tensor:
    """An adapter saved by PEFT alone; returns the velocity of the `PeftModel` it came from."""
    torch.manual_seed(seed)
    arguments = {"r": 4, "lora_alpha": 8, "target_modules": list(EIGHT)} | config
    model = get_peft_model(tiny_transformer(0), LoraConfig(init_lora_weights=False, **arguments))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        return velocity(model)
