"""Pre-training: deterministic, resumable bit for bit, and safe against torn checkpoints."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from flowopd.errors import FlowOPDError
from flowopd.flow.schedule import shifted
from flowopd.world.assets import load_base, read_card, save_base
from flowopd.world.muon import orthogonalised
from flowopd.world.network import WorldNetwork, fresh_network, to_images, to_latents
from flowopd.world.pretrain import (
    LossLog,
    Pretraining,
    batch,
    checkpoints,
    flow_matching_loss,
    start,
    train,
    training_record,
)
from flowopd.world.recipe import PretrainConfig, Stage, learning_rate
from flowopd.world.render import to_uint8

TINY = PretrainConfig(
    steps=6, batch_size=4, warmup=2, decay=0.5, compile=False, checkpoint_every=2, keep=2
)


def run_to(
    folder: Path, config: PretrainConfig = TINY, stop_after: int | None = None
) -> Pretraining:
    """Runs to the end, or is dropped in the middle as a killed process would be."""
    run = start(config, folder)
    for _ in train(run, folder):
        if run.step == stop_after:
            break
    return run


def same(a: WorldNetwork, b: WorldNetwork) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[key]) for key, value in a.state_dict().items())


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = run_to(tmp_path / "whole")
    run_to(tmp_path / "killed", stop_after=3)  # the last checkpoint is of step 2
    resumed = run_to(tmp_path / "killed")
    assert same(whole.network, resumed.network)
    assert same(whole.average, resumed.average)
    assert not same(whole.network, fresh_network(TINY.seed))
    assert [path.name for path in checkpoints(tmp_path / "whole")] == [
        "step-0000004.pt",
        "step-0000006.pt",
    ]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, caplog) -> None:
    whole = run_to(tmp_path / "whole")
    run_to(tmp_path / "torn", stop_after=5)
    newest = checkpoints(tmp_path / "torn")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run_to(tmp_path / "torn")
    assert same(whole.network, resumed.network)
    assert "step-0000004.pt is not a whole checkpoint" in caplog.text


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    whole = run_to(tmp_path)
    again = run_to(tmp_path)
    assert again.step == TINY.steps
    assert same(whole.average, again.average)


def test_the_log_goes_on_without_repeating_itself(tmp_path: Path) -> None:
    for stop_after in (5, None):  # the last checkpoint before 5 is of step 4
        run = start(TINY, tmp_path)
        losses = LossLog(tmp_path / "log.jsonl", run, every=1)
        for loss in train(run, tmp_path):
            losses.add(loss)
            if run.step == stop_after:
                break
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["images"] for row in rows] == [4, 8, 12, 16, 20, 24]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_another_recipe_is_refused_by_name(tmp_path: Path) -> None:
    run_to(tmp_path, stop_after=2)
    other = TINY.model_copy(update={"seed": 1})
    with pytest.raises(FlowOPDError, match="another recipe: seed was 0, now 1"):
        run_to(tmp_path, other)


def test_a_run_can_be_prolonged_until_its_rate_falls(tmp_path: Path) -> None:
    longer = TINY.model_copy(update={"steps": 8})
    run_to(tmp_path / "short", stop_after=2)
    prolonged = run_to(tmp_path / "short", longer)
    assert same(prolonged.network, run_to(tmp_path / "long", longer).network)
    run_to(tmp_path / "late")
    with pytest.raises(FlowOPDError, match="steps was 6, now 8"):
        run_to(tmp_path / "late", longer)


def test_a_step_learns(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"steps": 12, "decay": 0.0, "batch_size": 8})
    losses = list(train(start(config, tmp_path), tmp_path))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_learning_rate() -> None:
    config = PretrainConfig(steps=100, warmup=10, decay=0.25, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in (0, 4, 9, 50, 75, 90, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.4, 0.04])


def test_stages_follow_each_other() -> None:
    config = PretrainConfig(stages=(Stage(), Stage(start=10, shift=3.0), Stage(start=20)))
    assert [config.stage(step).start for step in (0, 9, 10, 19, 20, 500)] == [0, 0, 10, 10, 20, 20]
    for wrong in ((), (Stage(start=1),), (Stage(), Stage(start=5), Stage(start=5))):
        with pytest.raises(ValidationError, match="begin at step 0"):
            PretrainConfig(stages=wrong)
    with pytest.raises(ValidationError, match="tags out of"):
        Stage(crowded=("poems",))


def test_a_shifted_stage_trains_at_higher_noise() -> None:
    """The same draws, each moved as the sampling grid is; a spread moves them apart."""
    x0, ids = batch(TINY, 0)
    seen: list[torch.Tensor] = []

    def velocity(x: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return x

    for stage in (Stage(), Stage(shift=3.0), Stage(spread=2.0)):
        flow_matching_loss(velocity, x0, ids, seed=0, stage=stage)
    assert torch.allclose(shifted(seen[0], 3.0), seen[1], atol=1e-6)
    assert torch.allclose(2 * torch.logit(seen[0]), torch.logit(seen[2]), atol=1e-4)


def test_a_stage_says_how_crowded_scenes_are() -> None:
    def shares(stage: Stage) -> Counter[str]:
        rng = np.random.default_rng(0)
        return Counter(training_record(stage, rng).tag for _ in range(4000))

    even = shares(Stage(text_share=0.2))
    assert even["text"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert even["colors"] / 4000 == pytest.approx(0.8 / 6, abs=0.03)
    crowded = shares(
        Stage(text_share=0.2, crowded_share=0.9, crowded=("position", "position", "counting"))
    )
    assert crowded["colors"] / 4000 == pytest.approx(0.8 * 0.1 / 2, abs=0.02)
    assert crowded["position"] / 4000 == pytest.approx(0.8 * 0.9 * 2 / 3, abs=0.03)
    assert crowded["two_object"] == 0


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    for a, b in zip(batch(TINY, 3), batch(TINY, 3), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(batch(TINY, 3)[0], batch(TINY, 4)[0])


def test_caption_dropout_empties_prompts() -> None:
    _, ids = batch(TINY.model_copy(update={"caption_dropout": 1.0}), 0)
    assert not ids.any()
    _, ids = batch(TINY.model_copy(update={"caption_dropout": 0.0}), 0)
    assert ids.any(dim=1).all()


def test_the_loss_is_zero_for_the_true_velocity() -> None:
    """(10): with a single image x0, v(x_t, t) = (x_t - x0) / t."""
    x0, ids = batch(TINY, 0)
    exact = lambda x, t, ids: (x - x0) / t[:, None, None, None]  # noqa: E731
    assert flow_matching_loss(exact, x0, ids, seed=0, stage=Stage()).item() < 1e-8
    assert flow_matching_loss(lambda x, t, ids: x * 0, x0, ids, seed=0, stage=Stage()).item() > 1


def test_muon_moves_singular_values_to_one() -> None:
    matrices = torch.randn(3, 24, 96, generator=torch.Generator().manual_seed(0))
    for stack in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(stack))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_latents_and_images_are_each_others_inverse() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = to_latents(images)
    assert latents.shape == (2, 48, 8, 8)
    assert torch.allclose(to_images(latents), images, atol=1e-6)


def test_a_base_is_checked_before_it_is_loaded(tmp_path: Path) -> None:
    network = fresh_network(0)
    path = save_base(network, tmp_path, {"seed": 0})
    assert same(load_base(tmp_path), network)
    assert read_card(tmp_path)["recipe"] == {"seed": 0}
    tampered = bytearray(path.read_bytes())
    tampered[-1] ^= 1
    path.write_bytes(tampered)
    with pytest.raises(FlowOPDError, match="its SHA-256 differs"):
        load_base(tmp_path)
    path.unlink()
    with pytest.raises(FlowOPDError, match=r"base\.safetensors is missing"):
        load_base(tmp_path)


def test_to_uint8_rounds_and_clips() -> None:
    assert to_uint8(np.array([-0.1, 0.5, 1.2])).tolist() == [0, 128, 255]
