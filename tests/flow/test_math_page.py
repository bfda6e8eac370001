"""docs/math.md links to files that are there, and names what they define."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "math.md"
LINK = re.compile(r"\[(`?)([^\]`]+)`?\]\((\.\./[^)]+)\)")


def test_every_link_leads_to_what_it_names():
    links = LINK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(links) > 10
    for is_name, name, target in links:
        file = PAGE.parent / target
        assert file.is_file(), target
        if is_name and target.startswith("../src"):
            defined = re.search(rf"^(def|class) {name}\b", file.read_text(encoding="utf-8"), re.M)
            assert defined, f"{target} does not define {name}"


def test_equations_one_to_six_are_there_and_cited_by_the_code():
    page = PAGE.read_text(encoding="utf-8")
    source = PAGE.parents[1] / "src" / "flowopd" / "flow"
    code = "".join(file.read_text(encoding="utf-8") for file in sorted(source.glob("*.py")))
    for number in range(1, 7):
        assert rf"\tag{{{number}}}" in page
        assert f"({number})" in code
