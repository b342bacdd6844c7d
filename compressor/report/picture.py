"""The picture of what is left of every layer."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from compressor.models.structure import Structure, SubLayer
from compressor.report.anatomy import every_layer, sublayer_names, sublayer_state
from compressor.report.svg import ACCENT, MUTED, RULE, bare, blank, figure


@figure("What is left of every layer: heads and FFN width")
def structure_picture(structure: Structure) -> Figure | None:
    """A row a layer: every head as a square, the FFN's width as a bar; filled is kept."""
    stacks = list(structure.sizes.stacks)
    heights = [structure.sizes.stacks[stack]["layers"] + 1.6 for stack in stacks]
    made = blank(0.185 * sum(heights) + 0.1)
    panels = made.subfigures(len(stacks), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, stack in zip(panels, stacks, strict=True):
        panel.set_facecolor("none")
        _stack_picture(panel, structure, stack)
    return made


def _stack_picture(panel: Figure, structure: Structure, stack: str) -> None:
    names, layers = sublayer_names(structure, stack), every_layer(structure, stack)
    columns = panel.subplots(
        1, len(names), squeeze=False, width_ratios=[1.1 if n == "ffn" else 1 for n in names]
    )[0]
    for axes, name in zip(columns, names, strict=True):
        bare(axes)
        axes.set_yticks([])
        axes.set_xlim(0, 1)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_title("FFN" if name == "ffn" else name.replace("_", " "), color=MUTED)
        total = structure.sizes.stacks[stack][name]
        for row, layer in enumerate(layers):
            _sublayer_picture(axes, row, name, None if layer is None else layer.sublayers[name], total)
    columns[0].set_yticks(range(len(layers)), [f"{stack} {index}" for index in range(len(layers))])


def _sublayer_picture(axes: Axes, row: int, name: str, sub: SubLayer | None, total: int) -> None:
    state = "layer removed" if sub is None else sublayer_state(sub)
    if sub is None or not sub.active:
        axes.text(0, row, state, color=MUTED, va="center", fontsize=7.5, style="italic")
    elif name == "ffn":
        share = len(sub.kept) / total
        axes.add_patch(Rectangle((0, row - 0.34), 0.72, 0.68, facecolor=RULE, alpha=0.6))
        axes.add_patch(Rectangle((0, row - 0.34), 0.72 * share, 0.68, facecolor=ACCENT))
        axes.text(0.75, row, f"{len(sub.kept):,} / {total:,}", color=MUTED, va="center", fontsize=7)
    else:
        gone = sorted(set(range(total)) - set(sub.kept))
        _squares(axes, row, gone, total, RULE, 0.6)
        _squares(axes, row, list(sub.kept), total, ACCENT, 1.0)


def _squares(axes: Axes, row: int, heads: list[int], total: int, colour: str, alpha: float) -> None:
    """One compound path for all of them, which keeps the SVG small."""
    step = 0.96 / total
    square = Affine2D().scale(0.8 * step, 0.68)
    boxes = [
        Path.unit_rectangle().transformed(square.frozen().translate(head * step, row - 0.34))
        for head in heads
    ]
    if boxes:
        axes.add_patch(PathPatch(Path.make_compound_path(*boxes), facecolor=colour, alpha=alpha, linewidth=0))
