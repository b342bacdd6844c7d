"""The Markdown of finished runs."""

from pathlib import Path

import pytest

from compressor.report.summary import markdown_summary


def test_a_run_in_markdown(results: dict) -> None:
    made = markdown_summary([results])
    lines = made.splitlines()
    assert lines[0].startswith("### ✅ ")
    assert "faster" in lines[2]
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables if "dense_fp32" in line or "pruned" in line}) <= 2
    for name in results["variants"]:
        assert any(line.startswith(f"| {name} |") for line in lines)
    for gate in results["gates"]:
        assert any(f"| {gate['name']} |" in line for line in lines)
    assert "95 % intervals" in made


def test_a_missed_gate_is_seen_first(results: dict) -> None:
    results["gates"][1] |= {"passed": False, "value": 1.8, "ci95": [1.7, 1.9]}
    assert markdown_summary([results]).startswith("### ❌ ")


def test_the_least_a_run_can_leave(minimal: dict, results: dict) -> None:
    assert markdown_summary([minimal, results]).count("### ") == 2


@pytest.mark.parametrize("file", sorted(Path(".github").rglob("*.yml")), ids=str)
def test_actions_are_pinned_to_commits(file: Path) -> None:
    uses = [
        line.split("uses:")[1].split()
        for line in file.read_text(encoding="utf-8").splitlines()
        if "uses:" in line
    ]
    foreign = [words for words in uses if not words[0].startswith(("./", "OWNER"))]
    assert all(len(words[0].partition("@")[2]) == 40 and words[1] == "#" for words in foreign), foreign
