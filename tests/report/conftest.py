"""Results as a run leaves them, made to measure."""

import copy

import pytest

CELLS = [(batch, length) for batch in (1, 8) for length in (128, 384)]
SIZES = {
    "stacks": {"encoder": {"layers": 6, "attention": 12, "ffn": 1536}},
    "hidden": 384,
    "head_size": 32,
    "projections": {"attention": 4, "ffn": 2},
}
DENSE = {
    "layers": [
        {"stack": "encoder", "index": i, "attention": {"kept": [*range(12)]}, "ffn": {"kept": [*range(1536)]}}
        for i in range(6)
    ],
    "hidden": None,
    "sizes": SIZES,
}
PRUNED = {
    "layers": [
        {"stack": "encoder", "index": 0, "attention": {"kept": [0, 3, 5]}, "ffn": {"kept": [*range(704)]}},
        {"stack": "encoder", "index": 1, "attention": {"kept": [*range(9)]}, "ffn": {"kept": [*range(1100)]}},
        {"stack": "encoder", "index": 2, "attention": "absent", "ffn": "constant"},
        {"stack": "encoder", "index": 3, "attention": {"kept": [1, 11]}, "ffn": "absent"},
        {"stack": "encoder", "index": 5, "attention": {"kept": [4, 5, 6, 7]}, "ffn": {"kept": [*range(40)]}},
    ],
    "hidden": {"kept": [*range(352)]},
    "sizes": SIZES,
}
SPEEDS = {"dense_fp32": 1.0, "dense_int8": 1.62, "pruned_fp32": 1.71, "pruned_int8": 2.31}
SCORES = {"dense_fp32": 0.9117, "dense_int8": 0.9094, "pruned_fp32": 0.9083, "pruned_int8": 0.9071}


def timing(speed: float, batch: int, length: int) -> dict:
    p50 = round(18.42 * (batch**0.93) * (length / 128) ** 1.07 / speed, 3)
    return {
        "provider": "cpu",
        "threads": 2,
        "batch_size": batch,
        "sequence_length": length,
        "part": "forward",
        "p50_ms": p50,
        "p50_ci95": [p50 * 0.985, p50 * 1.02],
        "p90_ms": p50 * 1.09,
        "cv": 0.041,
        "runs": 1240 // batch,
        "cold_start_ms": 212.0,
        "raw": f"latency-{batch}-{length}.npz",
    }


def ratio(speed: float, batch: int, length: int) -> dict:
    entry = timing(speed, batch, length)
    cell = {k: entry[k] for k in ("provider", "threads", "batch_size", "sequence_length", "part")}
    return {**cell, "value": speed, "ci95": [speed * 0.974, speed * 1.03], "noisy": False}


def variant(name: str) -> dict:
    speed, score = SPEEDS[name], SCORES[name]
    drop = SCORES["dense_fp32"] - score
    made = {
        "metric": {"name": "accuracy", "value": score, "higher_is_better": True, "examples": 872},
        "metrics": {"accuracy": score, "f1": score + 0.0031},
        "precision": name.split("_")[1],
        "parameters": 22_713_986 if "dense" in name else 15_402_114,
        "body_parameters": 10_646_784 if "dense" in name else 3_334_912,
        "nonzero_density": 1.0 if "dense" in name else 0.3132,
        "sliced_density": 1.0 if "dense" in name else 0.3132,
        "file_bytes": int((91_000_000 if "dense" in name else 61_600_000) / (3.9 if "int8" in name else 1)),
        "sha256": "3f" * 32,
        "structure": DENSE if "dense" in name else PRUNED,
        "latency": [timing(speed, *cell) for cell in CELLS],
        "parity": {"max_abs_error": 3.1e-6, "agreement": 0.9966, "inputs": 64},
    }
    if name != "dense_fp32":
        made["speedup"] = [ratio(speed, *cell) for cell in CELLS]
        made["metric_drop"] = {"value": drop, "ci95": [drop - 0.0063, drop + 0.0061]}
    return made


def gate(name: str, limit: float, value: float | None, **more: object) -> dict:
    plain = {"ci95": None, "passed": True, "inconclusive": False, "variant": "pruned_int8", "detail": ""}
    return {"name": name, "limit": limit, "value": value, **plain, **more}


def loss_log(top: float, **ends: float) -> list[dict]:
    """A training log as the trainer leaves it; `ends` are figures of the method that fall from 1."""
    return [
        {
            "step": 100.0 * n,
            "epoch": n / 20,
            "loss": top / (1 + 0.3 * n) + 0.02 * (n * 7 % 5),
            "learning_rate": 1e-5,
            **{name: max(end, 1 - n / 30) for name, end in ends.items()},
        }
        for n in range(1, 40)
    ]


RESULTS = {
    "schema_version": 1,
    "name": "minilm-sst2-cofi",
    "recipe": {
        "name": "minilm-sst2-cofi",
        "model": "microsoft/MiniLM-L6",
        "task": {"type": "text-classification", "dataset": "sst2", "max_length": 128},
        "seed": 42,
        "stages": [
            {"finetune": {"id": "teacher", "epochs": 2}},
            {"prune": {"method": "cofi", "granularity": ["hidden", "layer", "head", "neuron"]}},
            {"finetune": {"epochs": 3}},
            {"slice": {}},
            {"export": {"opset": 18}},
            {"quantize": {"mode": "dynamic"}},
        ],
        "target": {"speedup": 1.7},
        "gates": {"max_metric_drop": 0.01, "min_speedup": 2.0},
    },
    "command": "compressor run recipes/minilm_sst2_cofi.yaml --set seed=42",
    "seed": 42,
    "created": "2026-11-20T14:03:11+00:00",
    "environment": {
        "cpu": "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz",
        "isa": ["avx2", "avx512f", "avx512_vnni"],
        "cores": 2,
        "versions": {"onnxruntime": "1.31.1", "torch": "2.13.0", "transformers": "4.57.6"},
        "load": [0.42, 0.38, 0.31],
        "git_revision": "9f1c2ab",
    },
    "task": {
        "type": "text-classification",
        "metric": "accuracy",
        "dataset": "sst2",
        "examples": {"train": 60614, "selection": 6735, "validation": 872},
        "reference_points": {"largest_class": 0.5092, "bag_of_words": 0.8016},
    },
    "baseline": "dense_fp32",
    "final": "pruned_int8",
    "variants": {name: variant(name) for name in SPEEDS},
    "stages": [
        {
            "id": "teacher",
            "verb": "finetune",
            "seconds": 1412.0,
            "peak_rss_bytes": 2_410_000_000,
            "cached": True,
        },
        {"id": "prune", "verb": "prune", "seconds": 4210.4, "peak_rss_bytes": 3_020_000_000, "cached": False},
        {"id": "finetune-2", "verb": "finetune", "seconds": 1630.0, "peak_rss_bytes": None, "cached": False},
        {"id": "slice", "verb": "slice", "seconds": 3.2, "peak_rss_bytes": 900_000_000, "cached": False},
        {
            "id": "benchmark",
            "verb": "benchmark",
            "seconds": 618.0,
            "peak_rss_bytes": 880_000_000,
            "cached": False,
        },
    ],
    "gates": [
        gate("max_metric_drop", 0.01, 0.0046, ci95=[-0.0017, 0.0107]),
        gate("min_speedup", 2.0, 2.31, ci95=[2.25, 2.38], detail="cpu, 2 threads, batch 1, 128 tokens"),
        gate("max_latency_ms", 10.0, 7.97, ci95=[7.85, 8.13]),
        gate("max_file_mb", 40, 15.79),
        gate("max_parity_error", 1e-4, 3.1e-6, variant="pruned_fp32"),
        gate("min_agreement", 0.98, 0.9966),
    ],
    "training": [
        {"stage": "teacher", "log": loss_log(0.7)},
        {"stage": "prune", "log": loss_log(1.4, density_attention=0.25, density_ffn=0.2)},
        {"stage": "finetune-2", "log": loss_log(0.5)},
    ],
}


@pytest.fixture
def results() -> dict:
    """A run of all four variants, all gates passed. Yours to change."""
    return copy.deepcopy(RESULTS)


@pytest.fixture
def family(results: dict) -> dict:
    """A run that made three sizes of a model, each in two precisions."""
    dense = {name: results["variants"][name] for name in ("dense_fp32", "dense_int8")}
    results["variants"] = dense
    for drop, speed in ((1, 1.2), (2, 1.49), (3, 1.97)):
        kept = [layer for layer in DENSE["layers"] if layer["index"] < 6 - drop]
        for precision, more, loss in (("fp32", 1.0, 0.004), ("int8", 1.55, 0.006)):
            made = variant(f"pruned_{precision}")
            made["structure"] = {**DENSE, "layers": kept}
            made["metric"] |= {"value": SCORES["dense_fp32"] - drop * loss}
            made["metric_drop"] = {"value": drop * loss, "ci95": [drop * loss - 0.006, drop * loss + 0.006]}
            made["latency"] = [timing(speed * more, *cell) for cell in CELLS]
            made["speedup"] = [ratio(speed * more, *cell) for cell in CELLS]
            made["sliced_density"] = made["nonzero_density"] = 1 - drop / 6
            results["variants"][f"drop{drop}_{precision}"] = made
    results["final"] = "drop3_int8"
    results["gates"] = [gate("min_speedup", 2.0, 3.05, ci95=[2.98, 3.13], variant="drop3_int8")]
    return results


@pytest.fixture
def minimal() -> dict:
    """The least a run can leave: the dense model, a perplexity, no timing."""
    metric = {"name": "perplexity", "value": 23.4123, "higher_is_better": False, "examples": 4358}
    return {
        "schema_version": 1,
        "name": "gpt2-dense",
        "recipe": {},
        "baseline": "dense_fp32",
        "final": "dense_fp32",
        "variants": {"dense_fp32": {"metric": metric}},
    }


@pytest.fixture
def perplexity(results: dict) -> dict:
    """A run whose metric is a perplexity: less is better, and no fraction."""
    for name, made in results["variants"].items():
        value = 23.41 + 31 * (SCORES["dense_fp32"] - SCORES[name])
        made["metric"] = {"name": "perplexity", "value": value, "higher_is_better": False, "examples": 4358}
        made["metrics"] = {}
        if "metric_drop" in made:
            made["metric_drop"] = {"value": value - 23.41, "ci95": [value - 23.45, value - 23.36]}
    results["task"] = {"type": "language-modeling", "metric": "perplexity", "dataset": "wikitext2"}
    results["gates"] = [
        gate("max_metric_drop", 0.5, 0.1426, ci95=[0.09, 0.18]),
        gate("min_metric", 30, 23.55),
    ]
    return results
