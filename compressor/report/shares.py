"""What pruning and quantization each bring to the speedup, apart and on top of each other."""

import math
from typing import NamedTuple

from compressor.report.fields import MISSING, Results, drop_text, entry_at, main_cell, member_of


class Share(NamedTuple):
    """What pruning and quantization each bring to one variant: speedups over the baseline.

    `pruning_after` is what pruning adds to the quantized dense model, `quantization_after` what quantization
    adds to the pruned one. `pruning_share` is pruning's part of the speedup's logarithm, averaged over both
    orders; it is `None` where there is no speedup worth sharing out.
    """

    variant: str
    pruning: float
    quantization: float
    both: float
    drops: dict[str, str]

    @property
    def pruning_after(self) -> float:
        """Speedup of pruned over dense, both quantized."""
        return self.both / self.quantization

    @property
    def quantization_after(self) -> float:
        """Speedup of quantized over fp32, both pruned."""
        return self.both / self.pruning

    @property
    def pruning_share(self) -> float | None:
        """Fraction of log(speedup), or `None`."""
        if self.both < 1.1:
            return None
        return math.log(self.pruning * self.pruning_after) / (2 * math.log(self.both))

    @property
    def quantization_share(self) -> float | None:
        """The rest of log(speedup), or `None`."""
        return None if self.pruning_share is None else 1 - self.pruning_share


def shares(results: Results) -> list[Share]:
    """One for every quantized, pruned variant whose two halves were measured on their own as well."""
    found = []
    for name in results["variants"]:
        member, precision = member_of(name)
        if member == "dense" or precision == "fp32":
            continue
        names = {"pruning": f"{member}_fp32", "quantization": f"dense_{precision}", "both": name}
        values = {part: _speedup_value(results, variant) for part, variant in names.items()}
        if all(values.values()):
            drops = {part: _drop(results, variant) for part, variant in names.items()}
            found.append(Share(variant=name, **{k: v or 1.0 for k, v in values.items()}, drops=drops))
    return found


def _speedup_value(results: Results, variant: str) -> float | None:
    entry = entry_at(results["variants"].get(variant, {}).get("speedup"), main_cell(results))
    return None if entry is None else float(entry["value"])


def _drop(results: Results, variant: str) -> str:
    found = results["variants"][variant]
    return drop_text(found["metric"]["name"], found.get("metric_drop")) if found.get("metric") else MISSING
