"""Compiled blocks: the same numbers, and one version for all adapters of a rank."""

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from adapters import EIGHT, randomise_adapter, velocity
from torch._dynamo.testing import CompileCounterWithBackend

from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.compiling import compile_blocks
from tiny_sd3 import tiny_transformer

NAMES = ("student", "one", "two", "anchor", None)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def bank_of_four(dtype: torch.dtype = torch.float32) -> AdapterBank:
    """The network as `dtype`, its adapters in float32 as they are trained."""
    bank = AdapterBank(tiny_transformer(0).to(dtype))
    for number, name in enumerate(NAMES[:4]):
        role = Role.STUDENT if name == "student" else Role.TEACHER
        bank.create(name, role, rank=4, alpha=8, targets=EIGHT)
        randomise_adapter(bank, name, seed=number)
    bank.fold("anchor")
    return bank


def one_round(
    bank: AdapterBank, dtype: torch.dtype = torch.float32
) -> dict[str | None, torch.Tensor]:
    """As a step of distillation goes: the student with a gradient, the others without."""
    with bank.using("student"):
        student = velocity(bank.transformer, dtype)
    found = {}
    for name in NAMES[1:]:
        with torch.no_grad(), bank.using(name):
            found[name] = velocity(bank.transformer, dtype)
    for _, parameter in bank.trainable_parameters():
        parameter.grad = None
    (student - found["one"]).square().mean().backward()
    gradients = [p.grad.reshape(-1) for _, p in bank.trainable_parameters()]
    return found | {"student": student.detach(), "gradient": torch.cat(gradients)}


@pytest.mark.parametrize(
    ("backend", "checkpointing", "dtype", "tolerance"),
    [("eager", False, torch.bfloat16, 2**-8), ("aot_eager", True, torch.float32, 1e-5)],
)
def test_compiled_blocks_compute_the_same_and_switching_compiles_nothing(
    backend: str, checkpointing: bool, dtype: torch.dtype, tolerance: float
) -> None:
    bank = bank_of_four(dtype)
    if checkpointing:
        bank.transformer.enable_gradient_checkpointing()
    expected = one_round(bank, dtype)
    counter = CompileCounterWithBackend(backend)
    compile_blocks(bank.transformer.transformer_blocks, counter)
    for number in range(3):
        for name, tensor in one_round(bank, dtype).items():
            scale = expected[name].abs().max().item()
            assert (tensor - expected[name]).abs().max().item() <= tolerance * scale, name
        if number == 0:
            compiled = counter.frame_count
    assert counter.frame_count == compiled
    # Three kinds of block; by whom they are used: the student with a gradient, an adapter, a
    # folded one, nobody. The last block's attention to text has no output to adapt.
    assert 6 <= compiled <= 12


def test_another_adapter_of_the_same_rank_needs_no_compilation() -> None:
    bank = bank_of_four()
    counter = CompileCounterWithBackend("eager")
    compile_blocks(bank.transformer.transformer_blocks, counter)
    before = []
    for name in ("one", "two"):
        with torch.no_grad(), bank.using(name):
            velocity(bank.transformer)
        before.append(counter.frame_count)
    assert before[0] == before[1] > 0
