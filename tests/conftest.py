"""Fixtures that more than one folder of tests uses."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test asks the hub


def pytest_configure(config: pytest.Config) -> None:
    """One thread a worker: several workers with all threads each wait for one another."""
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD3.5-shaped pipeline folder with T5. Read it, never write to it."""
    from tiny_sd3 import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny_sd3") / "pipeline")


@pytest.fixture(scope="session")
def tiny_pipeline_no_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without T5."""
    from tiny_sd3 import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny_sd3_no_t5") / "pipeline", t5=False)
