"""Adapters on disk: both formats in and out, and every way in which a file can fail to fit."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import EIGHT, PEFT_PREFIX, bank_with_student, save_plain_peft, velocity
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.files import save_tensors, sha256
from flowopd.policy import adapter_saving
from flowopd.policy.adapter_files import check_adapter, read_adapter
from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.network_saving import write_network
from tiny_sd3 import tiny_transformer

WEIGHTS = "adapter_model.safetensors"
DIFFUSERS = "pytorch_lora_weights.safetensors"
QUERY = "transformer_blocks.1.attn.to_q"
TIGHT = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def skeleton() -> SD3Transformer2DModel:
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(tiny_transformer(0).config)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A student of rank 4 and alpha 10, saved for PEFT and for diffusers."""
    folder = tmp_path / "student"
    bank_with_student().save(
        "student", folder, metadata={"guidance": 4.5}, lora_prefix="transformer"
    )
    return folder


@torch.no_grad()
def student_velocity(bank: AdapterBank, name: str = "student") -> Tensor:
    with bank.using(name):
        return velocity(bank.transformer)


@torch.no_grad()
def velocity_of(folder: Path) -> Tensor:
    bank = AdapterBank(tiny_transformer(0))
    bank.load("it", folder, Role.TEACHER)
    return student_velocity(bank, "it")


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a weights file as a stranger would: without a word in flowopd.json."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    (file.parent / "flowopd.json").unlink(missing_ok=True)


@torch.no_grad()
def test_saved_student_gives_the_same_velocity_in_peft(saved: Path) -> None:
    model = PeftModel.from_pretrained(tiny_transformer(0), saved).eval()
    expected = student_velocity(bank_with_student())
    torch.testing.assert_close(velocity(model), expected, **TIGHT)


@torch.no_grad()
def test_saved_student_gives_the_same_velocity_in_diffusers(
    saved: Path, tiny_pipeline: Path
) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline)
    base = velocity(pipeline.transformer)
    pipeline.load_lora_weights(saved)
    expected = student_velocity(bank_with_student())
    torch.testing.assert_close(velocity(pipeline.transformer), expected, **TIGHT)
    assert (expected - base).abs().max() > 1e-2


@torch.no_grad()
def test_saved_student_gives_the_same_velocity_where_the_header_is_not_read(
    saved: Path, tmp_path: Path
) -> None:
    rewrite(saved / DIFFUSERS, lambda tensors: None)
    shutil.copy(saved / DIFFUSERS, tmp_path / DIFFUSERS)
    transformer = tiny_transformer(0)
    transformer.load_lora_adapter(load_file(tmp_path / DIFFUSERS), prefix="transformer")
    expected = student_velocity(bank_with_student())
    torch.testing.assert_close(velocity(transformer), expected, **TIGHT)
    torch.testing.assert_close(velocity_of(tmp_path / DIFFUSERS), expected, **TIGHT)


def test_saved_student_loads_back_bit_for_bit(saved: Path) -> None:
    bank = bank_with_student()
    info = bank.load("copy", saved, Role.TEACHER)
    copy, student = bank.state_dict("copy"), bank.state_dict("student")
    assert copy.keys() == student.keys()
    assert all(torch.equal(copy[key], student[key]) for key in copy)
    assert torch.equal(student_velocity(bank, "copy"), student_velocity(bank))
    assert info.notes["guidance"] == 4.5
    assert (info.notes["base"], info.notes["fingerprint"]) == ("tiny", "f00d")
    assert info.sha256 == info.notes["sha256"][WEIGHTS] == sha256(saved / WEIGHTS)


def test_a_loaded_adapter_of_mixed_ranks_survives_saving_in_both_formats(tmp_path: Path) -> None:
    expected = save_plain_peft(
        tmp_path / "a",
        use_rslora=True,
        rank_pattern={"attn.to_q": 2},
        alpha_pattern={"0.attn.to_q": 3},
    )
    bank = AdapterBank(tiny_transformer(0))
    bank.load("it", tmp_path / "a", Role.TEACHER)
    bank.save("it", tmp_path / "b", metadata={}, lora_prefix="transformer")
    torch.testing.assert_close(velocity_of(tmp_path / "b"), expected, **TIGHT)
    torch.testing.assert_close(velocity_of(tmp_path / "b" / DIFFUSERS), expected, **TIGHT)
    transformer = tiny_transformer(0)
    StableDiffusion3Pipeline.load_lora_into_transformer(
        *[StableDiffusion3Pipeline.lora_state_dict(tmp_path / "b"), transformer]
    )
    with torch.no_grad():
        torch.testing.assert_close(velocity(transformer), expected, **TIGHT)


def test_no_diffusers_file_without_a_prefix(tmp_path: Path) -> None:
    bank_with_student().save("student", tmp_path / "a", metadata={}, lora_prefix=None)
    present = {path.name for path in (tmp_path / "a").iterdir()}
    assert present == {"adapter_config.json", WEIGHTS, "flowopd.json"}


@pytest.mark.parametrize("header", [True, False])
@torch.no_grad()
def test_adapters_saved_by_diffusers_give_the_same_velocity(tmp_path: Path, header: bool) -> None:
    """With its header alpha is 8 of rank 4; without it diffusers takes alpha = rank."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(EIGHT), init_lora_weights=False)
    model = get_peft_model(tiny_transformer(0), config).eval()
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=_plain(config) if header else None,
    )
    rewrite_prefix(tmp_path / DIFFUSERS)
    transformer = tiny_transformer(0)
    state, metadata = StableDiffusion3Pipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    assert (metadata is not None) is header
    StableDiffusion3Pipeline.load_lora_into_transformer(state, transformer, metadata=metadata)
    expected = velocity(transformer)
    torch.testing.assert_close(velocity_of(tmp_path), expected, **TIGHT)
    if header:
        torch.testing.assert_close(expected, velocity(model), **TIGHT)


def _plain(config: LoraConfig) -> dict[str, object]:
    fields = config.to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}


def rewrite_prefix(file: Path) -> None:
    """PEFT's state has `base_model.model.` between the prefix and the path; diffusers' has not."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = {key.replace(PEFT_PREFIX, ""): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata=metadata)


@torch.no_grad()
def test_adapter_saved_by_a_diffusers_transformer_itself(tmp_path: Path) -> None:
    transformer = tiny_transformer(0)
    torch.manual_seed(3)
    transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=["attn.to_q"], init_lora_weights=False)
    )
    transformer.save_lora_adapter(tmp_path)
    torch.testing.assert_close(velocity_of(tmp_path), velocity(transformer), **TIGHT)


@torch.no_grad()
def test_older_names_and_alpha_keys(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 32, generator=generator), torch.randn(32, 3, generator=generator)
    file = tmp_path / "old.safetensors"
    tensors = {
        f"transformer.{QUERY}.lora.down.weight": down.half(),
        f"transformer.{QUERY}.lora.up.weight": up.half(),
        f"transformer.{QUERY}.alpha": torch.tensor(1.5),
    }
    save_file(tensors, file)
    merged = tiny_transformer(0)
    merged.get_submodule(QUERY).weight += 0.5 * up.half().float() @ down.half().float()
    torch.testing.assert_close(velocity_of(file), velocity(merged), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pickled_weights_are_read_without_running_code(saved: Path) -> None:
    expected = velocity_of(saved)
    torch.save(load_file(saved / WEIGHTS), saved / "adapter_model.bin")
    (saved / WEIGHTS).unlink()
    assert torch.equal(velocity_of(saved), expected)
    torch.save({"a": Path}, saved / "adapter_model.bin")
    with pytest.raises(FlowOPDError, match="cannot be read as adapter weights"):
        read_adapter(saved)


def test_a_key_that_comes_with_and_without_the_prefix_is_refused(saved: Path) -> None:
    key = f"{QUERY}.lora_B.weight"
    rewrite(saved / WEIGHTS, lambda t: t.update({key: torch.zeros(32, 4)}))
    with pytest.raises(FlowOPDError, match=rf"\({PEFT_PREFIX}{key} and {key}\); all should"):
        read_adapter(saved)
    rewrite(saved / WEIGHTS, lambda t: t.pop(PEFT_PREFIX + key))
    with pytest.raises(FlowOPDError, match=rf"{PEFT_PREFIX}.* and {key}\); all should"):
        read_adapter(saved)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"transformer.{QUERY}.lora_B.weight", f"transformer.{QUERY}.lora.up.weight"),
        (f"transformer.{QUERY}.lora_B.weight", f"{QUERY}.lora_B.weight"),
        (f"transformer.{QUERY}.alpha", f"transformer.{QUERY}.lora.alpha"),
    ],
)
def test_two_spellings_of_one_key_are_refused(saved: Path, one: str, other: str) -> None:
    file = saved / DIFFUSERS
    size = (1,) if one.endswith("alpha") else (32, 4)
    rewrite(file, lambda t: t.update({one: torch.ones(size), other: torch.zeros(size)}))
    with pytest.raises(FlowOPDError, match=r"holds .* twice, as ") as refusal:
        read_adapter(file)
    assert one in str(refusal.value)
    assert other in str(refusal.value)


@pytest.mark.parametrize("alpha", [torch.ones(2), torch.tensor(torch.nan)])
def test_an_alpha_that_is_no_number_is_refused(saved: Path, alpha: Tensor) -> None:
    file = saved / DIFFUSERS
    rewrite(file, lambda t: t.update({f"transformer.{QUERY}.alpha": alpha}))
    with pytest.raises(FlowOPDError, match=rf"transformer.{QUERY}.alpha is .* one finite number"):
        read_adapter(file)


def test_a_header_that_is_no_object_is_refused(saved: Path) -> None:
    file = saved / DIFFUSERS
    save_file(load_file(file), file, metadata={"lora_adapter_metadata": "[]"})
    (saved / "flowopd.json").unlink()
    with pytest.raises(FlowOPDError, match="should be a JSON object"):
        read_adapter(file)


@pytest.mark.parametrize("digests", [None, "abc", ["abc"]])
def test_digests_that_are_no_object_are_refused(saved: Path, digests: object) -> None:
    file = saved / "flowopd.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sha256": digests}))
    with pytest.raises(FlowOPDError, match=r"flowopd\.json: sha256 is .*it should map"):
        read_adapter(saved)


def test_what_the_bank_knows_is_saved_whatever_the_caller_says(tmp_path: Path) -> None:
    bank = AdapterBank(
        tiny_transformer(0), base_name="tiny", fingerprint="f00d", settings={"t5_length": 16}
    )
    bank.create("student", Role.STUDENT, rank=2, alpha=2, targets=EIGHT)
    said = {"role": "x", "base": "x", "fingerprint": "x", "t5_length": 0, "guidance": 1.0}
    bank.save("student", tmp_path / "a", metadata=said, lora_prefix=None)
    notes = read_adapter(tmp_path / "a").notes
    del notes["sha256"]
    known = {"role": "student", "base": "tiny", "fingerprint": "f00d", "t5_length": 16}
    assert notes == {**known, "guidance": 1.0}


def test_missing_key_is_named(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    rewrite(saved / WEIGHTS, lambda t: t.pop(f"{PEFT_PREFIX}{QUERY}.lora_B.weight"))
    with pytest.raises(FlowOPDError, match=rf"1 key missing \({QUERY}.lora_B.weight\)"):
        check_adapter(saved, skeleton)


def test_missing_layer_is_named(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    def drop_layer(tensors: dict[str, Tensor]) -> None:
        for half in "AB":
            del tensors[f"{PEFT_PREFIX}{QUERY}.lora_{half}.weight"]

    rewrite(saved / WEIGHTS, drop_layer)
    with pytest.raises(FlowOPDError, match=rf"2 keys missing \({QUERY}.lora_A.weight, {QUERY}"):
        check_adapter(saved, skeleton)


def test_extra_key_is_named(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    key = "transformer_blocks.9.attn.to_q.lora_A.weight"
    rewrite(saved / WEIGHTS, lambda t: t.update({PEFT_PREFIX + key: torch.zeros(4, 32)}))
    with pytest.raises(FlowOPDError, match=rf"1 key that the model has no linear layer .*\({key}"):
        check_adapter(saved, skeleton)


def test_key_outside_the_config_is_named(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    key = "transformer_blocks.0.ff.net.2.lora_A.weight"
    rewrite(saved / WEIGHTS, lambda t: t.update({PEFT_PREFIX + key: torch.zeros(4, 128)}))
    with pytest.raises(FlowOPDError, match=rf"target_modules do not select \({key}"):
        check_adapter(saved, skeleton)


def test_wrong_shape_is_named(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    key = f"{PEFT_PREFIX}{QUERY}.lora_A.weight"
    rewrite(saved / WEIGHTS, lambda t: t.update({key: torch.zeros(4, 31)}))
    with pytest.raises(FlowOPDError, match=rf"{QUERY}.lora_A.weight is \[4, 31\], not \[4, 32\]"):
        check_adapter(saved, skeleton)


def test_wrong_rank_is_named(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(FlowOPDError, match=r"keys of the wrong shape .*and \d+ more"):
        check_adapter(saved, skeleton)


def test_diffusers_files_are_checked_alike(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    file = saved / DIFFUSERS
    rewrite(file, lambda t: t.pop(f"transformer.{QUERY}.lora_B.weight"))
    with pytest.raises(FlowOPDError, match=rf"1 key missing \({QUERY}.lora_B.weight\)"):
        check_adapter(file, skeleton)
    rewrite(file, lambda t: t.update({"text_encoder.q.lora_A.weight": torch.zeros(4, 32)}))
    with pytest.raises(FlowOPDError, match=r"text_encoder.q.lora_A.weight"):
        check_adapter(file, skeleton)
    save_file({"lora_unet_q.lora_down.bias": torch.zeros(1)}, file)
    with pytest.raises(FlowOPDError, match="no adapter in diffusers' format"):
        check_adapter(file, skeleton)


def test_adapter_of_another_model_is_refused(saved: Path) -> None:
    with torch.device("meta"):
        other = SD3Transformer2DModel.from_config(
            {**tiny_transformer(0).config, "num_attention_heads": 3, "caption_projection_dim": 48}
        )
    with pytest.raises(FlowOPDError, match="does not fit this model: 46 keys of the wrong shape"):
        check_adapter(saved, other)


def test_adapter_of_another_base_is_refused(saved: Path, skeleton: SD3Transformer2DModel) -> None:
    check_adapter(saved, skeleton, "f00d")
    with pytest.raises(FlowOPDError, match=r"trained on another base: .*tiny \(f00d\).*is beef"):
        check_adapter(saved, skeleton, "beef")
    with pytest.raises(FlowOPDError, match="trained on another base"):
        AdapterBank(tiny_transformer(0), fingerprint="beef").load("a", saved, Role.TEACHER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["proj_out"]),
        ("init_lora_weights", "pissa"),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["weight"]),
        ("a_field_of_the_future", 1),
        ("peft_type", "LOKR"),
        ("r", 0),
        ("r", float("nan")),
        ("lora_alpha", "8"),
        ("lora_alpha", float("inf")),
        ("target_modules", None),
        ("rank_pattern", {"attn": "2"}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    saved: Path, skeleton: SD3Transformer2DModel, field: str, value: object
) -> None:
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(FlowOPDError, match=field):
        check_adapter(saved, skeleton)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "attn.(to_q"},
        {"layers_pattern": "blocks", "layers_to_transform": None},
        {"alpha_pattern": {"(": 2}},
    ],
)
def test_configurations_that_peft_does_not_accept(saved: Path, fields: dict[str, object]) -> None:
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(FlowOPDError, match="is not a configuration that PEFT accepts"):
        read_adapter(saved)


def test_unreadable_folders(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowOPDError, match="no such file or folder"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(FlowOPDError, match="is not an adapter folder"):
        read_adapter(tmp_path)
    with pytest.raises(FlowOPDError, match=r"PEFT's keys and no adapter_config\.json"):
        read_adapter(shutil.copy(saved / WEIGHTS, tmp_path / "lone.safetensors"))
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(FlowOPDError, match=r"adapter_config.json cannot be read as JSON"):
        read_adapter(saved)


@pytest.mark.parametrize(
    "content", [b"hello\n", b"\x80\x02}q\x00", b"\0" * 99, b"", b"cos\nsystem\n"]
)
def test_a_wrong_file_is_refused_without_torchs_advice(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(FlowOPDError, match=r"notes\.txt cannot be read as adapter w") as caught:
        read_adapter(file)
    assert "weights_only" not in str(caught.value)


def test_a_pickle_of_more_than_tensors_is_refused_without_torchs_advice(tmp_path: Path) -> None:
    file = tmp_path / "adapter.bin"
    torch.save({"a": Path}, file)
    with pytest.raises(FlowOPDError, match="it is no plain table of tensors") as caught:
        read_adapter(file)
    assert "weights_only" not in str(caught.value)


def test_a_full_disk_is_a_sentence_and_leaves_the_old_folder(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*args: object, **named: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(FlowOPDError, match=r"Cannot save an adapter to .*student: .*No space left"):
        bank_with_student().save("student", saved, metadata={}, lora_prefix="transformer")
    with pytest.raises(FlowOPDError, match=r"Cannot save an adapter to .*network: .*No space left"):
        write_network(saved.parent / "network", {}, {"weight": torch.ones(1)}, {})
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"weight": torch.ones(1)}, saved.parent / "one.safetensors")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["student"]


def test_damaged_weights(saved: Path) -> None:
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (saved / WEIGHTS).write_bytes(content)
    with pytest.raises(FlowOPDError, match=r"is not the file that .*flowopd\.json describes"):
        read_adapter(saved)
    (saved / "flowopd.json").unlink()
    (saved / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(FlowOPDError, match="cannot be read as adapter weights"):
        read_adapter(saved)


def test_undefined_numbers_are_refused(saved: Path) -> None:
    key = f"{PEFT_PREFIX}{QUERY}.lora_A.weight"
    rewrite(saved / WEIGHTS, lambda t: t[key].fill_(torch.nan))
    with pytest.raises(FlowOPDError, match=r"infinite or undefined numbers in 1 .*to_q.lora_A"):
        read_adapter(saved)


@pytest.mark.parametrize("exchange", [True, False])
def test_saving_again_replaces_the_folder_and_keeps_what_is_not_ours(
    saved: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(adapter_saving, "_exchange", lambda first, second: False)
    (saved / "README.md").write_text("mine")
    bank = bank_with_student()
    bank.save("student", saved, metadata={"round": 2}, lora_prefix=None)
    present = {path.name for path in saved.iterdir()}
    assert present == {"adapter_config.json", WEIGHTS, "flowopd.json", "README.md"}
    assert read_adapter(saved).notes["round"] == 2
    assert [path.name for path in saved.parent.iterdir()] == ["student"]


def test_a_save_that_fails_leaves_the_old_folder(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(TypeError):
        bank_with_student().save(
            "student", saved, metadata={"bad": object()}, lora_prefix="transformer"
        )
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["student"]


def test_a_student_that_diverged_does_not_replace_the_old_folder(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    bank = bank_with_student()
    bank.state_dict("student")[f"{QUERY}.lora_B.weight"][0, 0] = torch.inf
    with pytest.raises(FlowOPDError, match=r"not saved to .*1 of its tensors .*to_q\.lora_B"):
        bank.save("student", saved, metadata={}, lora_prefix="transformer")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    folder, before = tmp_path / "student", os.umask(0o027)
    try:
        bank_with_student().save("student", folder, metadata={}, lora_prefix="transformer")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_saving_to_a_link_replaces_the_folder_that_it_leads_to(saved: Path) -> None:
    link = saved.parent / "latest"
    link.symlink_to("student", target_is_directory=True)
    bank_with_student().save("student", link, metadata={"round": 2}, lora_prefix=None)
    assert link.is_symlink()
    assert read_adapter(saved).notes["round"] == 2
    assert {path.name for path in saved.parent.iterdir()} == {"student", "latest"}


def test_the_current_folder_is_not_replaced(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    for folder in (".", saved):
        with pytest.raises(FlowOPDError, match="the current folder is in it"):
            bank_with_student().save("student", folder, metadata={}, lora_prefix=None)


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FlowOPDError, match=r"it holds other things \(thesis.tex\)"):
        bank_with_student().save("student", tmp_path, metadata={}, lora_prefix=None)
    with pytest.raises(FlowOPDError, match="a file has that name"):
        bank_with_student().save("student", tmp_path / "thesis.tex", metadata={}, lora_prefix=None)
    with pytest.raises(FlowOPDError, match=r"Cannot save .*File exists: .*thesis\.tex"):
        bank_with_student().save(
            "student", tmp_path / "thesis.tex" / "a", metadata={}, lora_prefix=None
        )
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
