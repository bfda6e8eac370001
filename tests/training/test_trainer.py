"""The trainer: what it learns, what it writes, and that it goes on where it was."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALGORITHMS, config_for, data_for, make, make_teacher

from flowopd.config import build
from flowopd.errors import FlowOPDError
from flowopd.files import sha256
from flowopd.policy.adapter_files import read_adapter
from flowopd.training.checkpoint import Checkpoints
from flowopd.training.config import TrainConfig
from flowopd.training.interrupt import Interrupted
from flowopd.training.methods.sft import SFT
from flowopd.training.record import read_lines
from flowopd.training.run import prepare, train
from flowopd.training.trainer import Trainer, learning_rate

pytestmark = pytest.mark.usefixtures("fake_plugins")
PROBE = {
    "every": 3,
    "scorers": ["bright"],
    "sampling": {"steps": 2, "guidance": 1.0},
    "panel": 4,
}


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    inner = Trainer.make_update

    def dying(self: Trainer, pieces: Any) -> None:
        if self.context.update == update:
            raise Killed
        inner(self, pieces)

    monkeypatch.setattr(Trainer, "make_update", dying)


def train_killed_at(
    monkeypatch: pytest.MonkeyPatch, update: int, config: TrainConfig, folder: Path
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, update)
        with pytest.raises(Killed):
            train(prepare(config), folder)


def adapter_digest(folder: Path) -> str:
    return sha256(folder / "adapter" / "adapter_model.safetensors")


def probed(data: dict[str, Any]) -> dict[str, Any]:
    prompts = [{"path": task["prompts"]} for task in data["tasks"].values()]
    return data | {"probe": {**PROBE, "prompts": prompts}}


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_killed_and_resumed_is_the_same_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_for(tmp_path, ALGORITHMS[name], ema={"decay": 0.5, "every": 1})
    config = build(TrainConfig, probed(data))
    whole = train(prepare(config), tmp_path / "whole")
    train_killed_at(monkeypatch, 3, config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "adapter").exists()
    resumed = train(prepare(config), tmp_path / "killed")
    assert adapter_digest(tmp_path / "killed") == adapter_digest(tmp_path / "whole")
    assert (resumed.images, resumed.forwards) == (whole.images, whole.forwards)
    for file in ("log.jsonl", "probe.jsonl"):
        ours, theirs = (read_lines(tmp_path / run / file) for run in ("whole", "killed"))
        for one, other in zip(ours, theirs, strict=True):
            assert one | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.parametrize("changes", [{"mixing": "alternating"}, {"shares": "adaptive"}])
def test_batches_resume_too(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = {"prompts": 4, "images_per_prompt": 1, "micro": 3, **changes}
    config = config_for(tmp_path, ALGORITHMS["opd"], batch=batch)
    train(prepare(config), tmp_path / "whole")
    train_killed_at(monkeypatch, 5, config, tmp_path / "killed")
    train(prepare(config), tmp_path / "killed")
    assert adapter_digest(tmp_path / "killed") == adapter_digest(tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(tmp_path, ALGORITHMS["opd"])
    train(prepare(config), tmp_path / "whole")
    train_killed_at(monkeypatch, 5, config, tmp_path / "killed")
    newest = tmp_path / "killed" / "checkpoints" / "update-00000004"
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "state.safetensors").write_bytes(bytes(content))
    train(prepare(config), tmp_path / "killed")
    assert "update-00000004 is damaged" in capsys.readouterr().err
    assert adapter_digest(tmp_path / "killed") == adapter_digest(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_update_and_saves(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path, ALGORITHMS["opd"], checkpoint={"every": 100})
    train(prepare(config), tmp_path / "whole")
    inner = Trainer.make_update

    def signalled(self: Trainer, pieces: Any) -> None:
        if self.context.update == 2:
            os.kill(os.getpid(), number)
        inner(self, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "make_update", signalled)
        with pytest.raises(Interrupted, match=r"after update 3 of 6; everything is saved"):
            train(prepare(config), tmp_path / "ended")
    assert (tmp_path / "ended" / "checkpoints" / "update-00000003").is_dir()
    train(prepare(config), tmp_path / "ended")
    assert adapter_digest(tmp_path / "ended") == adapter_digest(tmp_path / "whole")


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    train(prepare(config_for(tmp_path, ALGORITHMS["opd"])), tmp_path / "run")
    other = config_for(tmp_path, ALGORITHMS["opd"], optimizer={"lr": 0.02})
    with pytest.raises(FlowOPDError, match="is of another recipe"):
        train(prepare(other), tmp_path / "run")
    kept = config_for(
        tmp_path,
        ALGORITHMS["opd"],
        checkpoint={"every": 1},
        interference_every=2,
        scorers=["bright", "picky"],
    )
    train(prepare(kept), tmp_path / "run")


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_more_updates_go_on_from_fewer(tmp_path: Path, name: str) -> None:
    whole = config_for(tmp_path, ALGORITHMS[name])
    outcome = train(prepare(whole), tmp_path / "whole")
    train(prepare(whole.model_copy(update={"updates": 3})), tmp_path / "run")
    before = adapter_digest(tmp_path / "run")
    longer = train(prepare(whole), tmp_path / "run")
    assert adapter_digest(tmp_path / "run") == adapter_digest(tmp_path / "whole") != before
    assert (longer.images, longer.forwards) == (outcome.images, outcome.forwards)


def test_a_run_that_was_stopped_can_end_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = config_for(tmp_path, ALGORITHMS["opd"])
    short = long.model_copy(update={"updates": 4})
    train(prepare(short), tmp_path / "short")
    train_killed_at(monkeypatch, 5, long, tmp_path / "stopped")
    train(prepare(short), tmp_path / "stopped")
    assert adapter_digest(tmp_path / "stopped") == adapter_digest(tmp_path / "short")
    with pytest.raises(FlowOPDError, match="is of update 4, and updates is 2"):
        train(prepare(long.model_copy(update={"updates": 2})), tmp_path / "stopped")


def test_with_a_decay_more_updates_are_another_recipe(tmp_path: Path) -> None:
    config = config_for(tmp_path, ALGORITHMS["opd"], optimizer={"decay": "cosine"})
    train(prepare(config), tmp_path / "run")
    with pytest.raises(FlowOPDError, match="is of another recipe"):
        train(prepare(config.model_copy(update={"updates": 8})), tmp_path / "run")


@pytest.mark.parametrize("place", ["pool", "checkpoint", "update"])
def test_what_was_drawn_before_the_first_update_is_counted_once(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path, ALGORITHMS["sft"])
    whole = train(prepare(config), tmp_path / "whole")

    def dying(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if place == "pool":
            inner, drawn = SFT._fill, []

            def fill(self: SFT, task: str) -> None:
                drawn.append(inner(self, task) if not drawn else dying())

            patch.setattr(SFT, "_fill", fill)
        elif place == "checkpoint":
            patch.setattr(Checkpoints, "save", dying)
        else:
            kill_at(patch, 1)
        with pytest.raises(Killed):
            train(prepare(config), tmp_path / "killed")
    again = train(prepare(config), tmp_path / "killed")
    assert (again.images, again.forwards) == (whole.images, whole.forwards)


def test_a_changed_teacher_is_another_recipe(tmp_path: Path) -> None:
    config = config_for(tmp_path, ALGORITHMS["opd"])
    train(prepare(config), tmp_path / "run")
    make_teacher(tmp_path / "teacher-words", seed=50)
    with pytest.raises(FlowOPDError, match="is of another recipe"):
        train(prepare(config), tmp_path / "run")


def test_the_student_learns_both_teachers(tmp_path: Path) -> None:
    """Each on its own task; one linear adapter cannot be both, so routing has to be seen."""
    data = data_for(tmp_path, {"name": "opd", "weighting": "uniform"})
    same = str(make_teacher(tmp_path / "one", seed=5))
    for task in data["tasks"].values():
        task["teacher"] = same
    data |= {"updates": 120, "optimizer": {"lr": 0.02, "weight_decay": 0.0}}
    train(prepare(build(TrainConfig, data)), tmp_path / "run")
    lines = read_lines(tmp_path / "run" / "log.jsonl")
    for task in ("shapes", "words"):
        first, last = (lines[k][f"task/{task}/velocity_error"] for k in (0, -1))
        assert last < 0.1 * first


def test_the_adapter_says_what_it_was_made_from(tmp_path: Path) -> None:
    config = config_for(tmp_path, ALGORITHMS["opd"])
    train(prepare(config), tmp_path / "run")
    notes = read_adapter(tmp_path / "run" / "adapter").notes
    assert notes["guidance"] == 1.0
    assert notes["updates"] == 6
    teacher = read_adapter(tmp_path / "teacher-words")
    assert notes["tasks"]["words"]["teacher"] == teacher.sha256
    assert notes["recipe"]["algorithm"]["name"] == "opd"


def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    plain = config_for(tmp_path, ALGORITHMS["opd"])
    averaged = config_for(tmp_path, ALGORITHMS["opd"], ema={"decay": 0.9, "every": 1})
    train(prepare(plain), tmp_path / "plain")
    train(prepare(averaged), tmp_path / "averaged")
    assert adapter_digest(tmp_path / "plain") != adapter_digest(tmp_path / "averaged")
    last, state = "checkpoints/update-00000006", "state.safetensors"
    from safetensors.torch import load_file

    one, other = (load_file(tmp_path / run / last / state) for run in ("plain", "averaged"))
    for key in one:
        if key.startswith("student/"):
            assert torch.equal(one[key], other[key])


def test_it_starts_from_an_adapter(tmp_path: Path) -> None:
    start = make_teacher(tmp_path / "start", seed=4, rank=1)
    config = config_for(tmp_path, ALGORITHMS["opd"], start=str(start), optimizer={"lr": 1e-12})
    train(prepare(config), tmp_path / "run")
    trained, began = (read_adapter(path) for path in (tmp_path / "run" / "adapter", start))
    assert trained.config.rank == 1
    for key, tensor in began.tensors.items():
        torch.testing.assert_close(trained.tensors[key], tensor, atol=1e-6, rtol=0)


def test_probes_do_not_disturb_the_run(tmp_path: Path) -> None:
    data = data_for(tmp_path, ALGORITHMS["grpo"])
    train(prepare(build(TrainConfig, data)), tmp_path / "plain")
    train(prepare(build(TrainConfig, probed(data))), tmp_path / "probed")
    assert adapter_digest(tmp_path / "plain") == adapter_digest(tmp_path / "probed")
    probes = read_lines(tmp_path / "probed" / "probe.jsonl")
    assert [line["update"] for line in probes] == [0, 3, 6]
    assert set(probes[0]["scores"]) == {"bright", "level"}
    assert set(probes[0]["detectors"]) == {"edges", "entropy", "grid", "dark"}
    assert [path.name for path in sorted((tmp_path / "probed" / "panels").iterdir())] == [
        "000000.png",
        "000003.png",
        "000006.png",
    ]


def test_the_log_has_what_one_watches(tmp_path: Path) -> None:
    data = data_for(tmp_path, ALGORITHMS["grpo"], interference_every=2)
    train(prepare(build(TrainConfig, data)), tmp_path / "run")
    lines = read_lines(tmp_path / "run" / "log.jsonl")
    assert [line["update"] for line in lines] == list(range(1, 7))
    assert [line["images"] for line in lines] == [8 * n for n in range(1, 7)]
    wanted = {"loss", "lr", "grad_norm", "ratio", "clip_share", "zero_spread", "reward/level"}
    assert wanted | {"task/words/reward", "task/shapes/reward"} <= set(lines[0])
    cosines = [line.get("interference/shapes|words") for line in lines]
    assert [cosine is not None for cosine in cosines] == [True, False] * 3
    assert all(abs(cosine) <= 1 for cosine in cosines if cosine is not None)


@pytest.mark.parametrize("name", ["opd", "stored", "nft", "sft"])
def test_images_are_counted_in_the_update_that_uses_them(tmp_path: Path, name: str) -> None:
    train(prepare(config_for(tmp_path, ALGORITHMS[name])), tmp_path / "run")
    images = [line["images"] for line in read_lines(tmp_path / "run" / "log.jsonl")]
    assert images == ([20] * 6 if name == "sft" else [8 * n for n in range(1, 7)])


def test_interference_is_the_cosine_of_the_tasks_own_gradients(tmp_path: Path) -> None:
    config = config_for(tmp_path, {"name": "opd"}, interference_every=1, updates=1)
    train(prepare(config), tmp_path / "run")
    cosine = read_lines(tmp_path / "run" / "log.jsonl")[0]["interference/shapes|words"]
    made = make(tmp_path, config)
    with torch.no_grad():  # the run began where B = 0
        from flowopd.policy.lora import B_SUFFIX

        bank = made.context.bank
        fresh = config.model.open()
        del fresh
        for key, tensor in bank.state_dict(bank.student or "").items():
            saved = tmp_path / "run" / "checkpoints" / "update-00000000" / "state.safetensors"
            from safetensors.torch import load_file

            tensor.copy_(load_file(saved)[f"student/{key}"])
            assert not key.endswith(B_SUFFIX) or not tensor.any()
    parts = [
        made.gradients([sample for sample in made.samples if sample.task == task])[0]
        for task in ("shapes", "words")
    ]
    expected = torch.nn.functional.cosine_similarity(parts[0], parts[1], dim=0)
    assert cosine == pytest.approx(float(expected), abs=1e-5)


def test_adaptive_shares_are_logged(tmp_path: Path) -> None:
    batch = {"prompts": 4, "micro": 4, "shares": "adaptive"}
    config = config_for(tmp_path, ALGORITHMS["opd"], batch=batch)
    train(prepare(config), tmp_path / "run")
    line = read_lines(tmp_path / "run" / "log.jsonl")[-1]
    assert line["task/shapes/share"] + line["task/words/share"] == pytest.approx(1)


def test_learning_rates() -> None:
    class Stub:
        class optimizer:  # noqa: N801
            lr, warmup, decay = 1.0, 4, "cosine"

        updates = 10

    rates = [learning_rate(Stub, update) for update in range(10)]  # type: ignore[arg-type]
    assert rates[0] == pytest.approx(0.25)
    assert rates[5] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    Stub.optimizer.decay = "none"
    assert learning_rate(Stub, 9) == 1.0  # type: ignore[arg-type]


def test_tensorboard_by_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = config_for(tmp_path, ALGORITHMS["opd"], trackers=["tensorboard"])
    train(prepare(config), tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, ALGORITHMS["opd"], trackers=["tensorbord"])
    with pytest.raises(FlowOPDError, match="There is no tracker 'tensorbord'"):
        prepare(config)


def test_a_missing_teacher_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    data = data_for(tmp_path, ALGORITHMS["opd"])
    data["tasks"]["words"]["teacher"] = str(tmp_path / "nowhere")
    config = build(TrainConfig, data)
    with pytest.raises(FlowOPDError, match=r"No adapter at .*nowhere"):
        prepare(config)
    plan = prepare(config, pending=[tmp_path / "nowhere"])
    with pytest.raises(FlowOPDError, match="is not there yet"):
        train(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_copy_of_the_start_is_no_teacher(tmp_path: Path) -> None:
    data = data_for(tmp_path, ALGORITHMS["opd"])
    for name, task in data["tasks"].items():
        task["teacher"] = str(make_teacher(tmp_path / f"copy-{name}", seed=5))
    data["start"] = str(make_teacher(tmp_path / "start", seed=5))
    with pytest.raises(FlowOPDError, match="would be its own teacher"):
        prepare(build(TrainConfig, data))


def test_lines_are_whole_json(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps({"update": 1}) + "\n" + '{"update": 2, "lo')
    assert read_lines(file) == [{"update": 1}]
