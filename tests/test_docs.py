"""The commands that the survival matrix gives select tests that are there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scaling.md").read_text()
MATRIX = TEXT.partition("## Survival\n")[2].partition("\n## ")[0]
ROWS = [line for line in MATRIX.splitlines() if line.startswith("| ")][1:]
COMMANDS = re.findall(r"`(tests/\S+\.py) -k (\w+|\"[^\"]+\")`", MATRIX)


def test_every_row_of_the_survival_matrix_has_a_command():
    assert len(ROWS) >= 20
    assert [row for row in ROWS if "`tests/" not in row.rpartition(" | ")[2]] == []
    assert MATRIX.count("`tests/") == len(COMMANDS)


@pytest.mark.parametrize("file, words", COMMANDS, ids=lambda part: part.strip('"'))
def test_its_command_selects_a_test(file, words):
    names = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
    for word in words.strip('"').split(" or "):
        assert any(word in name for name in names), word
