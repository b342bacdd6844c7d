"""`report.html`: a run on one page that needs nothing but a browser."""

from pathlib import Path
from typing import Any

import yaml

from compressor.cell import Cell
from compressor.files import write_text
from compressor.report import plots
from compressor.report.anatomy import kept_summary, structures_of
from compressor.report.choices import aim_curves, aim_rows, search_rows
from compressor.report.fields import (
    MISSING,
    Results,
    better_corner,
    cells,
    count_text,
    drop_text,
    duration,
    entry_at,
    fixed,
    listed,
    main_cell,
    metric_label,
    metric_text,
    ms_interval,
    ms_text,
    percent,
    ratio_text,
    significant,
    speedup_text,
)
from compressor.report.picture import structure_picture
from compressor.report.render import render
from compressor.report.rows import drop_header, gate_rows, headline, metric_header, variant_rows
from compressor.report.shares import shares
from compressor.report.verdict import notes, overall_state, verdict

Facts = list[tuple[str, str]]


def write_report(results: Results, run_folder: Path) -> Path:
    """Write `report.html` into `run_folder` and return its path. Parts that the results lack are left out."""
    rows = variant_rows(results)
    page = render(
        "report.html.j2",
        title=results["name"],
        created=results.get("created") or "",
        verdict=verdict(results),
        state=overall_state(results),
        cell=main_cell(results),
        task=task_facts(results),
        gates=gate_rows(results),
        headline=headline(results),
        variants=rows,
        zeros=any(row.nonzero != row.sliced for row in rows),
        metric_header=metric_header(results),
        drop_header=drop_header(results),
        references=reference_facts(results),
        better=better_corner(results),
        scatter=plots.accuracy_against_latency(results),
        shares=shares(results),
        share_bars=plots.share_bars(results),
        curves=plots.latency_curves(results),
        structures=[(listed(n), kept_summary(s), structure_picture(s)) for n, s in structures_of(results)],
        training=plots.training_curves(results),
        tried=tried_rows(results),
        aims=aim_rows(results),
        notes=notes(results),
        aim_curves=aim_curves(results),
        searched=search_rows(results),
        other_metrics=other_metric_rows(results),
        checks=check_rows(results),
        latency=latency_rows(results),
        stages=stage_rows(results),
        machine=machine_facts(results),
        versions=_facts((results.get("environment") or {}).get("versions") or {}),
        recipe=yaml.safe_dump(results.get("recipe") or {}, sort_keys=False, allow_unicode=True),
        command=results.get("command") or "",
        ratio=ratio_text,
        percent=percent,
    )
    target = run_folder / "report.html"
    write_text(target, page)
    return target


def task_facts(results: Results) -> Facts:
    """The task, its data and how many examples each split has."""
    task = results.get("task") or {}
    facts = [("task", str(task["type"]).replace("-", " "))] if task.get("type") else []
    if task.get("dataset"):
        facts.append(("data", _plain(task["dataset"])))
    examples = task.get("examples") or {}
    facts += [(f"{split} examples", f"{count:,}") for split, count in examples.items() if count is not None]
    if results.get("seed") is not None:
        facts.append(("seed", str(results["seed"])))
    return facts


def reference_facts(results: Results) -> Facts:
    """The accuracy of trivial methods: the largest class, a bag of words."""
    points = (results.get("task") or {}).get("reference_points") or {}
    known = {key: value for key, value in points.items() if value is not None}
    return [(key.replace("_", " "), metric_text("accuracy", value)) for key, value in known.items()]


def other_metric_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows of the metrics beside the primary one; no rows where there are none."""
    primary = {(v.get("metric") or {}).get("name") for v in results["variants"].values()}
    names = dict.fromkeys(
        name for v in results["variants"].values() for name in v.get("metrics") or {} if name not in primary
    )
    rows = [
        [variant, *(metric_text(name, (v.get("metrics") or {}).get(name)) for name in names)]
        for variant, v in results["variants"].items()
    ]
    return [metric_label(name) for name in names], rows if names else []


def tried_rows(results: Results) -> list[tuple[str, list[list[str]]]]:
    """Per variant that was quantized by search: every scheme, its speedup, metric and drop, and what became of it."""
    found = []
    for name, variant in results["variants"].items():
        metric, rows = (variant.get("metric") or {}).get("name", ""), []
        for one in (variant.get("quantization") or {}).get("tried") or []:
            timed = one["speedup"] is not None
            speedup = speedup_text({"value": one["speedup"], "ci95": one["ci95"]}) if timed else MISSING
            fate = "taken" if one.get("admitted") else one.get("why") or ""
            scores = [metric_text(metric, one.get("metric")), drop_text(metric, {"value": one.get("drop")})]
            rows.append([one["scheme"].replace("-", " "), speedup, *scores, fate])
        if rows:
            found.append((name, rows))
    return found


def check_rows(results: Results) -> list[list[str]]:
    """Per variant: largest error against the model it came from, agreement of predictions, inputs, hash."""
    rows = []
    for name, variant in results["variants"].items():
        parity = variant.get("parity") or {}
        error = parity.get("max_abs_error")
        rows.append(
            [
                name,
                MISSING if error is None else f"{error:.1e}",
                percent(parity.get("agreement"), 2),
                MISSING if parity.get("inputs") is None else f"{parity['inputs']:,}",
                count_text(variant.get("body_parameters")),
                (variant.get("sha256") or MISSING)[:12],
            ]
        )
    return rows


def latency_rows(results: Results) -> list[tuple[str, list[list[str]]]]:
    """Every measured cell with a row a variant: p50, interval, p90, spread, runs, cold start, speedup."""
    found = []
    for cell in cells(results):
        rows = []
        for name, variant in results["variants"].items():
            entry = entry_at(variant.get("latency"), cell)
            if entry is not None:
                rows.append([name, *_timing(entry), _speedup(variant, entry)])
        found.append((str(cell), rows))
    return found


def _timing(entry: dict[str, Any]) -> list[str]:
    cold = entry.get("cold_start_ms")
    return [
        ms_text(entry),
        ms_interval(entry) or MISSING,
        ms_text(entry, "p90_ms"),
        percent(entry.get("cv")),
        MISSING if entry.get("runs") is None else f"{entry['runs']:,}",
        MISSING if cold is None else f"{significant(cold)} ms",
    ]


def _speedup(variant: dict[str, Any], entry: dict[str, Any]) -> str:
    speedup = entry_at(variant.get("speedup"), Cell.of(entry))
    return speedup_text(speedup) + (" noisy" if speedup and speedup.get("noisy") else "")


def stage_rows(results: Results) -> list[tuple[str, str, str, str, float]]:
    """Stage, verb, time, peak memory, and its part of the whole time between 0 and 1."""
    stages = results.get("stages") or []
    total = sum(stage.get("seconds") or 0 for stage in stages) or 1
    rows = []
    for stage in stages:
        seconds, peak = stage.get("seconds") or 0, stage.get("peak_rss_bytes")
        time = duration(seconds) + (" (cached)" if stage.get("cached") else "")
        memory = MISSING if peak is None else f"{fixed(peak / 1e9)} GB"
        rows.append((stage["id"], stage.get("verb") or "", time, memory, seconds / total))
    return rows


def machine_facts(results: Results) -> Facts:
    """Everything the environment records but the versions."""
    environment = results.get("environment") or {}
    return _facts({key: value for key, value in environment.items() if key != "versions"})


def _facts(values: dict[str, Any]) -> Facts:
    known = {key: value for key, value in values.items() if value not in (None, [], {})}
    return [(key.replace("_", " "), _plain(value)) for key, value in known.items()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return listed(f"{key}: {_plain(part)}" for key, part in value.items())
    return listed(value) if isinstance(value, list | tuple) else str(value)
