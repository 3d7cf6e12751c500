"""Every page's links, anchors and make targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "recipes", "benchmarks") for page in (ROOT / folder).rglob("*.md")),
    ]
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|<(?:img|a)[^>]+(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
MAKE = re.compile(r"(?:`|^)make ([a-z][a-z-]*)\b", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings, and those written out."""
    text = page.read_text()
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#+ +(.+?) *#*$", outside_code, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def broken_links(page: Path) -> list[str]:
    """The page's links to files or anchors that do not exist; links to the web are not followed."""
    broken = []
    for match in LINK.finditer(CODE.sub("", page.read_text())):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        missing = not file.exists() or (bool(anchor) and file.suffix == ".md" and anchor not in anchors(file))
        if missing:
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(MAKE.findall(page.read_text())) <= targets


def test_the_check_finds_what_is_broken(tmp_path):
    (tmp_path / "there.md").write_text("# One `two`, three\n\n## 2.1 A-b\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#one-two-three) [c](there.md#21-a-b) [d](#here) [e](https://example.org/x)\n"
        "# Here\n`[code](nowhere.md)`\n"
        '[f](gone.md) ![g](gone.png "title") [h](there.md#gone) [i](#gone) <img src="gone.svg" width="3">\n'
    )
    assert broken_links(page) == ["gone.md", "gone.png", "there.md#gone", "#gone", "gone.svg"]
    assert MAKE.findall("`make setup` and\nmake test-slow ARGS=1\n we make sure") == ["setup", "test-slow"]
