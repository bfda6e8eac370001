"""What is refused, warned of and noted of a run beside its configuration's own contradictions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import data_for, make_teacher
from sd3_runs import sd3_data

from fakes import FakeConfig
from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.policy.bank import AdapterBank, Role
from flowopd.training.config import TrainConfig
from flowopd.training.roles import Roles
from flowopd.training.run import prepare, rounding_warnings, start_warnings, trained_guidance
from flowopd.training.student import LoraStudent

pytestmark = pytest.mark.usefixtures("fake_plugins")


def test_fp16_is_refused(tmp_path: Path, tiny_pipeline_no_t5: Path) -> None:
    """Gradients of a mean over many pictures would mostly be 0, and finite."""
    data = sd3_data(tmp_path, tiny_pipeline_no_t5, {"shapes": tmp_path / "teacher"})
    data["model"]["dtype"] = "fp16"
    with pytest.raises(FlowOPDError, match=r"model\.dtype is fp16, .* train with bf16, or fp32"):
        prepare(build(TrainConfig, data))


@pytest.mark.parametrize(("rank", "warned"), [(2, False), (8, True), (32, False)])
def test_a_rank_beside_a_start_of_another(tmp_path: Path, rank: int, warned: bool) -> None:
    """32 is what `student` says of itself."""
    start = make_teacher(tmp_path / "start", 9)
    data = data_for(tmp_path, {"name": "grpo"}, start=str(start), student={"rank": rank})
    found = start_warnings(prepare(build(TrainConfig, data)))
    assert found == (
        [f"student.rank is 8, and {start}, from which it goes on, has 2: that is kept."]
        if warned
        else []
    )


def test_an_alpha_and_targets_beside_a_start(tmp_path: Path) -> None:
    start = make_teacher(tmp_path / "start", 9)
    student = {"rank": 2, "alpha": 99, "targets": ["to_q"]}
    data = data_for(tmp_path, {"name": "grpo"}, start=str(start), student=student)
    assert start_warnings(prepare(build(TrainConfig, data))) == [
        f"student.alpha is 99.0, and {start}, from which it goes on, has 2.0: that is kept.",
        f"student.targets does nothing: those of {start}, from which it goes on, are kept.",
    ]


def test_merged_teachers_that_rounding_changes(tmp_path: Path) -> None:
    folders = {size: make_teacher(tmp_path / size, 1) for size in ("large", "small")}
    bank = AdapterBank(FakeConfig().open().transformer.bfloat16())
    for size, folder in folders.items():
        bank.load(size, folder, Role.TEACHER)
    tiny = {key: 1e-2 * tensor for key, tensor in bank.state_dict("small").items()}
    bank.load_state_dict("small", tiny)
    for size in folders:
        bank.fold(size)
    bank.create("student", Role.STUDENT, rank=2, alpha=2, targets=["to_q"])
    roles = Roles(bank, LoraStudent(bank, None), folded=folders)
    (sentence,) = rounding_warnings(roles, torch.bfloat16)
    assert sentence.startswith(f"{folders['small']}, merged by teachers.merged, is off by ")
    assert "rounded to torch.bfloat16, by the same amount at every step" in sentence


@pytest.mark.parametrize(
    ("algorithm", "teachers", "guidance"),
    [
        ({"name": "grpo"}, None, 3.0),
        ({"name": "opd"}, None, 3.0),
        ({"name": "opd", "student_guidance": 1.0}, None, 1.0),
        ({"name": "sft"}, None, 1.0),
        ({"name": "sft"}, 2.0, 1.0),
        ({"name": "sft"}, 1.0, 3.0),
    ],
)
def test_the_guidance_that_a_student_is_sampled_with(
    tmp_path: Path, algorithm: dict[str, Any], teachers: float | None, guidance: float
) -> None:
    data = data_for(tmp_path, algorithm, rollout={"steps": 4, "guidance": 3.0})
    for task in data["tasks"].values():
        task["teacher_guidance"] = teachers
    assert trained_guidance(build(TrainConfig, data)) == guidance
