"""LSP Figures 3 and 4 redrawn from a model of our own: kept weights layer by layer, and the block masks.

The paper prints neither its allocations nor its masks as numbers, only pictures and what they show in words; and its sensitivities
need trained weights, which are not downloaded here. So a small ViT is trained on scikit-learn's digits and pruned by the paper's
idea: blocks by how much the loss feels them (mean squared gradient times weight, the Fisher score) over one threshold for the
whole network. ``hw.trace`` then reads the masks from the weights, as it would a user's. What the paper says of its figures
stands beside what ours show. One seed is one draw: the accuracy and every statement are printed, none is tuned.

    python analysis/lsp_figures.py --densities figure3.svg --masks figure4.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import hwmodel as hw
from hwmodel.extraction.torchvision_repair import import_torchvision
from hwmodel.files import check_writable, write_file
from hwmodel.ir.operators import Operator
from hwmodel.reporting.breakdown import ROLES, group_of, kept_weights, layers
from hwmodel.reporting.figure_parts import legend
from hwmodel.reporting.layer_figures import density_panel
from hwmodel.reporting.mask_figure import mask_pictures, pictured
from hwmodel.reporting.style import figure_file, new_figure, role_token, themed

Block = tuple[int, int]
Scores = dict[str, npt.NDArray[np.float64]]

BLOCKS = ((4, 4), (8, 8))
KEPT = (0.75, 0.5)
EPOCHS = 30
DEPTH = 6


@dataclass(frozen=True)
class Pruned:
    """One setting of Figure 3: block shape, weights kept in all, test accuracy, and what was read from the weights."""

    block: Block
    kept: float
    accuracy: float
    trace: hw.Trace

    @property
    def densities(self) -> dict[str, float]:
        """Kept weights of each layer."""
        return {operator.name: kept_weights(operator) for operator in layers(self.trace)}


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (n, 1, 8, 8) and labels: every fifth for the test, the others for training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16.0
    labels = torch.tensor(found.target)
    test = torch.arange(len(labels)) % 5 == 0
    return images[~test], labels[~test], images[test], labels[test]


def small_vit() -> nn.Module:
    """Six encoder blocks of width 64 with four heads, on 2x2 patches of 8x8 pixels; untrained."""
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=DEPTH, num_heads=4
    )
    return model


def trained(seed: int = 0) -> nn.Module:
    """The small ViT, trained on the digits from one seed."""
    torch.manual_seed(seed)
    model = small_vit()
    images, labels, _, _ = digits()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(128):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    """Share of the test images that are told right."""
    _, _, images, labels = digits()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def prunable(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers, which are the paper's prunable ones but the patch embedding."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def block_scores(model: nn.Module, batches: int = 32) -> dict[Block, Scores]:
    """Mean over batches of the squared sum of weight times gradient in each block: what the loss feels of its removal."""
    images, labels, _, _ = digits()
    found = prunable(model)
    scores: dict[Block, Scores] = {block: {name: np.zeros(1) for name in found} for block in BLOCKS}
    for batch in torch.arange(len(labels)).chunk(batches):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        gradients = torch.autograd.grad(loss, [layer.weight for layer in found.values()])
        for (name, layer), gradient in zip(found.items(), gradients, strict=True):
            product = (layer.weight * gradient).detach().double().numpy()
            for block in BLOCKS:
                scores[block][name] = scores[block][name] + _block_sums(product, block) ** 2 / batches
    return scores


def _block_sums(values: npt.NDArray[np.float64], block: Block) -> npt.NDArray[np.float64]:
    """Sums over blocks, those at the edges smaller."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], block[0]), axis=0)
    sums: npt.NDArray[np.float64] = np.add.reduceat(rows, np.arange(0, values.shape[1], block[1]), axis=1)
    return sums


def pruned(state: dict[str, Any], scores: Scores, block: Block, kept: float) -> Pruned:
    """The trained model with the blocks that matter least set to zero, over one threshold for all layers, and read back."""
    model = trained_like(state)
    threshold = float(np.quantile(np.concatenate([score.ravel() for score in scores.values()]), 1 - kept))
    for name, layer in prunable(model).items():
        mask = np.repeat(np.repeat(scores[name] >= threshold, block[0], 0), block[1], 1)
        layer.weight.data *= torch.from_numpy(mask[: layer.out_features, : layer.in_features])
    trace = hw.trace(model, example=torch.zeros(1, 1, 8, 8), block=block)
    return Pruned(block, kept, accuracy(model), trace)


def trained_like(state: dict[str, Any]) -> nn.Module:
    """A fresh copy of the trained model."""
    model = small_vit()
    model.load_state_dict(state)
    return model.eval()


def settings(state: dict[str, Any]) -> list[Pruned]:
    """Every block shape at every density."""
    scores = block_scores(trained_like(state))
    return [pruned(state, scores[block], block, kept) for block in BLOCKS for kept in KEPT]


CLAIMS = (
    "projections after attention are pruned hardest in their block",
    "the last encoder block keeps more than the others",
    "the classifier is kept almost whole (over 95 %)",
)
"""What the paper says its Figure 3 shows (Appendix B)."""


def shown(found: Pruned) -> list[tuple[bool, str]]:
    """Whether ours shows the same, with the numbers, claim by claim."""
    rows = [(operator.block, operator.role, found.densities[operator.name]) for operator in layers(found.trace)]
    within = {block: {role: kept for place, role, kept in rows if place == block} for block in range(DEPTH)}
    hardest = sum(min(parts, key=lambda role: parts[role]) == "proj" for parts in within.values())
    means = [float(np.mean(list(parts.values()))) for parts in within.values()]
    head = found.densities["head"]
    return [
        (hardest == DEPTH, f"in {hardest} of {DEPTH}"),
        (means[-1] > max(means[:-1]), f"{means[-1]:.0%}, others {min(means[:-1]):.0%} to {max(means[:-1]):.0%}"),
        (head > 0.95, f"{head:.0%}"),
    ]


def as_table(found: Sequence[Pruned], dense_accuracy: float) -> Table:
    """The paper's statements beside ours."""
    table = Table("the paper says (DeiT-S, DeiT-B)", *(f"ours, {one.block[0]}x{one.block[1]} at {one.kept:.0%}" for one in found))
    for row, claim in enumerate(CLAIMS):
        verdicts = [shown(one)[row] for one in found]
        table.add_row(claim, *(f"{'yes' if holds else 'no'}: {text}" for holds, text in verdicts))
    table.add_section()
    table.add_row(f"test accuracy (dense {dense_accuracy:.1%}, none fine-tuned)", *(f"{one.accuracy:.1%}" for one in found))
    return table


@themed
def draw_densities(found: Sequence[Pruned], suffix: str) -> bytes:
    """Figure 3: one row of bars per setting."""
    figure = new_figure(1.75 * len(found) + 0.5)
    operators: list[Operator] = []
    for axes, one in zip(figure.subplots(len(found), 1), found, strict=True):
        operators = layers(one.trace)
        density_panel(axes, operators)
        axes.set_title(f"{one.block[0]}x{one.block[1]} blocks, {one.kept:.0%} of all blocks kept: test accuracy {one.accuracy:.1%}")
    roles = {group_of(operator) for operator in operators}
    legend(figure, [(ROLES[role], role_token(role)) for role in ROLES if role in roles])
    return figure_file(figure, suffix)


def draw_masks(found: Pruned, suffix: str) -> bytes:
    """Figure 4: masks of the first and the last encoder block."""
    return figure_file(mask_pictures(pictured(found.trace)), suffix)


def main(
    densities: Annotated[Path | None, typer.Option("--densities", help="Figure 3 to write (.svg, .png, .pdf)")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="Figure 4 to write (.svg, .png, .pdf)")] = None,
) -> None:
    """Train, prune, read back; print what the paper says beside what is seen; draw where paths are given."""
    for path in filter(None, (densities, masks)):
        check_writable(path)
    torch.set_num_threads(1)
    model = trained()
    found = settings(model.state_dict())
    Console(width=150).print(as_table(found, accuracy(model)))
    if densities is not None:
        write_file(densities, draw_densities(found, densities.suffix))
    if masks is not None:
        write_file(masks, draw_masks(found[-1], masks.suffix))


if __name__ == "__main__":
    typer.run(main)
