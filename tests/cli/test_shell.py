"""How the program feels in a shell: help at once, and lines that complete."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.cli import COMPLETE
from tests.cli.refusals import Call, refused

HEAVY = {"torch", "transformers", "numpy", "pandas", "onnxruntime", "matplotlib", "pydantic", "yaml", "rich"}


def help_(code: str = "") -> "subprocess.CompletedProcess[str]":
    program = f"import sys; from compressor.cli import main; main(['--help']); {code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


def test_help_imports_nothing_heavy() -> None:
    imported = help_("sys.stderr.write(' '.join(sys.modules))").stderr.split()
    assert HEAVY & set(imported) == set()


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """Of processor time, the least of a few runs: what else this machine does is not the program's."""
    taken = []
    for _ in range(7):
        before = os.times()
        assert "Usage: compressor" in help_().stdout
        after = os.times()
        taken.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(taken) < 0.3


def test_help_cuts_no_sentence_off(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _usage, *rest = call("--help").out.splitlines()
    assert "..." not in "".join(rest)


def test_help_of_every_verb(call: Call) -> None:
    verbs = [row.split()[0] for row in call("--help").rows if row.startswith("  ") or row]
    for verb in ("run", "plan", "verify", "new", "completion"):
        assert verb in verbs
        said = call(verb, "--help")
        assert (said.code, said.err) == (0, "")
        assert f"Usage: compressor {verb}" in said.out


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which `compressor` is this one."""
    script = tmp_path / "bin" / "compressor"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m compressor "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": here, "HOME": str(tmp_path)}


COMPLETES = {
    # What a shell does on a tab: the words so far and the place, then what the function has found.
    "bash": """
eval "$(compressor completion bash)"
COMP_WORDS=({words}) COMP_CWORD={place} COMP_LINE="{words}" COMP_POINT=99
$(complete -p compressor | sed 's/.*-F \\([^ ]*\\).*/\\1/') compressor
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "fish": 'compressor completion fish | source; complete -C "{words}"',
}


@pytest.mark.parametrize("shell", COMPLETES)
@pytest.mark.parametrize(
    ("words", "found"),
    [("compressor ver", {"verify"}), ("compressor verify --publ", {"--public-key"})],
)
def test_a_real_shell_completes(program: dict[str, str], shell: str, words: str, found: set[str]) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    code = COMPLETES[shell].format(words=words, place=len(words.split()) - 1)
    done = subprocess.run([shell, "-c", code], env=program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {line.split("\t")[0] for line in done.stdout.split("\n") if line} == found, done.stderr


def test_zsh_accepts_its_script(program: dict[str, str]) -> None:
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    code = 'autoload -Uz compinit; compinit -u; eval "$(compressor completion zsh)"; echo $_comps[compressor]'
    done = subprocess.run(["zsh", "-f", "-c", code], env=program, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("_compressor_completion\n", "")


def test_a_shell_it_does_not_know(call: Call, tmp_path: Path) -> None:
    refused(call, tmp_path, ["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'")


def test_the_variable_is_the_one_that_the_scripts_set(call: Call) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert COMPLETE in call("completion", shell).out
