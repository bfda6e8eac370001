"""(7) against a transcription in numpy, and its corner cases."""

import numpy as np
import pytest
import torch

from flowopd.algorithms.advantages import EPS, group_advantages
from flowopd.errors import FlowOPDError

NAN = float("nan")


def advantages(rewards, groups, **keys):
    if "pools" in keys:
        keys["pools"] = torch.tensor(keys["pools"])
    return group_advantages(torch.tensor(rewards), torch.tensor(groups), **keys)


def by_hand(rewards, groups, pools, spread, clip):
    """(7) for one sample after the other."""
    rewards, groups, pools = np.array(rewards, float), np.array(groups), np.array(pools)
    there = ~np.isnan(rewards)
    found = np.zeros(len(rewards))
    for i in np.flatnonzero(there):
        group = rewards[(groups == groups[i]) & there]
        if group.max() == group.min():
            continue
        among = group if spread == "group" else rewards[(pools == pools[i]) & there]
        found[i] = np.clip((rewards[i] - group.mean()) / (among.std() + 1e-4), -clip, clip)
    return found


class TestAgainstNumpy:
    @pytest.mark.parametrize("spread", ["global", "group"])
    @pytest.mark.parametrize("clip", [0.8, 5.0])
    def test_random_rewards_with_missing_ones_in_two_pools(self, spread, clip):
        rng = np.random.default_rng(0)
        groups = rng.permutation(np.repeat(np.arange(6), 5))
        pools = groups // 3
        rewards = rng.normal(size=30) * np.where(pools == 0, 1, 50) + 7
        rewards[rng.permutation(30)[:6]] = np.nan
        rewards[groups == 2] = 0.25
        found = advantages(rewards, groups, spread=spread, clip=clip, pools=pools)
        expected = by_hand(rewards, groups, pools, spread, clip)
        np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-5)
        assert found.values.dtype == torch.float32
        assert abs(expected).max() > 0.5
        assert found.zero_spread == pytest.approx(1 / 6)

    def test_without_pools_the_batch_is_one(self):
        rewards, groups = [0.0, 1.0, 10.0, 14.0], [0, 0, 1, 1]
        found = advantages(rewards, groups).values
        np.testing.assert_allclose(found, by_hand(rewards, groups, [0] * 4, "global", 5), rtol=1e-6)


class TestSpread:
    rewards, groups = (0.0, 1.0, 0.0, 10.0), (0, 0, 1, 1)

    def test_group_gives_every_group_the_same_say(self):
        found = advantages(self.rewards, self.groups, spread="group").values
        scale = [0.5 / (0.5 + EPS), 5 / (5 + EPS)]
        expected = [-scale[0], scale[0], -scale[1], scale[1]]
        assert found.tolist() == pytest.approx(expected)

    def test_global_keeps_the_groups_proportions(self):
        found = advantages(self.rewards, self.groups, spread="global").values
        assert found.tolist() == pytest.approx(
            (np.array([-0.5, 0.5, -5, 5]) / 4.2056).tolist(), 1e-3
        )

    def test_a_pool_is_not_scaled_by_anothers_rewards(self):
        """Two tasks in one batch: the scale of one reward says nothing about the other."""
        first, second = [0.1, 0.3, 0.2, 0.6], [200.0, 800.0, 100.0, 900.0]
        groups = [0, 0, 1, 1, 2, 2, 3, 3]
        both = advantages(first + second, groups, pools=[0] * 4 + [1] * 4).values
        torch.testing.assert_close(both[:4], advantages(first, groups[:4]).values)
        torch.testing.assert_close(both[4:], advantages(second, groups[:4]).values)
        mixed = advantages(first + second, groups).values
        assert mixed[:4].abs().max() < 0.01


class TestMissingRewards:
    def test_are_masked_out_of_their_group(self):
        with_it = advantages([0.0, NAN, 1.0, 5.0, 9.0], [0, 0, 0, 1, 1], spread="group")
        without = advantages([0.0, 1.0, 5.0, 9.0], [0, 0, 1, 1], spread="group")
        assert with_it.values[[0, 2, 3, 4]].tolist() == without.values.tolist()
        assert with_it.values[1] == 0
        assert with_it.used.tolist() == [True, False, True, True, True]

    def test_are_not_scored_zero_and_not_in_the_global_spread(self):
        with_it = advantages([0.9, NAN, 0.7, 0.2, 0.4], [0, 0, 0, 1, 1])
        without = advantages([0.9, 0.7, 0.2, 0.4], [0, 0, 1, 1])
        assert with_it.values[[0, 2, 3, 4]].tolist() == without.values.tolist()

    @pytest.mark.parametrize("spread", ["global", "group"])
    @pytest.mark.parametrize("rewards", [[NAN, NAN], [NAN, 0.5]])
    def test_a_group_of_none_or_one_has_no_signal(self, spread, rewards):
        found = advantages([*rewards, 0.0, 1.0], [0, 0, 1, 1], spread=spread)
        assert found.values[:2].tolist() == [0, 0]
        assert found.used.tolist() == [False, False, True, True]
        assert found.zero_spread == 0.5
        assert found.values[3] > 0

    def test_all_missing_is_no_nan(self):
        found = advantages([NAN, NAN], [0, 1])
        assert found.values.tolist() == [0, 0]
        assert found.zero_spread == 1


class TestZeroSpread:
    def test_groups_without_spread_are_skipped_and_counted(self):
        found = advantages([0.1] * 3 + [0.0, 0.5, 1.0], [7, 7, 7, 3, 3, 3])
        assert found.used.tolist() == [False] * 3 + [True] * 3
        assert found.values[:3].tolist() == [0, 0, 0]
        assert found.zero_spread == 0.5

    def test_the_mean_of_equal_numbers_may_round_and_is_no_signal(self):
        found = advantages([0.1] * 7, [0] * 7, spread="group")
        assert found.values.tolist() == [0] * 7
        assert not found.used.any()

    def test_the_average_sample_of_a_group_is_used_although_its_advantage_is_zero(self):
        found = advantages([0.0, 0.5, 1.0], [0, 0, 0])
        assert found.values[1] == 0
        assert found.used.all()

    def test_groups_of_one_picture_teach_nothing(self):
        found = advantages([0.0, 1.0, 2.0], [0, 1, 2])
        assert found.values.tolist() == [0, 0, 0]
        assert found.zero_spread == 1


def test_order_and_names_of_groups_do_not_matter():
    rng = np.random.default_rng(1)
    rewards, groups = rng.normal(size=12), np.repeat([5, 900, 2], 4)
    order = rng.permutation(12)
    plain = advantages(rewards, groups).values
    torch.testing.assert_close(advantages(rewards[order], groups[order]).values, plain[order])


def test_clipping_is_on_both_sides():
    rewards = [0.0] * 9 + [1.0] + [1.0] * 9 + [0.0]
    found = advantages(rewards, [0] * 10 + [1] * 10, spread="group", clip=2.0).values
    assert found.max() == 2
    assert found.min() == -2


def test_float32_rewards_with_a_large_mean_keep_their_differences():
    rewards = torch.tensor([1000.0, 1000.001], dtype=torch.float64)
    found = group_advantages(rewards, torch.tensor([0, 0]), spread="group").values
    assert found.tolist() == pytest.approx([-0.8333, 0.8333], abs=1e-3)


@pytest.mark.parametrize("wrong", ["rewards", "groups", "pools"])
def test_a_column_is_refused(wrong):
    """`[B, 1]` times `[B]` would be `[B, B]`."""
    tensors = {
        "rewards": torch.zeros(4),
        "groups": torch.zeros(4, dtype=torch.int64),
        "pools": torch.zeros(4, dtype=torch.int64),
    }
    tensors[wrong] = tensors[wrong][:, None]
    with pytest.raises(FlowOPDError, match=rf"{wrong} has shape \[4, 1\]; it must be one number"):
        group_advantages(tensors["rewards"], tensors["groups"], pools=tensors["pools"])


def test_rewards_of_another_length_are_refused():
    with pytest.raises(FlowOPDError, match=r"groups has shape \[3\]"):
        group_advantages(torch.zeros(4), torch.zeros(3, dtype=torch.int64))
