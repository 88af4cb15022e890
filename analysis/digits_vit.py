"""A small ViT on the handwritten digits that ship with scikit-learn: training and short fine-tuning, repeatable bit for bit.

1797 grey images of 8 x 8 pixels in ten classes, 1200 to train on and 597 to test, split anew for every seed. The model is timm's
own ``VisionTransformer`` (2 x 2 patches, width 48, 4 blocks, 4 heads), so it is read, pruned and priced like any other.
The optical digits are of Alpaydin and Kaynak (UCI repository, 1998).

    python analysis/digits_vit.py --seed 0 --variant tok
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_args

import typer

from hwmodel.errors import UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import nn

Variant = Literal["plain", "tok"]
TRAINED, TESTED = 1200, 597
TOKENS = (16, 9, 5, 2)
"""Patch tokens that the MLP of each block of variant "tok" sees; a block's attention still sees those of the block before."""
EPOCHS, BATCH = 60, 64
RATE, WEIGHT_DECAY = 5e-3, 0.05
TUNING_EPOCHS, TUNING_RATE = 3, 2e-3


class Images(Protocol):
    """What is trained and tested on."""

    def __len__(self) -> int: ...

    def batches(self, size: int, seed: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels of ``size`` images each, in order, or shuffled by ``seed``."""
        ...


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images in memory.

    Parameters
    ----------
    images : (images, channels, height, width) float32
    labels : (images,) int64
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, seed: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels of ``size`` images each, in order, or shuffled by ``seed``."""
        import torch

        order = torch.arange(len(self))
        if seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for chosen in torch.split(order, size):
            yield self.images[chosen], self.labels[chosen]

    def first(self, count: int) -> Labelled:
        """The first ``count`` images."""
        return Labelled(self.images[:count], self.labels[:count])


def digits(seed: int) -> tuple[Labelled, Labelled]:
    """Images to train on and to test on: a stratified split, pixels scaled to [-1, 1]."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded: Any = load_digits()
    parts = train_test_split(
        loaded.images, loaded.target, train_size=TRAINED, test_size=TESTED, stratify=loaded.target, random_state=seed
    )

    def labelled(images: Any, labels: Any) -> Labelled:
        return Labelled(torch.tensor(images / 8.0 - 1.0, dtype=torch.float32)[:, None], torch.tensor(labels, dtype=torch.int64))

    return labelled(parts[0], parts[2]), labelled(parts[1], parts[3])


def build(seed: int, variant: Variant = "plain", *, widen: int = 1) -> nn.Module:
    """The untrained model: 114 778 parameters; "tok" keeps 16, 9, 5 and 2 patch tokens in its four blocks.

    ``widen`` makes every layer so many times as wide, to price what a wider model with the same masks would cost.
    """
    import torch

    from hwmodel.extraction.torchvision_repair import import_torchvision
    from hwmodel.pruning.tokens import topk_tokens

    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    if variant not in get_args(Variant):
        raise UnknownNameError("variant", variant, get_args(Variant))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=48 * widen, depth=4, num_heads=4, weight_init="jax"
        )
    keep = {block: TOKENS[block] / TOKENS[block - 1] for block in range(1, len(TOKENS))}
    return plain if variant == "plain" else topk_tokens(plain, keep)


def train(seed: int, *, epochs: int = EPOCHS, variant: Variant = "plain") -> nn.Module:
    """The model after training on the digits of ``seed``, in eval mode. About 30 CPU seconds."""
    model, (split, _) = build(seed, variant), digits(seed)
    _fit(model, split, epochs=epochs, rate=RATE, seed=seed)
    return model


def fine_tune(model: nn.Module, split: Images, *, epochs: int = TUNING_EPOCHS, rate: float = TUNING_RATE, seed: int = 0) -> None:
    """Train ``model`` on, in place. Weights of linear layers and convolutions that are zero stay zero, so masks are kept."""
    import torch
    from torch import nn

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    weights = [parameter for layer in layers for parameter in layer.parameters() if parameter.ndim > 1]
    kept = [weight != 0 for weight in weights]

    def mask() -> None:
        with torch.no_grad():
            for weight, alive in zip(weights, kept, strict=True):
                weight.mul_(alive)

    _fit(model, split, epochs=epochs, rate=rate, seed=seed, after_step=mask)


def accuracy(model: nn.Module, split: Images, *, batch: int = 256) -> float:
    """Top-1: the share of the images whose class is found."""
    import torch

    model.eval()
    with torch.no_grad(), _one_thread():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in split.batches(batch))
    return right / len(split)


def _fit(
    model: nn.Module, split: Images, *, epochs: int, rate: float, seed: int, after_step: Callable[[], None] = lambda: None
) -> None:
    """AdamW on the cross-entropy, its rate up to ``rate`` and down again (one cycle); batches reshuffled every epoch."""
    import torch
    from torch.nn.functional import cross_entropy

    if epochs < 1:
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    steps = epochs * ceil(len(split) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    with _one_thread():
        for epoch in range(epochs):
            for images, labels in split.batches(BATCH, seed=1000 * seed + epoch):
                optimizer.zero_grad()
                cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                after_step()
                schedule.step()
    model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, so that sums are taken in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(
    seed: Annotated[int, typer.Option(help="of the split, the initial weights and the shuffling")] = 0,
    epochs: Annotated[int, typer.Option(help="passes over the training images")] = EPOCHS,
    variant: Annotated[Variant, typer.Option(help="tok drops tokens")] = "plain",
) -> None:
    """Train one model and print its accuracy."""
    model = train(seed, epochs=epochs, variant=variant)
    _, test = digits(seed)
    print(f"seed {seed}, {variant}, {epochs} epochs: top-1 {accuracy(model, test):.1%} of {len(test)} test images")


if __name__ == "__main__":
    typer.run(main)
