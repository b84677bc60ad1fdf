"""The documents say what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from data_assets.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_of_the_configuration_is_made_from_the_model() -> None:
    module = runpy.run_path(str(ROOT / "docs/make_configuration.py"))
    assert module["PAGE"].read_text(encoding="utf-8") == module["page"]()


ERRORS = runpy.run_path(str(ROOT / "docs/make_errors.py"))


def test_the_page_of_mappings_says_what_is_read() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_mapping.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"]()


# Each starts the command line; by default only two, of which no other test knows: those about rights and names.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c.title, marks=() if number in (13, 14) else pytest.mark.slow)
        for number, c in enumerate(ERRORS["CASES"])
    ],
)
def test_the_page_of_errors_says_what_is_printed(case: Any) -> None:
    assert ERRORS["section"](case) in ERRORS["PAGE"].read_text(encoding="utf-8")


def test_the_page_of_errors_has_every_case() -> None:
    titles = re.findall("^## (.*)$", ERRORS["PAGE"].read_text(encoding="utf-8"), re.MULTILINE)
    assert titles == [c.title for c in ERRORS["CASES"]]


def test_the_readme_names_commands_and_targets_that_exist() -> None:
    for target in set(re.findall(r"(?:^    |`| {3})make ([a-z]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
    for command in set(re.findall(r"data-assets ([a-z]+)", README)):
        assert command in main.commands
    assert set(main.commands) == set(re.findall(r"^\| `data-assets ([a-z]+)", README, re.MULTILINE))


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "fixtures/README.md"]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_command_explains_itself() -> None:
    for name in main.commands:
        shown = CliRunner().invoke(main, [name, "--help"])
        assert shown.exit_code == 0
        assert len(shown.output.splitlines()[2].strip()) > 20
