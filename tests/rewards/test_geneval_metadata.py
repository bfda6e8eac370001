"""The grammar of GenEval's metadata, and what is said of lines that break it."""

import json
from pathlib import Path
from typing import Any

import pytest

from flowopd.errors import FlowOPDError
from flowopd.rewards.geneval.metadata import check_metadata
from flowopd.rewards.geneval.names import NAMES, geneval_name, names_of
from flowopd.tasks.prompts import PromptRecord, read_prompts

LINES: list[dict[str, Any]] = [
    {
        "tag": "single_object",
        "include": [{"class": "computer keyboard", "count": 1}],
        "prompt": "a photo of a computer keyboard",
    },
    {
        "tag": "two_object",
        "include": [{"class": "hair drier", "count": 1}, {"class": "tv remote", "count": 1}],
        "prompt": "a photo of a hair drier and a tv remote",
    },
    {
        "tag": "counting",
        "include": [{"class": "sheep", "count": 4}],
        "exclude": [{"class": "sheep", "count": 5}],
        "prompt": "a photo of four sheep",
    },
    {
        "tag": "colors",
        "include": [{"class": "suitcase", "count": 1, "color": "brown"}],
        "prompt": "a photo of a brown suitcase",
    },
    *(
        {
            "tag": "position",
            "include": [
                {"class": "oven", "count": 1},
                {"class": "spoon", "count": 1, "position": [relation, 0]},
            ],
            "prompt": f"a photo of a spoon {relation} an oven",
        }
        for relation in ("left of", "right of", "above", "below")
    ),
    {
        "tag": "color_attr",
        "include": [
            {"class": "kite", "count": 1, "color": "white"},
            {"class": "zebra", "count": 1, "color": "orange"},
        ],
        "prompt": "a photo of a white kite and an orange zebra",
    },
]


def test_every_form_of_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "geneval.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    records = read_prompts(path, "geneval")
    for record, line in zip(records, LINES, strict=True):
        check_metadata(record)
        assert (record.tag, record.prompt) == (line["tag"], line["prompt"])
        assert record.meta == {key: line[key] for key in ("include", "exclude") if key in line}


def record(tag: str = "colors", **meta: Any) -> PromptRecord:
    return PromptRecord("a prompt", "geneval", tag, meta)


CUP = {"class": "cup", "count": 1}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (record(tag="", include=[CUP]), "it has no 'tag', which should be one of single_object"),
        (record(tag="cuonting", include=[CUP]), "its tag is 'cuonting'; it should be one of"),
        (record(), "it has no 'include'"),
        (record(include=[]), "it has no 'include'"),
        (record(include=CUP), "it has no 'include'"),
        (record(include=["cup"]), "'cup' should name a 'class' and a 'count'"),
        (record(include=[{"class": "cup"}]), "should name a 'class' and a 'count'"),
        (record(include=[{"class": 3, "count": 1}]), "the class in .* should be a text"),
        (record(include=[{**CUP, "count": 0}]), "the count of 'cup' is 0; it should be 1 or more"),
        (record(include=[{**CUP, "count": "2"}]), "the count of 'cup' is '2'"),
        (record(include=[{**CUP, "count": True}]), "the count of 'cup' is True"),
        (record(include=[{**CUP, "colour": "red"}]), "has the key 'colour'; the keys there are"),
        (record(include=[{**CUP, "color": "teal"}]), "the color of 'cup' is 'teal'; it should be"),
        (record(include=[{**CUP, "color": None}]), "the color in .* should be a text"),
        (record(include=[{"class": "mouse", "count": 1}]), "Did you mean 'computer mouse'"),
        (record(include=[{"class": "triceratops", "count": 1}]), "knows no class 'triceratops'"),
        (record(include=[CUP], exclude=CUP), "its 'exclude' is .*; it should be a list"),
        (record(include=[CUP], exclude=[{"class": "cup"}]), "should name a 'class' and a 'count'"),
        (record(include=[CUP], exclude=[{**CUP, "color": "red"}]), "has the key 'color'"),
        (record(include=[CUP], exclude=[{"class": "cpu", "count": 1}]), "Did you mean 'cup'"),
        (record(include=[CUP, {**CUP, "position": "left of"}]), "should be a relation and the"),
        (record(include=[CUP, {**CUP, "position": ["left of"]}]), "should be a relation and the"),
        (record(include=[CUP, {**CUP, "position": ["near", 0]}]), "relation of 'cup' is 'near'"),
        (record(include=[CUP, {**CUP, "position": ["above", 1]}]), "it should name an earlier"),
        (record(include=[CUP, {**CUP, "position": ["above", -1]}]), "it should name an earlier"),
        (record(include=[CUP, {**CUP, "position": ["above", "0"]}]), "it should name an earlier"),
        (record(include=[{**CUP, "position": ["above", 0]}]), "it should name an earlier"),
    ],
)
def test_what_is_malformed_is_refused_by_what_is_wrong(bad: PromptRecord, words: str) -> None:
    with pytest.raises(FlowOPDError, match=words):
        check_metadata(bad)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("person", "person"),
        ("mouse", "computer mouse"),
        ("remote", "tv remote"),
        ("keyboard", "computer keyboard"),
        ("computer mouse", "computer mouse"),
        ("Traffic_Light", "traffic light"),
        ("aeroplane", "airplane"),
        ("tvmonitor", "tv"),
        ("hair dryer", "hair drier"),
        ("wall-brick", None),
        ("", None),
    ],
)
def test_spellings(label: str, name: str | None) -> None:
    assert geneval_name(label) == name


def test_a_detectors_classes_by_genevals_names() -> None:
    cocos = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
    labels = {index: cocos.get(name, name) for index, name in enumerate(NAMES)}
    assert names_of(labels, "org/model") == dict(enumerate(NAMES))
    assert names_of({**labels, 80: "banner"}, "org/model") == dict(enumerate(NAMES))
    assert names_of({i: f"LABEL_{i}" for i in range(80)}, "org/model") == dict(enumerate(NAMES))


def test_a_detector_without_some_class_is_refused() -> None:
    labels = {index: name for index, name in enumerate(NAMES) if name != "clock"}
    with pytest.raises(FlowOPDError, match=r"org/model does not know .* 'clock' \(1 of 80"):
        names_of(labels, "org/model")
    with pytest.raises(FlowOPDError, match="does not know"):
        names_of({i: f"LABEL_{i}" for i in range(91)}, "org/model")
