"""Teachers that are whole networks, merged copies of adapters, and where they are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALGORITHMS, config_for
from sd3_runs import forget_the_end, lora, network, sd3_config
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.policy.network import NetworkFiles
from flowopd.training.methods import METHODS
from flowopd.training.ranks import Ranks
from flowopd.training.run import make_context, prepare, train
from flowopd.training.trainer import make_batches


def gradient(folder: Path, config: Any) -> Tensor:
    """Of a first update, away from the start where B is zero."""
    context = make_context(prepare(config), config.model.open(), Ranks(), folder)
    generator = torch.Generator().manual_seed(9)
    parameters = [parameter for _, parameter in context.roles.student.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    method = METHODS[config.algorithm.name](context)
    for pieces in method.updates(method.batch(make_batches(config, method).draw())):
        for piece in pieces:
            piece.loss.backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in parameters])


def test_a_network_teaches_as_the_same_weights_in_an_adapter_do(
    tmp_path: Path, tiny_pipeline_no_t5: Path
) -> None:
    """An adapter folded into a copy of the base is that adapter as a whole network."""
    from flowopd.policy.adapter_files import read_adapter
    from flowopd.policy.sd3 import SD3Config
    from flowopd.training.student import fold_in

    adapter = lora(tmp_path / "adapter", 1)
    base = SD3Config(path=str(tiny_pipeline_no_t5), dtype="fp32", device="cpu")
    whole = base.open_network(base.own_network(), torch.device("cpu"))
    fold_in(whole, read_adapter(adapter))
    whole.transformer.save_pretrained(tmp_path / "whole")
    other = lora(tmp_path / "other", 2)

    def of(teacher: Path, **changes: Any) -> Tensor:
        teachers = {"shapes": teacher, "words": other}
        config = sd3_config(tmp_path / "run", tiny_pipeline_no_t5, teachers, **changes)
        return gradient(tmp_path / "run", config)

    expected = of(adapter)
    torch.testing.assert_close(of(tmp_path / "whole"), expected, rtol=1e-4, atol=1e-6)
    host = of(tmp_path / "whole", teachers={"place": "host"})
    torch.testing.assert_close(host, expected, rtol=1e-4, atol=1e-6)
    merged = of(adapter, teachers={"merged": True})
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-6)
    assert (expected - of(other)).norm() > 0.1 * expected.norm()


def test_a_run_with_a_network_as_teacher_and_as_anchor_resumes_and_is_exported(
    tmp_path: Path, tiny_pipeline_no_t5: Path
) -> None:
    teachers = {"shapes": network(tmp_path / "a", 1), "words": lora(tmp_path / "b", 2)}
    algorithm = {"name": "opd", "anchor": {"adapter": str(network(tmp_path / "c", 3))}}
    algorithm["weighting"] = "uniform"
    config = sd3_config(
        tmp_path, tiny_pipeline_no_t5, teachers, algorithm=algorithm, teachers={"place": "host"}
    )
    plan = prepare(config)
    assert isinstance(plan.files[teachers["shapes"]], NetworkFiles)
    run = tmp_path / "run"
    train(plan, run)
    assert plan.files[teachers["shapes"]].identity in (run / "adapter" / "flowopd.json").read_text()
    before = forget_the_end(run)
    train(prepare(config), run)
    assert forget_the_end(run) == before


def test_settings_that_would_do_nothing_are_refused(
    tmp_path: Path, tiny_pipeline_no_t5: Path
) -> None:
    loras = {"shapes": lora(tmp_path / "a", 1)}
    networks = {"shapes": network(tmp_path / "n", 1)}

    def prepared(taught: dict[str, Path], **changes: Any) -> None:
        prepare(sd3_config(tmp_path, tiny_pipeline_no_t5, taught, **changes))

    with pytest.raises(FlowOPDError, match="place: host would do nothing: all teachers are adap"):
        prepared(loras, teachers={"place": "host"})
    with pytest.raises(FlowOPDError, match="merged would do nothing: no teacher and no anchor"):
        prepared(networks, teachers={"merged": True})
    with pytest.raises(FlowOPDError, match="which is a whole network; a LoRA goes on from an ada"):
        prepared(loras, start=str(networks["shapes"]))


@pytest.mark.usefixtures("fake_plugins")
def test_a_family_without_whole_networks_says_so(tmp_path: Path) -> None:
    config = config_for(tmp_path, ALGORITHMS["opd"], student={"full": True})
    with pytest.raises(FlowOPDError, match="which the family 'fake' has no students of"):
        prepare(config)
    whole = network(tmp_path / "n", 1)
    tasks = {
        name: task.model_copy(update={"teacher": whole}) for name, task in config.tasks.items()
    }
    plain = config_for(tmp_path, ALGORITHMS["opd"]).model_copy(update={"tasks": tasks})
    with pytest.raises(FlowOPDError, match="family fake has no whole networks as teachers"):
        prepare(plain)
