"""The benchmark of an update: all variants do the same work, and what they do is counted right."""

import json
from pathlib import Path

import pytest
import torch

from flowopd.planning.outline import bytes_in
from flowopd.policy.sd3 import SD3Model
from flowopd.tasks.batches import Sample
from opd_compare import cosines
from opd_measure import Forwards, growth
from opd_profile import BACKWARD, profile
from opd_setup import TASKS, VARIANTS, Material, Options, recipe, write_material
from opd_sides import Ours, Released, Side, load
from opd_step import build_sides, main
from random_sd3 import RandomSD3Config

GUIDED = 2
"""Forwards of one velocity."""
STEPS = 4
OPTIONS = Options(size="smallest", steps=STEPS)
EAGER = [name for name, variant in VARIANTS.items() if not variant.compiled]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return write_material(tmp_path_factory.mktemp("opd_step"), OPTIONS)


@pytest.fixture(scope="module")
def sides(material: Material) -> dict[str, Side]:
    return build_sides(["a", *EAGER], OPTIONS, material)


@pytest.fixture(scope="module")
def samples(sides: dict[str, Side]) -> list[Sample]:
    ours = sides["c"]
    assert isinstance(ours, Ours)
    return ours.draw()


def forwards_of(side: Side, samples: list[Sample]) -> float:
    """Of one update, by image."""
    with Forwards(side.networks().values()) as counted:
        side.update(samples)
    return counted.rows / len(samples)


class TestTheSameWork:
    def test_gradients_point_the_same_way(
        self, sides: dict[str, Side], samples: list[Sample]
    ) -> None:
        found = cosines(sides, samples)
        assert set(found) == {"a", "b", "c", "f"}
        assert min(found.values()) > 0.99999

    def test_gradients_have_the_same_keys_and_sizes(
        self, sides: dict[str, Side], samples: list[Sample]
    ) -> None:
        released, fused = (sides[name].gradients(samples) for name in "ac")
        assert set(released) == set(fused)
        for key, gradient in fused.items():
            torch.testing.assert_close(released[key], gradient, rtol=1e-3, atol=1e-7)
        empty = {key for key, gradient in fused.items() if not gradient.any()}
        last_prompt_queries = "transformer_blocks.1.attn.add_q_proj"  # their output is not used
        assert empty == {f"{last_prompt_queries}.lora_{half}.weight" for half in "AB"}

    def test_a_gradient_leaves_the_student_as_it_was(
        self, sides: dict[str, Side], samples: list[Sample]
    ) -> None:
        first = sides["a"].gradients(samples)
        second = sides["a"].gradients(samples)
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_teachers_by_autocast_are_the_same_in_float32(
        self, material: Material, sides: dict[str, Side], samples: list[Sample]
    ) -> None:
        options = Options(size="smallest", steps=STEPS, frozen_in="autocast")
        found = cosines({"a": sides["a"], "c": Released(options, material)}, samples)
        assert found["c"] == pytest.approx(1, abs=1e-9)


class TestForwards:
    """T·F + K·(F_teacher + n_a F_anchor), against T·F + T·(F + F_teacher + F_anchor)."""

    @pytest.mark.parametrize(("name", "expected"), [("a", 4), ("b", 4), ("c", 3), ("f", 3)])
    def test_of_all_steps(
        self, sides: dict[str, Side], samples: list[Sample], name: str, expected: int
    ) -> None:
        assert forwards_of(sides[name], samples) == GUIDED * STEPS * expected

    def test_of_some_steps(self, sides: dict[str, Side], samples: list[Sample]) -> None:
        ours = sides["d"]
        assert isinstance(ours, Ours)
        for _ in range(3):
            chosen = ours.method.chosen_steps(ours.context.config.algorithm.steps)
            walked, anchored = max(chosen) + 1, 1 / 3
            expected = GUIDED * (walked + len(chosen) * (1 + anchored))
            assert len(chosen) == 3
            assert forwards_of(ours, samples) == pytest.approx(expected)


class TestVariants:
    def test_recipes_are_what_they_say(self, material: Material) -> None:
        found = {name: recipe(OPTIONS, material, name) for name in VARIANTS}
        assert [name for name, config in found.items() if config.algorithm.fused] == list("cdefg")
        assert [name for name, config in found.items() if config.model.compile] == ["e", "g"]
        assert [name for name, config in found.items() if config.teachers.merged] == ["f", "g"]
        assert found["d"].algorithm.anchor.share == pytest.approx(1 / 3)
        assert {config.rollout.guidance for config in found.values()} == {4.5}
        assert set(found["c"].tasks) == set(TASKS)

    def test_the_baseline_has_networks_of_its_own_in_float32(self, material: Material) -> None:
        options = Options(size="smallest", steps=STEPS, dtype="bf16")
        released = Released(options, material)
        assert set(released.networks()) == {"student", *TASKS, "anchor"}
        precisions = {
            name: {p.dtype for key, p in network.named_parameters() if "lora" not in key}
            for name, network in released.networks().items()
        }
        assert precisions.pop("student") == {torch.bfloat16}
        assert all(found == {torch.float32} for found in precisions.values())
        trained = {p.dtype for p in released.released.parameters}
        assert trained == {torch.float32}

    def test_bf16_gradients_are_close(self, material: Material) -> None:
        found = build_sides("ac", Options(size="smallest", steps=STEPS, dtype="bf16"), material)
        ours = found["c"]
        assert isinstance(ours, Ours)
        assert cosines(found, ours.draw())["c"] > 0.9

    def test_compiled_blocks_are_asked_for(self, material: Material) -> None:
        blocks = load(OPTIONS, material, "e").model.transformer.transformer_blocks
        assert all(block._compiled_call_impl is not None for block in blocks)


class TestRandomSD3:
    def test_it_computes_as_the_real_model_does(self) -> None:
        model = RandomSD3Config(size="smallest").open()
        assert isinstance(model, SD3Model)
        x = torch.randn(2, *model.latent_shape(64, 64))
        prompts = model.encode_prompts(["a", "b"])
        v = model.velocity(x, torch.tensor([0.5, 1.0]), prompts)
        assert v.shape == x.shape
        assert v.isfinite().all()
        assert v.std() > 0.01
        assert model.decode(x).shape == (2, 3, 64, 64)
        assert prompts.sequence.shape == (2, model.size.tokens, model.size.joint_dim)

    def test_weights_follow_from_the_seed_and_touch_no_other_randomness(self) -> None:
        before = torch.get_rng_state()
        one, same, other = (
            RandomSD3Config(size="smallest", seed=seed).open().transformer.state_dict()
            for seed in (1, 1, 2)
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert not torch.equal(one["proj_out.weight"], other["proj_out.weight"])

    def test_a_prompt_has_one_embedding(self) -> None:
        embed = RandomSD3Config(size="smallest").open().encode_prompts
        both, again = embed(["a", "b"]), embed(["b"])
        assert torch.equal(both.sequence[1:], again.sequence)
        assert not torch.equal(both.pooled[0], both.pooled[1])

    def test_the_true_size_is_the_published_one(self) -> None:
        skeleton = RandomSD3Config(size="sd35m").skeleton()
        assert sum(p.numel() for p in skeleton.parameters()) == 2_243_171_520

    def test_the_precision_that_was_asked_for(self) -> None:
        model = RandomSD3Config(size="smallest", dtype="bf16").open()
        assert {p.dtype for p in model.transformer.parameters()} == {torch.bfloat16}
        assert model.encode_prompts(["a"]).sequence.dtype == torch.bfloat16
        assert torch.get_default_dtype() == torch.float32


class TestMeasuring:
    def test_growth_is_the_most_at_once(self) -> None:
        with growth(torch.device("cpu")) as grown:
            first = torch.zeros(1000)
            second = first + 1
            del second
            third = first.view(10, 100).T
            fourth = third * 2
            del first, third, fourth
        assert grown.bytes == 8000

    def test_bytes_in_counts_a_storage_once(self) -> None:
        whole = torch.zeros(100)
        assert bytes_in([whole, whole[10:], whole.view(10, 10)]) == 400

    def test_what_the_baseline_holds(self, sides: dict[str, Side]) -> None:
        released, ours = (bytes_in(sides[name].held()) for name in "ac")
        merged = bytes_in(sides["f"].held())
        assert released > 1.5 * ours
        assert ours < merged < released

    def test_profile(self, sides: dict[str, Side], samples: list[Sample]) -> None:
        ours = sides["c"]
        assert isinstance(ours, Ours)
        found = profile(ours, samples, 1)
        assert found.forwards == 3 * STEPS * len(TASKS)
        assert found.backwards == STEPS * len(TASKS)
        assert found.parts[BACKWARD] > 0
        assert 0 < found.reached < 2
        assert forwards_of(ours, samples) == GUIDED * STEPS * 3


class TestCommand:
    def test_it_prints_tables_and_writes_numbers(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
        small = ["--size", "smallest", "--images", "2", "--micro", "1", "--steps", "3"]
        file = tmp_path / "found.json"
        main([*small, "--device", "cpu", "--only", "a,c", "--repeats", "1", "--json", str(file)])
        printed = capsys.readouterr().out
        assert "cosines to that of (a): (c) 1.0000000" in printed
        assert "| (c) fused |" in printed
        found = json.loads(file.read_text())
        assert found["cosines"]["c"] > 0.999
        assert [row["forwards_per_image"] for row in found["rows"]] == [GUIDED * 12, GUIDED * 9]

    def test_the_true_size_without_a_gpu_is_refused(self) -> None:
        with pytest.raises(SystemExit, match="true size"):
            main(["--size", "sd35m", "--device", "cpu"])

    def test_unknown_variants_are_refused(self) -> None:
        with pytest.raises(SystemExit, match="'z'"):
            main(["--only", "a,z"])

    def test_images_are_for_both_tasks(self) -> None:
        with pytest.raises(SystemExit, match="multiple of the 2 tasks"):
            main(["--images", "3"])


def test_variants_share_models(sides: dict[str, Side]) -> None:
    models = [side.context.model for side in sides.values() if isinstance(side, Ours)]
    assert len({id(model) for model in models}) == 2
