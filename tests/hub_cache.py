"""A cache of the Hugging Face hub as huggingface_hub keeps it, filled by hand."""

import shutil
from pathlib import Path

import pytest

from flowopd.policy import adapter_hub, network_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubCache:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(
        self, repository: str, files: Path, *, revision: str = "main", commit: str = COMMIT
    ) -> Path:
        """A repository whose revision is this commit, with copies of these files."""
        place = self.folder / f"models--{repository.replace('/', '--')}"
        reference = place / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
        return Path(shutil.copytree(files, place / "snapshots" / commit))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """The hub without a network: what the test puts into its cache."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    adapter_hub._fetched.cache_clear()
    network_hub._snapshot.cache_clear()
    return HubCache(cache)
