"""Prompts, what they ask for, and what is held out for evaluation."""

from collections import Counter

import numpy as np
import pytest

from flowopd.errors import FlowOPDError
from flowopd.world.grammar import (
    COMPOSE,
    TAGS,
    counting,
    evaluation_prompts,
    held_out,
    position,
    training_prompt,
)
from flowopd.world.text_encoder import LENGTH, TextEncoder, split, token_ids, tokenize


def test_every_prompt_is_known_to_the_text_encoder() -> None:
    rng = np.random.default_rng(0)
    records = [training_prompt(task, rng) for task in ("compose", "text") for _ in range(500)]
    assert token_ids([record.prompt for record in records]).shape == (1000, LENGTH)


def test_evaluation_prompts_are_fixed_and_spread_evenly_over_the_tags() -> None:
    first, second = (evaluation_prompts("compose", 512, seed=7) for _ in range(2))
    assert first == second
    counts = Counter(record.tag for record in first)
    assert set(counts) == set(TAGS)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", ["compose", "text"])
def test_held_out_prompts_are_never_trained_on(task: str) -> None:
    rng = np.random.default_rng(0)
    trained = {training_prompt(task, rng).prompt for _ in range(5000)}
    kept = {r.prompt for r in evaluation_prompts(task, 512, seed=0) if held_out(r)}
    assert len(kept) > 20
    assert not kept & trained


def test_a_relation_names_what_it_is_seen_from() -> None:
    record = position(np.random.default_rng(3))
    subject, target = record.meta["include"][1], record.meta["include"][0]
    relation, index = subject["position"]
    assert index == 0
    assert record.prompt == f"a {subject['class']} {relation} a {target['class']}"


def test_counting_excludes_one_more() -> None:
    record = counting(np.random.default_rng(0))
    (include,), (exclude,) = record.meta["include"], record.meta["exclude"]
    assert exclude == {"class": include["class"], "count": include["count"] + 1}


def test_tags_are_the_grammars() -> None:
    assert tuple(COMPOSE) == TAGS


def test_quoted_words_are_spelled() -> None:
    assert split('the word "HAT"') == ["the", "word", '"H"', '"A"', '"T"']
    assert tokenize("") == [0] * LENGTH
    assert tokenize('the word "hat"') == tokenize('the word "HAT"')


def test_unknown_words_are_named() -> None:
    with pytest.raises(FlowOPDError, match=r"does not know purple, dog .*'a purple dog'"):
        tokenize("a purple dog")
    with pytest.raises(FlowOPDError, match="does not know <pad>"):
        tokenize("a <pad>")
    with pytest.raises(FlowOPDError, match='does not know "B"'):
        tokenize('the word "BAT"')


def test_long_prompts_are_refused() -> None:
    with pytest.raises(FlowOPDError, match="has 9 tokens"):
        tokenize("a a a a a a a a a")


def test_the_encoder_tells_word_order() -> None:
    sequence, pooled = TextEncoder()(token_ids(["a red circle", "a circle red"]))
    assert sequence.shape == (2, LENGTH, 64)
    assert not np.allclose(pooled[0].detach(), pooled[1].detach(), atol=1e-4)
