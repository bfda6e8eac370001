"""Whole networks beside the base: found, refused, kept on the host, opened in place of the base."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowopd.adapters import Switch, check_adapters
from flowopd.errors import FlowOPDError
from flowopd.policy import network_hub
from flowopd.policy.network import NetworkFiles, Visitors, find_network, read_network
from flowopd.policy.network_saving import write_network
from flowopd.policy.sd3 import SD3Config
from tiny_sd3 import LATENT_SIZE, save_tiny_pipeline, tiny_transformer


@pytest.fixture(scope="session")
def teacher_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of other weights than `tiny_pipeline`."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("teacher") / "pipeline", t5=False, seed=50)


@pytest.fixture
def config(tiny_pipeline_no_t5: Path) -> SD3Config:
    return SD3Config(path=str(tiny_pipeline_no_t5), dtype="fp32", device="cpu")


def velocity(model: object, config: SD3Config) -> Tensor:
    x = torch.randn(2, 16, LATENT_SIZE, LATENT_SIZE, generator=torch.Generator().manual_seed(0))
    prompts = config.open().encode_prompts(["a red circle", "two stars"])
    with torch.no_grad():
        return model.velocity(x, torch.tensor([0.9, 0.3]), prompts)


def test_a_pipeline_a_transformer_and_a_saved_one_are_networks(
    teacher_pipeline: Path, config: SD3Config, tmp_path: Path
) -> None:
    tiny_transformer(50).save_pretrained(tmp_path / "alone")
    found = [config.network(place) for place in (teacher_pipeline, tmp_path / "alone")]
    assert found[0].identity == found[1].identity != config.fingerprint()
    assert found[0].folder == teacher_pipeline / "transformer"
    own = velocity(config.open_network(found[0], torch.device("cpu")), config)
    pipeline = config.model_copy(update={"path": str(teacher_pipeline)}).open()
    assert torch.equal(own, velocity(pipeline, config))
    assert not torch.equal(own, velocity(config.open(), config))


def test_a_larger_network_over_the_same_latents_can_teach(
    config: SD3Config, tmp_path: Path
) -> None:
    larger = tiny_transformer(3)
    settings = {**larger.config, "num_layers": 4, "num_attention_heads": 4, "qk_norm": None}
    settings |= {"caption_projection_dim": 64, "dual_attention_layers": ()}
    type(larger)(**settings).save_pretrained(tmp_path / "large")
    files = config.network(tmp_path / "large")
    assert velocity(config.open_network(files, torch.device("cpu")), config).isfinite().all()


@pytest.mark.parametrize("key", ["in_channels", "joint_attention_dim", "pooled_projection_dim"])
def test_a_network_over_other_latents_or_prompts_is_refused(
    config: SD3Config, tmp_path: Path, key: str
) -> None:
    tiny_transformer(3).save_pretrained(tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {key: settings[key] + 1}))
    with pytest.raises(FlowOPDError, match=rf"other has {key} \d+, and the base has \d+"):
        config.network(tmp_path / "other")


def test_another_autoencoder_is_refused(config: SD3Config, tmp_path: Path) -> None:
    tiny_transformer(3).save_pretrained(tmp_path / "other" / "transformer")
    vae = json.loads((Path(config.path) / "vae" / "config.json").read_text())
    (tmp_path / "other" / "vae").mkdir()
    text = json.dumps(vae | {"shift_factor": 0.2})
    (tmp_path / "other" / "vae" / "config.json").write_text(text)
    with pytest.raises(FlowOPDError, match=r"has shift_factor 0\.2, and the base has 0\.0609"):
        config.network(tmp_path / "other")


def test_what_holds_no_network_is_a_sentence(config: SD3Config, tmp_path: Path) -> None:
    assert find_network(tmp_path) is None
    with pytest.raises(FlowOPDError, match=r"holds no network: there is no config\.json"):
        config.network(tmp_path)
    tiny_transformer(3).save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(FlowOPDError, match="are missing"):
        config.network(tmp_path)


def test_evaluation_and_sampling_use_a_network_in_place_of_the_base(
    teacher_pipeline: Path, config: SD3Config
) -> None:
    adapters = check_adapters(config, {"other": teacher_pipeline})
    assert isinstance(adapters.files["other"], NetworkFiles)
    model = config.open()
    before = velocity(model, config)
    switch = Switch(model, adapters)
    with switch.using("other"):
        inside = velocity(model, config)
    expected = velocity(SD3Config(path=str(teacher_pipeline), dtype="fp32").open(), config)
    assert torch.equal(inside, expected)
    assert torch.equal(velocity(model, config), before)


def test_a_transformer_in_place_of_the_pipelines_own(
    teacher_pipeline: Path, config: SD3Config, tmp_path: Path
) -> None:
    replaced = config.model_copy(update={"transformer": str(teacher_pipeline)})
    replaced.check()
    assert replaced.fingerprint() == config.network(teacher_pipeline).identity
    assert replaced.open().fingerprint == replaced.fingerprint()
    other = SD3Config(path=str(teacher_pipeline), dtype="fp32").open()
    assert torch.equal(velocity(replaced.open(), config), velocity(other, config))
    with pytest.raises(FlowOPDError, match="holds no network"):
        config.model_copy(update={"transformer": str(tmp_path)}).check()


class Traced:
    """In place of a network: notes where it is."""

    here = False

    def bring(self, device: torch.device) -> None:
        assert not self.here
        self.here = True

    def release(self) -> None:
        assert self.here
        self.here = False


def test_networks_on_the_host_take_turns_on_the_device() -> None:
    networks = [Traced() for _ in range(3)]
    visitors = Visitors(torch.device("cuda"), places=2)
    for number, expected in ((0, "100"), (1, "110"), (0, "110"), (2, "101"), (2, "101")):
        visitors.bring(networks[number])
        assert "".join(str(int(network.here)) for network in networks) == expected


def test_a_visit_changes_no_byte(config: SD3Config, teacher_pipeline: Path) -> None:
    network = config.open_network(config.network(teacher_pipeline), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in network.tensors.items()}
    network.bring(torch.device("cpu"))
    during = velocity(network, config)
    network.release()
    assert torch.equal(velocity(network, config), during)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.tensors.items())


@pytest.mark.parametrize("largest", [10_000_000_000, 20_000])
def test_a_saved_network_opens_in_diffusers(tmp_path: Path, largest: int) -> None:
    from diffusers import SD3Transformer2DModel

    transformer = tiny_transformer(8)
    config = {"_class_name": "SD3Transformer2DModel", **transformer.config}
    write_network(tmp_path / "n", config, transformer.state_dict(), {"guidance": 4.5}, largest)
    assert (len(list((tmp_path / "n").glob("*.safetensors"))) > 1) == (largest < 1e6)
    opened = SD3Transformer2DModel.from_pretrained(tmp_path / "n")
    for key, tensor in transformer.state_dict().items():
        assert torch.equal(opened.state_dict()[key], tensor), key
    assert read_network(tmp_path / "n").notes == {"guidance": 4.5}
    broken = transformer.state_dict() | {"proj_out.bias": torch.tensor([float("nan")])}
    with pytest.raises(FlowOPDError, match=r"not saved .* 1 of its tensors .*proj_out\.bias"):
        write_network(tmp_path / "n", config, broken, {})
    assert read_network(tmp_path / "n").notes == {"guidance": 4.5}


def test_a_network_on_the_hub_is_looked_at_first_and_fetched_when_opened(
    teacher_pipeline: Path, config: SD3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fnmatch
    import shutil

    cache, asked = tmp_path / "snapshots" / "c0ffee", list[tuple[str, str]]()

    def snapshot_download(name: str, *, revision: str, allow_patterns: list, **_: object) -> str:
        asked.append((name, revision))
        for file in teacher_pipeline.rglob("*"):
            inside = str(file.relative_to(teacher_pipeline))
            if any(fnmatch.fnmatch(inside, pattern) for pattern in allow_patterns):
                (cache / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / inside)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    network_hub._snapshot.cache_clear()
    files = check_adapters(config, {"t": Path("org/teacher@v1")}).files["t"]
    assert isinstance(files, NetworkFiles)
    assert files.origin == {"hub": "org/teacher@v1", "commit": "c0ffee"}
    assert not list(cache.rglob("*.safetensors"))
    opened = config.open_network(files, torch.device("cpu"))
    assert asked == [("org/teacher", "v1"), ("org/teacher", "c0ffee")]
    assert [file.parent.name for file in cache.rglob("*.safetensors")] == ["transformer"]
    expected = SD3Config(path=str(teacher_pipeline), dtype="fp32").open()
    assert torch.equal(velocity(opened, config), velocity(expected, config))
    network_hub._snapshot.cache_clear()


def test_a_transformer_on_the_hub_in_the_pipelines_place_is_to_be_fetched(
    config: SD3Config,
) -> None:
    with pytest.raises(FlowOPDError, match="no folder; where it is on the hub, fetch it"):
        config.model_copy(update={"transformer": "org/student"}).check()
