"""From a recipe's list of stages to the runs they stand for: ids, order rules, families and the dense branch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compressor.schema import suggest
from compressor.stages.base import DENSE, MODEL, TEACHER, Stage
from compressor.stages.export import Export
from compressor.stages.finetune import Finetune
from compressor.stages.open import OpenModel
from compressor.stages.prune import Prune
from compressor.stages.quantize import Quantize
from compressor.stages.slice import Slice

STAGES: dict[str, type[Stage]] = {s.verb: s for s in (Finetune, Prune, Slice, Export, Quantize)}
"""Member name of the baseline, which is exported and quantized beside the pruned models."""
TUNED = "tuned"
"""Member name of a model that is neither pruned nor the baseline."""

RESERVED = frozenset({"work", "shared", "measurements", "artifacts", "artifact", "rejected"})
"""Folders of every run beside those of its stages."""

Place = tuple[str | int, ...]
"""Where in the recipe: keys, and numbers in lists."""
Problem = tuple[Place, str]
"""Where in the recipe, and what is wrong."""


@dataclass(frozen=True)
class Node:
    """One run of one stage. `name` is also its folder in the run; `inputs` are nodes, the first its source."""

    name: str
    stage: Stage
    inputs: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    """Sub-folders it fills itself (a pruner that makes a family)."""


@dataclass(frozen=True)
class Outline:
    """What the order of stages depends on; known even of a stage whose other keys are wrong."""

    verb: str
    id: str | None = None
    source: str | None = None
    references: Mapping[tuple[str, ...], str] = field(default_factory=dict)


@dataclass
class Chain:
    """All nodes in order, which of them is the baseline, and the exported variants by name."""

    nodes: list[Node] = field(default_factory=list)
    baseline: str = ""
    variants: dict[str, str] = field(default_factory=dict)
    final: str = ""

    def node(self, name: str) -> Node:
        """The node that makes the folder `name` (a member's folder belongs to its pruner)."""
        return next(n for n in self.nodes if n.name == name or (name.startswith(f"{n.name}/") and n.members))


def stage_ids(stages: Sequence[Stage | Outline]) -> list[str]:
    """Ids in order: the given one, else `verb` for the first of a verb and `verb-n` for the n-th."""
    count: Counter[str] = Counter()
    ids = []
    for stage in stages:
        verb = stage.verb
        count[verb] += 1
        ids.append(stage.id or (verb if count[verb] == 1 else f"{verb}-{count[verb]}"))
    return ids


def check_order(stages: Sequence[Stage | Outline], baseline: str | None) -> Iterator[Problem]:
    """Everything wrong with the order of stages and what they refer to."""
    ids = stage_ids(stages)
    yield from _check_ids(ids)
    pruned: dict[str, str] = {MODEL: "dense"}  # id -> dense, held (pruned, not sliced) or sliced
    previous, exported = MODEL, False
    for i, (stage, name) in enumerate(zip(stages, ids, strict=True)):
        at = ("stages", i, stage.verb)
        source = stage.source or previous
        if stage.verb == Quantize.verb and stage.source:
            yield (*at, "from"), "`quantize` always takes what the `export` before it wrote; leave `from` out"
        elif stage.source and stage.source not in pruned:
            yield (*at, "from"), _unknown_stage(stage.source, pruned)
            source = previous
        state = pruned.get(source, "dense")
        if exported and not (stage.verb == Quantize.verb and stages[i - 1].verb == Export.verb):
            yield at, "nothing but one `quantize` can follow `export`"
        match stage.verb:
            case Quantize.verb if not exported:
                yield at, "`quantize` works on an exported model: put `export` before it"
            case Slice.verb if state != "held":
                yield at, "`slice` cuts what a `prune` before it chose: there is none"
            case Export.verb if state == "held":
                yield at, "`export` would write a model with masks: put `slice` between `prune` and `export`"
            case Prune.verb if state == "held":
                yield (
                    at,
                    "a second `prune` needs the first one's structure to be cut: put `slice` between them",
                )
        for key, other in stage.references.items():
            if other not in pruned:
                yield (*at, *key), _unknown_stage(other, pruned)
            elif key[-2:] != TEACHER and pruned[other] == "dense":
                yield (*at, *key), f"'{other}' is not pruned: name a `prune` before this one"
        exported = exported or stage.verb == Export.verb
        if not exported:
            after = {"prune": "held", "slice": "sliced"}.get(stage.verb, state)
            pruned[name] = after
            previous = name
    if not exported:
        yield (
            ("stages",),
            "the chain ends without `export`: only an exported model can be measured and released",
        )
    yield from _check_baseline(stages, ids, pruned, baseline)


def _check_ids(ids: list[str]) -> Iterator[Problem]:
    for i, name in enumerate(ids):
        if name in RESERVED:
            yield ("stages", i), f"'{name}' is a folder of every run: give the stage another `id`"
    for name, times in Counter([MODEL, *ids]).items():
        if times > 1:
            reason = "is the recipe's model" if name == MODEL else "is the id of two stages"
            yield ("stages", ids.index(name)), f"'{name}' {reason}: give one of them another `id`"


def _unknown_stage(name: str, known: dict[str, str]) -> str:
    return f"no stage '{name}' before this one{suggest(name, known)} (there are: {', '.join(known)})"


def _check_baseline(
    stages: Sequence[Stage | Outline], ids: list[str], pruned: dict[str, str], baseline: str | None
) -> Iterator[Problem]:
    if baseline is None or baseline == MODEL:
        return
    if baseline not in ids:
        yield ("baseline",), _unknown_stage(baseline, dict.fromkeys([MODEL, *ids], ""))
    elif stages[ids.index(baseline)].verb != Finetune.verb or pruned.get(baseline) != "dense":
        yield (
            ("baseline",),
            f"'{baseline}' is no dense model: the baseline is a `finetune` with no `prune` before it",
        )


def default_baseline(stages: Sequence[Stage]) -> str:
    """The first `finetune` with no `prune` before it, else the model itself."""
    for stage, name in zip(stages, stage_ids(stages), strict=True):
        if isinstance(stage, Prune):
            break
        if isinstance(stage, Finetune):
            return name
    return MODEL


def build_chain(stages: Sequence[Stage], baseline: str | None) -> Chain:
    """The nodes that a valid list of stages stands for.

    After a pruner that makes a family every stage runs once per member, in `<stage>/<member>`; `export` and
    `quantize` also run for the dense baseline.
    """
    baseline = baseline or default_baseline(stages)
    chain = Chain([Node(MODEL, OpenModel())], baseline)
    heads: dict[str, dict[str, str]] = {MODEL: {DENSE: MODEL}}  # stage id -> member -> node or folder
    previous = MODEL
    for stage, name in zip(stages, stage_ids(stages), strict=True):
        source = heads[stage.source or previous]
        extra = tuple(next(iter(heads[other].values())) for other in stage.references.values())
        if isinstance(stage, Export | Quantize):
            dense = {DENSE: baseline if isinstance(stage, Export) else f"{previous}/{DENSE}"}
            others = {m: folder for m, folder in source.items() if folder != dense[DENSE]}
            members = dense | {TUNED if m == DENSE else m: folder for m, folder in others.items()}
            # `auto` compares with the dense model's graph
            beside = dense.values() if isinstance(stage, Quantize) and stage.mode == "auto" else ()
            inputs = {m: tuple(dict.fromkeys((folder, *beside))) for m, folder in members.items()}
            nodes = {m: Node(f"{name}/{m}", stage, inputs[m]) for m in members}
            precision = "fp32" if isinstance(stage, Export) else stage.precision
            chain.variants |= {f"{m}_{precision}": node.name for m, node in nodes.items()}
            chain.final = f"{list(members)[-1]}_{precision}"
        elif isinstance(stage, Prune):
            made = tuple(stage.members())
            folder = next(iter(source.values()))
            family = made if len(made) > 1 else ()
            nodes = {m: Node(name, stage, (folder, *extra), family) for m in made}
            heads[name] = {m: f"{name}/{m}" if family else name for m in made}
        else:
            single = len(source) == 1
            nodes = {
                m: Node(name if single else f"{name}/{m}", stage, (folder, *extra))
                for m, folder in source.items()
            }
        heads.setdefault(name, {m: node.name for m, node in nodes.items()})
        chain.nodes += {node.name: node for node in nodes.values()}.values()
        previous = name
    return chain
