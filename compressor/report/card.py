"""The model card of an artifact: what it is, what was measured, how to load it, what not to trust it with."""

import json
import re
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from compressor.report.fields import (
    Results,
    cells,
    count_text,
    drop_text,
    entry_at,
    is_fraction,
    listed,
    megabytes,
    member_of,
    metric_label,
    metric_text,
    ms_interval,
    ms_text,
    percent,
    speedup_text,
)
from compressor.report.markdown import fenced, plain, public
from compressor.report.rows import gate_rows
from compressor.report.verdict import claim

UNKNOWN = "unknown: settle before publishing"

# task type: pipeline tag of the hub, optimum's class, the last line of the example
TASKS = {
    "text-classification": (
        "text-classification",
        "ORTModelForSequenceClassification",
        "model(**inputs).logits",
    ),
    "token-classification": (
        "token-classification",
        "ORTModelForTokenClassification",
        "model(**inputs).logits",
    ),
    "question-answering": ("question-answering", "ORTModelForQuestionAnswering", "model(**inputs)"),
    "language-modeling": ("text-generation", "ORTModelForCausalLM", "model.generate(**inputs)"),
    "summarization": ("summarization", "ORTModelForSeq2SeqLM", "model.generate(**inputs)"),
    "feature-extraction": (
        "feature-extraction",
        "ORTModelForCustomTasks",
        "model(**inputs).sentence_embedding",
    ),
}

ROWS: dict[str, dict[str, Any]] = {
    "text-classification": {"text": "A text."},
    "token-classification": {"tokens": ["A", "text", "."]},
    "question-answering": {"question": "Who wrote it?", "context": "Ada wrote it."},
    "feature-extraction": {"text": "A text."},
    "language-modeling": {"text": "A text that goes", "tokens": 20},
    "summarization": {"text": "A long text."},
}
"""A row of each task that the artifact's client knows."""

VERBS = {
    "finetune": "fine-tuned",
    "prune": "pruned",
    "slice": "sliced",
    "export": "exported to ONNX",
    "quantize": "quantized",
}

_CARDS = Environment(
    loader=PackageLoader("compressor.report"),
    autoescape=False,  # Markdown: values pass `plain` or `code` instead
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def model_card(results: Results, variant: str, manifest: dict[str, Any]) -> str:
    """The README.md of the artifact of `variant`.

    Args:
        results: what the run left in `results.json`.
        variant: which of its variants the artifact holds.
        manifest: the artifact's manifest. Read where present: `files` (by name), `labels`, `max_length`,
            `stride`, `sources` (`{"model": {"name", "revision", "licence"}, "data": {...}}`) and
            `optimum_class` (`None`: optimum cannot load this artifact; default: by the task).
    """
    made = results["variants"][variant]
    task, environment = results.get("task") or {}, results.get("environment") or {}
    return _CARDS.get_template("card.md.j2").render(
        front=front_matter(results, variant),
        title=plain(f"{results['name']}: {variant}"),
        summary=_summary(results, variant, manifest),
        claim=claim(results, variant),
        gates=[g for g in gate_rows(results) if g.state != "passed" and g.variant == variant],
        scores=_scores(results, variant),
        speeds=_speeds(results, variant),
        size=_size(results, variant),
        graphs="." if manifest.get("graphs") else "model.onnx",
        conditions=_conditions(results),
        examples=_examples(results, variant),
        loading=_loading(results, manifest),
        text=_example_text(results),
        row=_example_row(results),
        task=plain(str(task.get("type") or "the task it was trained for").replace("-", " ")),
        length=_length(manifest),
        labels=plain(listed(manifest.get("labels") or [])),
        quantized=made.get("precision") == "int8",
        pruned=member_of(variant)[0] != "dense",
        sources=_sources(results, manifest),
        versions=plain(listed(f"{k} {v}" for k, v in (environment.get("versions") or {}).items())),
        revision=plain(environment.get("git_revision") or "unknown"),
        created=plain(results.get("created") or "unknown"),
        recipe=fenced(
            yaml.safe_dump(public(results.get("recipe") or {}), sort_keys=False, allow_unicode=True)
        ),
    )


def front_matter(results: Results, variant: str) -> str:
    """The hub's YAML header. What is unknown or only a local folder is left out, never guessed."""
    made, recipe = results["variants"][variant], results.get("recipe") or {}
    tag = TASKS.get((results.get("task") or {}).get("type", ""), (None,))[0]
    metric = (made.get("metric") or {}).get("name")
    values = {
        "library_name": "onnx",
        "pipeline_tag": tag,
        "base_model": _hub_id(recipe.get("model")),
        "datasets": [d] if (d := _hub_id((recipe.get("task") or {}).get("dataset"))) else None,
        "metrics": list(dict.fromkeys(m for m in [metric, *(made.get("metrics") or {})] if m)) or None,
        "tags": ["onnx", "onnxruntime", "compressed", made.get("precision") or "fp32"],
    }
    known = {key: value for key, value in values.items() if value is not None}
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True)


def _hub_id(source: Any) -> str | None:
    """The hub id that a recipe's model or dataset names, if it is one."""
    if isinstance(source, dict):
        source = source.get("id") or source.get("hub")
    return source if isinstance(source, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) else None


def _summary(results: Results, variant: str, manifest: dict[str, Any]) -> str:
    sources = _sources(results, manifest)
    stages = [next(iter(stage.items())) for stage in (results.get("recipe") or {}).get("stages") or []]
    done = [_step(verb, keys or {}) for verb, keys in _stages_of(variant, stages)]
    return f"{', '.join([sources['model']['name'], *done])}, for {sources['data']['name']}."


def _stages_of(variant: str, stages: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The stages this variant went through: nothing of the pruning for a dense one, no quantize for fp32."""
    member, precision = member_of(variant)
    if member == "dense":
        verbs = [verb for verb, _ in stages]
        first = verbs.index("prune") if "prune" in verbs else len(stages)
        stages = [*stages[:first], *((v, keys) for v, keys in stages[first:] if v in ("export", "quantize"))]
    return [(verb, keys) for verb, keys in stages if precision != "fp32" or verb != "quantize"]


def _step(verb: str, keys: dict[str, Any]) -> str:
    how = keys.get("method") or keys.get("mode")
    return plain(VERBS.get(verb, verb) + (f" ({how})" if how else ""))


def _scores(results: Results, variant: str) -> list[list[str]]:
    """Metric, this model, dense, drop; the primary one first, the only one with an interval."""
    made, dense = results["variants"][variant], results["variants"].get(results["baseline"], {})
    rows, metric = [], made.get("metric")
    if metric:
        name, base = metric["name"], (dense.get("metric") or {}).get("value")
        drop = "" if variant == results["baseline"] else drop_text(name, made.get("metric_drop"))
        unit = " points" if is_fraction(name) and drop not in ("", "–") else ""
        label = plain(metric_label(name))
        rows.append([label, metric_text(name, metric["value"]), metric_text(name, base), drop + unit])
    for name, value in (made.get("metrics") or {}).items():
        if not metric or name != metric["name"]:
            base = (dense.get("metrics") or {}).get(name)
            rows.append([plain(metric_label(name)), metric_text(name, value), metric_text(name, base), ""])
    return rows


def _speeds(results: Results, variant: str) -> list[list[str]]:
    """Cell, p50 with its interval, p90, speedup over dense."""
    made, rows = results["variants"][variant], []
    for cell in cells(results):
        entry = entry_at(made.get("latency"), cell)
        if entry:
            speedup = entry_at(made.get("speedup"), cell)
            noisy = " (noisy)" if speedup and speedup.get("noisy") else ""
            p50 = f"{ms_text(entry)} {ms_interval(entry)}".rstrip()
            rows.append([str(cell), p50, ms_text(entry, "p90_ms"), speedup_text(speedup) + noisy])
    return rows


def _size(results: Results, variant: str) -> str:
    made, dense = results["variants"][variant], results["variants"].get(results["baseline"], {})
    density = made.get("sliced_density")
    left = "" if density in (None, 1) else f", {percent(density)} of the dense layers' weights left"
    size, whole = megabytes(made.get("file_bytes")), megabytes(dense.get("file_bytes"))
    return f"{size} (dense {whole}), {count_text(made.get('parameters'))} parameters{left}"


def _conditions(results: Results) -> str:
    """The machine and the versions a latency claim must state."""
    environment = results.get("environment") or {}
    version = (environment.get("versions") or {}).get("onnxruntime", "of unknown version")
    isa = f" ({listed(environment['isa'])})" if environment.get("isa") else ""
    cores = f", {environment['cores']} cores" if environment.get("cores") else ""
    return plain(f"onnxruntime {version} on {environment.get('cpu') or 'an unknown machine'}{isa}{cores}")


def _examples(results: Results, variant: str) -> str:
    count = (results["variants"][variant].get("metric") or {}).get("examples")
    return "the validation examples" if count is None else f"{count:,} validation examples"


def _example_row(results: Results) -> str | None:
    """What the example hands to the client, as JSON (which is Python too); `None` for tasks it does not know."""
    row = ROWS.get((results.get("task") or {}).get("type", ""))
    return json.dumps(row) if row else None


def _loading(results: Results, manifest: dict[str, Any]) -> dict[str, str] | None:
    """What the optimum example is made of, or `None` where optimum cannot load the artifact."""
    _, loader, call = TASKS.get((results.get("task") or {}).get("type", ""), ("", None, ""))
    loader = manifest.get("optimum_class", loader)
    if loader is None:
        return None
    options = ", use_cache=False" if loader == "ORTModelForCausalLM" else ""
    return {"loader": loader, "call": call, "options": options}


def _example_text(results: Results) -> str:
    """What the examples hand to the tokenizer: a question and its context, or one text."""
    asks = (results.get("task") or {}).get("type") == "question-answering"
    return '"Who wrote it?", "Ada wrote it."' if asks else '"A text."'


def _length(manifest: dict[str, Any]) -> str:
    if not manifest.get("max_length"):
        return ""
    stride = manifest.get("stride")
    longer = f"read in windows that overlap by {stride} tokens" if stride else "cut"
    return f"Inputs are at most {manifest['max_length']} tokens; longer ones are {longer}."


def _sources(results: Results, manifest: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Name and licence of model and data, from the manifest, else the recipe."""
    recipe, stated = results.get("recipe") or {}, manifest.get("sources") or {}
    named = {"model": recipe.get("model"), "data": (recipe.get("task") or {}).get("dataset")}
    found = {}
    for role, value in named.items():
        source = stated.get(role) or {}
        name = source.get("name") or source_name(value) or f"unnamed {role}"
        revision = f", revision {source['revision']}" if source.get("revision") else ""
        licence = f"{source['licence']}, as stated by the source" if source.get("licence") else UNKNOWN
        found[role] = {"name": plain(name + revision), "licence": plain(licence)}
    return found


def source_name(value: Any) -> str:
    """The name of a model or a data set as a recipe gives it, fit to publish; empty where it gives none."""
    if isinstance(value, dict):
        value = value.get("id") or value.get("hub") or value.get("builtin") or "local files"
    return str(public(value)) if value else ""
