"""Many adapters on one frozen base: who is active, who is trained, what it costs."""

import hashlib
from pathlib import Path

import pytest
import torch
from adapters import EIGHT, bank_with_student, randomise_adapter, save_plain_peft, velocity

from flowopd.errors import FlowOPDError
from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.lora_layers import LoraLinear
from tiny_sd3 import tiny_transformer

TEACHERS = ("compose", "text", "quality", "preference")


def full_bank(dtype: torch.dtype = torch.float32, *, checkpointing: bool = False) -> AdapterBank:
    """Four teachers, an anchor and a student, of different ranks and targets."""
    transformer = tiny_transformer(0)
    if dtype != torch.float32:
        transformer.to(dtype)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    bank = AdapterBank(transformer)
    for index, name in enumerate(TEACHERS):
        bank.create(name, Role.TEACHER, rank=2 + index, alpha=4, targets=EIGHT[: 5 + index])
    bank.create("anchor", Role.ANCHOR, rank=4, alpha=8, targets=("attn2.to_q", "ff.net.2"))
    bank.create("student", Role.STUDENT, rank=4, alpha=8, targets=EIGHT)
    for seed, name in enumerate(bank.adapters):
        randomise_adapter(bank, name, seed)
    return bank


def digests(bank: AdapterBank) -> dict[str, str]:
    found = {}
    for name in bank.adapters:
        content = b"".join(
            key.encode() + tensor.numpy().tobytes() for key, tensor in bank.state_dict(name).items()
        )
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def distillation_gradients(bank: AdapterBank) -> dict[str, torch.Tensor]:
    """Two student forwards, a teacher's and the base's between, then one backward under another."""
    with bank.using("student"):
        first = velocity(bank.transformer)
    with torch.no_grad(), bank.using("compose"):
        target = velocity(bank.transformer)
    with torch.no_grad(), bank.using(None):
        base = velocity(bank.transformer)
    with bank.using("student"):
        second = velocity(bank.transformer).tanh()
    loss = (first - target).square().mean() + 0.1 * (second - base).square().mean()
    with bank.using("text"):
        loss.backward()
        assert bank.active == "text"
    gradients = {key: p.grad.clone() for key, p in bank.trainable_parameters()}
    bank.transformer.zero_grad()
    return gradients


def test_each_adapter_computes_base_plus_its_scaled_product() -> None:
    bank = full_bank()
    for name, info in bank.adapters.items():
        merged = tiny_transformer(0)
        state = bank.state_dict(name)
        with torch.no_grad():
            for key in [key for key in state if key.endswith(".lora_A.weight")]:
                path = key.removesuffix(".lora_A.weight")
                product = state[path + ".lora_B.weight"] @ state[key]
                scaling = info.config.alpha / info.config.rank
                merged.get_submodule(path).weight += scaling * product
            expected = velocity(merged)
            with bank.using(name):
                actual = velocity(bank.transformer)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        assert (expected - velocity(tiny_transformer(0))).abs().max() > 1e-2


@torch.no_grad()
def test_base_is_bit_for_bit_the_plain_transformer() -> None:
    bank = full_bank()
    plain = velocity(tiny_transformer(0))
    assert torch.equal(velocity(bank.transformer), plain)
    with bank.using("student"), bank.using(None):
        assert torch.equal(velocity(bank.transformer), plain)


@torch.no_grad()
def test_new_adapter_changes_nothing_and_depends_on_its_seed_alone() -> None:
    states = []
    for global_seed, seed in ((0, 5), (1, 5), (1, 6)):
        bank = AdapterBank(tiny_transformer(0))
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        bank.create("student", Role.STUDENT, rank=4, alpha=8, targets=EIGHT, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        with bank.using("student"):
            assert torch.equal(velocity(bank.transformer), velocity(tiny_transformer(0)))
        states.append(bank.state_dict("student"))
    key = "transformer_blocks.0.attn.to_q.lora_A.weight"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])
    assert states[0][key].abs().max() <= 32**-0.5


def test_six_adapters_cost_base_plus_six_loras() -> None:
    bank = full_bank()
    tensors = [*bank.transformer.parameters(), *bank.transformer.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    plain = tiny_transformer(0)
    base = sum(t.nbytes for t in [*plain.parameters(), *plain.buffers()])
    loras = sum(4 * info.parameters for info in bank.adapters.values())
    assert len(bank.adapters) == 6
    assert base + loras <= sum(storages.values()) <= 1.02 * (base + loras)


def test_switching_changes_no_byte_and_no_gradient_flag() -> None:
    bank = full_bank()
    before = digests(bank)
    student = {id(parameter) for _, parameter in bank.trainable_parameters()}
    for name in [*bank.adapters, None]:
        with bank.using(name), torch.no_grad():
            velocity(bank.transformer)
            flags = {id(p) for p in bank.transformer.parameters() if p.requires_grad}
            assert flags == student
    assert digests(bank) == before


def test_training_the_student_leaves_every_other_byte_alone() -> None:
    bank = full_bank(checkpointing=True)
    before = digests(bank)
    optimizer = torch.optim.AdamW([p for _, p in bank.trainable_parameters()], lr=1e-2)
    for _ in range(2):
        gradients = distillation_gradients(bank)
        for key, parameter in bank.trainable_parameters():
            parameter.grad = gradients[key]
        optimizer.step()
        optimizer.zero_grad()
    after = digests(bank)
    assert {name for name in before if before[name] != after[name]} == {"student"}
    with torch.no_grad(), bank.using(None):
        assert torch.equal(velocity(bank.transformer), velocity(tiny_transformer(0)))


@pytest.mark.parametrize("enabled_after", [False, True])
def test_gradients_with_checkpointing_equal_those_without(enabled_after: bool) -> None:
    plain = distillation_gradients(full_bank())
    bank = full_bank(checkpointing=not enabled_after)
    if enabled_after:
        bank.transformer.enable_gradient_checkpointing()
    recomputed = distillation_gradients(bank)
    assert bank.active is None
    # The last block throws its text stream away, and with it the effect of this projection.
    dead = {key for key, gradient in plain.items() if not gradient.any()}
    assert all(key.startswith("transformer_blocks.2.attn.add_q_proj") for key in dead)
    for key, gradient in plain.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-6, atol=1e-8)


def test_diffusers_own_checkpointing_would_fail_the_test_above() -> None:
    plain = distillation_gradients(full_bank())
    bank = full_bank(checkpointing=True)
    bank._checkpointing = []
    bank.transformer.enable_gradient_checkpointing()
    try:
        recomputed = distillation_gradients(bank)
    except torch.utils.checkpoint.CheckpointError:
        return
    assert any(not torch.allclose(recomputed[k], g, rtol=1e-3) for k, g in plain.items())


def test_only_the_student_gets_gradients() -> None:
    for checkpointing in (False, True):
        bank = full_bank(checkpointing=checkpointing)
        student = {id(p) for _, p in bank.trainable_parameters()}
        with bank.using("student"):
            loss = velocity(bank.transformer).square().mean()
        with torch.no_grad(), bank.using("quality"):
            velocity(bank.transformer)
        loss.backward()
        touched = {id(p) for p in bank.transformer.parameters() if p.grad is not None}
        assert touched == student
        with bank.using("compose"):
            assert not velocity(bank.transformer).requires_grad


def test_checkpointed_backward_can_run_twice() -> None:
    bank = full_bank(checkpointing=True)
    with bank.using("student"):
        loss = velocity(bank.transformer).square().mean()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for _, p in bank.trainable_parameters()]
    with bank.using("text"):
        loss.backward()
    for (_, parameter), gradient in zip(bank.trainable_parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_carries_float32_adapters(dtype: torch.dtype) -> None:
    exact = full_bank()
    with torch.no_grad(), exact.using("student"):
        expected = velocity(exact.transformer)
    bank = full_bank(dtype)
    assert all(t.dtype == torch.float32 for n in bank.adapters for t in bank.state_dict(n).values())
    assert bank.transformer.transformer_blocks[0].ff.net[2].base.weight.dtype == dtype
    with bank.using("student"):
        actual = velocity(bank.transformer, dtype)
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)
    actual.square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for _, p in bank.trainable_parameters())


def test_a_student_converted_afterwards_is_refused() -> None:
    bank = bank_with_student()
    bank.transformer.to(torch.bfloat16)
    with pytest.raises(
        FlowOPDError, match=r"is torch\.bfloat16; adapters are trained in torch\.fl"
    ):
        bank.trainable_parameters()


def test_using_nests_and_restores_after_exceptions() -> None:
    bank = full_bank()
    with bank.using("student"):
        with bank.using("text"):
            assert bank.active == "text"
            with bank.using(None):
                assert bank.active is None
            assert bank.active == "text"
        assert bank.active == "student"
        with pytest.raises(ZeroDivisionError), bank.using("anchor"):
            raise ZeroDivisionError
        assert bank.active == "student"
    assert bank.active is None


def test_adapters_added_later_keep_the_active_one_and_the_gradients() -> None:
    bank = bank_with_student()
    parameters = [p for _, p in bank.trainable_parameters()]
    with bank.using("student"):
        before = velocity(bank.transformer).detach()
        bank.create("late", Role.TEACHER, rank=2, alpha=2, targets=("attn.to_q", "ff.net.2"))
        randomise_adapter(bank, "late", 9)
        assert torch.equal(velocity(bank.transformer).detach(), before)
    assert all(p is q for p, (_, q) in zip(parameters, bank.trainable_parameters(), strict=True))
    assert all(p.requires_grad for p in parameters)


def test_names_are_checked() -> None:
    bank = full_bank()
    with pytest.raises(FlowOPDError, match=r"no adapter named 'txet'.*compose, text, quality"):
        bank.using("txet")
    with pytest.raises(FlowOPDError, match="already an adapter named 'text'"):
        bank.create("text", Role.TEACHER, rank=2, alpha=2, targets=EIGHT)
    with pytest.raises(FlowOPDError, match="'second' cannot be a student: 'student' is"):
        bank.create("second", Role.STUDENT, rank=2, alpha=2, targets=EIGHT)
    with pytest.raises(FlowOPDError, match="already has adapters"):
        AdapterBank(bank.transformer)
    bank.create("world.text-v1.5", Role.TEACHER, rank=2, alpha=2, targets=EIGHT)
    bank.create("type", Role.TEACHER, rank=2, alpha=2, targets=EIGHT)


def test_creation_is_checked() -> None:
    bank = AdapterBank(tiny_transformer(0))
    with pytest.raises(FlowOPDError, match=r"'attn.to_kk' names no linear layer"):
        bank.create("a", Role.STUDENT, rank=2, alpha=2, targets=("attn.to_q", "attn.to_kk"))
    for targets in ("attn.to_q", ()):
        with pytest.raises(FlowOPDError, match=r"targets are .*a list of names .*'all-linear'"):
            bank.create("a", Role.STUDENT, rank=2, alpha=2, targets=targets)
    with pytest.raises(FlowOPDError, match="rank is 0"):
        bank.create("a", Role.STUDENT, rank=0, alpha=2, targets=EIGHT)
    with pytest.raises(FlowOPDError, match="nothing to train"):
        bank.trainable_parameters()


def test_all_linear_layers_can_be_targets() -> None:
    bank = AdapterBank(tiny_transformer(0))
    bank.create("a", Role.STUDENT, rank=2, alpha=2, targets="all-linear")
    linear = [m for m in tiny_transformer(0).modules() if isinstance(m, torch.nn.Linear)]
    assert len(bank.trainable_parameters()) == 2 * len(linear)


def test_state_is_checked_and_round_trips() -> None:
    bank = bank_with_student()
    state = {key: tensor.clone() for key, tensor in bank.state_dict("student").items()}
    randomise_adapter(bank, "student", 5)
    bank.load_state_dict("student", state)
    assert all(torch.equal(t, state[key]) for key, t in bank.state_dict("student").items())
    key = "transformer_blocks.1.attn.to_q.lora_B.weight"
    with pytest.raises(FlowOPDError, match=rf"1 key missing \({key}\)"):
        bank.load_state_dict("student", {k: t for k, t in state.items() if k != key})
    with pytest.raises(FlowOPDError, match=rf"{key} is \[32, 3\], not \[32, 4\]"):
        bank.load_state_dict("student", state | {key: state[key][:, :3]})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"attn.to_q": 2}, "alpha_pattern": {"0.attn.to_q": 3, "attn.to_v": 5}},
        {"target_modules": r"transformer_blocks\.[01]\.attn2\.to_[qk]"},
        {"target_modules": ["to_q", "to_k"], "exclude_modules": ["attn2.to_q"]},
        {"layers_to_transform": [1], "layers_pattern": "transformer_blocks"},
        {"target_modules": "all-linear", "lora_dropout": 0.5},
    ],
    ids=["published", "rslora", "patterns", "regex", "exclude", "layers", "all-linear"],
)
@torch.no_grad()
def test_adapters_saved_by_plain_peft_give_the_same_velocity(
    tmp_path: Path, config: dict[str, object]
) -> None:
    expected = save_plain_peft(tmp_path / "teacher", **config)
    bank = bank_with_student()
    info = bank.load("teacher", tmp_path / "teacher", Role.TEACHER)
    assert info.role is Role.TEACHER
    assert info.sha256 is not None
    bank.transformer.train()
    with bank.using("teacher"):
        actual = velocity(bank.transformer)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert (expected - velocity(tiny_transformer(0))).abs().max() > 1e-2


@torch.no_grad()
def test_a_folded_adapter_computes_the_same_in_more_memory_and_never_adapts_the_rest() -> None:
    bank = full_bank()
    names = [name for name, info in bank.adapters.items() if info.role is not Role.STUDENT]
    expected = {}
    for name in [*names, "student", None]:
        with bank.using(name):
            expected[name] = velocity(bank.transformer)
    before = digests(bank)
    for name in names:
        bank.fold(name)
    for name, tensor in expected.items():
        with bank.using(name):
            torch.testing.assert_close(velocity(bank.transformer), tensor, rtol=1e-5, atol=1e-5)
    assert torch.equal(velocity(bank.transformer), expected[None])
    assert digests(bank) == before
    with pytest.raises(FlowOPDError, match="only frozen adapters are folded"):
        bank.fold("student")
    assert all(bank.rounding(name) < 1e-4 for name in names)


@torch.no_grad()
def test_what_rounding_takes_from_a_folded_adapter() -> None:
    """Half precision cannot say W + a change of a thousandth: the change is lost."""
    bank = AdapterBank(tiny_transformer(0).bfloat16())
    for name, size in (("large", 1.0), ("small", 1e-5)):
        bank.create(name, Role.TEACHER, rank=4, alpha=4, targets=["attn.to_q"])
        state = bank.state_dict(name)
        changes = {key: torch.ones_like(t) * size for key, t in state.items() if "lora_B" in key}
        bank.load_state_dict(name, state | changes)
        bank.fold(name)
    errors, sizes = 0.0, 0.0
    for path, layer in bank.transformer.named_modules():
        if isinstance(layer, LoraLinear) and path.endswith("attn.to_q"):
            state = bank.state_dict("large")
            change = state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
            weight = layer.base.weight.float()
            errors += ((weight + change).bfloat16().float() - weight - change).square().sum().item()
            sizes += change.square().sum().item()
    assert bank.rounding("large") == pytest.approx((errors / sizes) ** 0.5, rel=1e-4)
    assert 0 < bank.rounding("large") < 0.05
    assert bank.rounding("small") > 0.5
