"""Warnings of adapters that are used otherwise than they were trained."""

from pathlib import Path
from typing import Any

import pytest

from fakes import FakeTransformer
from flowopd.adapters import adapter_warnings
from flowopd.policy.adapter_files import AdapterFiles, read_adapter
from flowopd.policy.bank import AdapterBank, Role

TRAINED = {"t5": True, "t5_length": 256}


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    bank = AdapterBank(FakeTransformer(), settings=TRAINED)
    bank.create("student", Role.STUDENT, rank=1, alpha=1, targets=["to_q"])
    bank.save("student", tmp_path / "a", metadata={"guidance": 3.0}, lora_prefix=None)
    return read_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("guidance", "settings", "expected"),
    [
        (3.0, TRAINED, []),
        (3.0, {}, []),
        (3.0, {**TRAINED, "revision": "v2"}, []),
        (1.0, TRAINED, ["guidance 3, and is sampled with 1."]),
        (3.0, {**TRAINED, "t5": False}, ["t5: true, and is used with t5: false."]),
        (
            1.0,
            {**TRAINED, "t5_length": 77},
            ["guidance 3, ", "t5_length: 256, and is used with t5_length: 77."],
        ),
    ],
)
def test_what_differs_is_named(
    files: AdapterFiles, guidance: float, settings: dict[str, Any], expected: list[str]
) -> None:
    found = adapter_warnings(files, guidance=guidance, settings=settings)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))
