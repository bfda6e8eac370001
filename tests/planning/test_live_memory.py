"""Counting the bytes of tensors: by hand, on the meta device as on the CPU, and what frees them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flowopd.planning.attention import fused_attention
from flowopd.planning.memory import LiveMemory, rounded
from tiny_sd3 import JOINT_DIM, POOLED_DIM, tiny_transformer

META = torch.device("meta")
FLOAT = 4


def floats(*sizes: int) -> int:
    """Bytes of a float32 tensor as the allocator gives them out."""
    return rounded(FLOAT * torch.Size(sizes).numel())


class TestByHand:
    def test_sizes_are_rounded_up_to_512_bytes(self) -> None:
        assert [rounded(size) for size in (0, 1, 512, 513)] == [0, 512, 512, 1024]

    @pytest.mark.parametrize("device", ["meta", "cpu"])
    def test_a_linear_layer(self, device: str) -> None:
        layer = nn.Linear(300, 200, bias=False, device=device)
        x = torch.ones(50, 300, device=device)
        with LiveMemory(device) as memory:
            y = layer(x)
            assert memory.live == memory.peak == floats(50, 200)
            y.sum().backward()
            # sum, the gradient of y (expanded from one number), that of the weight
            assert memory.peak == floats(50, 200) + 2 * floats(1) + floats(200, 300)
            del y
        assert memory.live == floats(200, 300)
        assert layer.weight.grad is not None

    @pytest.mark.parametrize("device", ["meta", "cpu"])
    def test_a_perceptron_keeps_what_its_backward_pass_reads(self, device: str) -> None:
        first = nn.Linear(300, 800, device=device)
        second = nn.Linear(800, 100, device=device).requires_grad_(False)
        x = torch.ones(50, 300, device=device)
        with LiveMemory(device) as memory:
            hidden = first(x)
            y = second(torch.relu(hidden))
            del hidden
            # of the hidden layer, relu's result alone: what went into it is not needed again
            assert memory.live == floats(50, 800) + floats(50, 100)
            assert memory.peak == 2 * floats(50, 800) + floats(50, 100)
            del y
        assert memory.live == 0

    def test_without_a_gradient_nothing_is_kept(self) -> None:
        layers = nn.Sequential(*(nn.Linear(256, 256, device=META) for _ in range(6)))
        x = torch.empty(64, 256, device=META)
        with LiveMemory() as memory, torch.no_grad():
            y = layers(x)
        assert memory.peak == 2 * floats(64, 256)
        assert memory.live == floats(*y.shape)

    def test_views_and_changes_in_place_hold_nothing_of_their_own(self) -> None:
        x = torch.empty(10, 100, device=META)
        with LiveMemory() as memory:
            kept = [x.T, x[3:], x.reshape(5, 200), x.expand(4, 10, 100), x.add_(1), x.detach()]
        assert (memory.live, memory.peak) == (0, 0)
        assert len(kept) == 6

    def test_a_tensor_is_there_as_long_as_a_view_of_it(self) -> None:
        with LiveMemory() as memory:
            view = torch.empty(1000, device=META)[:1]
            assert memory.live == floats(1000)
            del view
            assert memory.live == 0

    def test_peaks_by_phase_and_of_a_watch(self) -> None:
        with LiveMemory() as memory:
            kept = torch.empty(1000, device=META)
            with memory.during("one"), memory.watch() as watch:
                torch.empty(500, device=META)
            with memory.during("two"):
                pass
        assert memory.peaks == {
            "": floats(1000),
            "one": floats(1000) + floats(500),
            "two": floats(1000),
        }
        assert watch.above == floats(500)
        assert kept.is_meta


def run_transformer(device: str) -> tuple[int, int, int]:
    """Forward, then backward, of a tiny network of Stable Diffusion 3.5's shape: the peaks of
    both, and what is alive in the end."""
    transformer = tiny_transformer().to(device)
    with torch.device(device):
        inputs = {
            "hidden_states": torch.zeros(3, 16, 8, 8),
            "timestep": torch.zeros(3),
            "encoder_hidden_states": torch.zeros(3, 20, JOINT_DIM),
            "pooled_projections": torch.zeros(3, POOLED_DIM),
        }
    with LiveMemory(device) as memory, sdpa_kernel(SDPBackend.MATH):
        v = transformer(**inputs, return_dict=False)[0]
        with memory.during("backward"):
            v.square().mean().backward()
    return memory.peaks[""], memory.peaks["backward"], memory.live


def test_shapes_alone_take_what_numbers_take() -> None:
    shapes, numbers = run_transformer("meta"), run_transformer("cpu")
    assert shapes == numbers
    assert min(shapes) > 0


READS: dict[str, Callable[[Tensor], object]] = {
    "float": lambda x: float(x[0]),
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.cpu().numpy().tolist(),
    "bool": lambda x: bool((x > 0).all()),
    "int": lambda x: int(x.argmax()),
    "copied": lambda x: torch.zeros(3).copy_(x).tolist(),
}
TOLD: dict[str, object] = {
    "float": 1.0,
    "item": 1.0,
    "tolist": [1.0, 1.0, 1.0],
    "numpy": [1.0, 1.0, 1.0],
    "bool": True,
    "int": 1,
    "copied": [0.0, 0.0, 0.0],
}


class TestReading:
    @pytest.mark.parametrize("how", READS)
    def test_code_that_reads_numbers_is_told_one(self, how: str) -> None:
        with LiveMemory():
            assert READS[how](torch.empty(3, device=META)) == TOLD[how]

    def test_a_mask_selects_all(self) -> None:
        with LiveMemory():
            x = torch.empty(3, 5, device=META)
            assert x[x > 0].shape == (15,)

    def test_what_is_on_the_cpu_has_its_numbers(self) -> None:
        for _ in range(2):  # the second time from what was remembered of the first
            with LiveMemory():
                assert torch.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
                assert (torch.ones(2) + 1).tolist() == [2.0, 2.0]


def attended(dtype: torch.dtype, *, graded: bool) -> LiveMemory:
    query, key, value = (
        torch.empty(2, 4, 1000, 64, dtype=dtype, device=META, requires_grad=graded)
        for _ in range(3)
    )
    with LiveMemory() as memory, fused_attention():
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        if graded:
            with memory.during("backward"):
                found.sum().backward()
    assert found.shape == query.shape
    return memory


class TestAttention:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_it_keeps_its_result_and_a_number_for_each_query(self, dtype: torch.dtype) -> None:
        result, sums = 2 * 4 * 1000 * 64 * dtype.itemsize, 2 * 4 * 1024 * FLOAT
        assert result < attended(dtype, graded=False).peak <= result + sums + 4096

    def test_backward_sums_queries_gradients_up_in_float32(self) -> None:
        memory = attended(torch.bfloat16, graded=True)
        each = 2 * 4 * 1000 * 64 * 2
        assert memory.peaks["backward"] >= (1 + 3) * each + 2 * each
        assert memory.peaks["backward"] < 8 * each

    def test_the_plain_formula_would_keep_all_pairs(self) -> None:
        query = torch.empty(2, 4, 1000, 64, device=META)
        with LiveMemory() as plain, fused_attention("math"):
            scaled_dot_product_attention(query, query, query)
        assert plain.peak > 2 * 4 * 1000 * 1000 * FLOAT > attended(torch.float32, graded=False).peak
