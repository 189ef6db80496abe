"""What backbone, teacher and distiller hand to one another.

See DESIGN section 3 (data flow). Shapes use B images, K queries, T texts, h heads,
L layers and a grid of H x W patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class InteractionSpec:
    """What a backbone records, known before any image is seen.

    Args:
        layers: Block indices after which queries and patches interact, ascending.
        num_queries: K.
        embed_dims: Channels of a query.
        feedback: Whether the patches read from the queries, so that the detection
            losses reach the queries.
        output_dims: Channels of each output of the backbone.
        output_strides: Pixels per cell of each output.
    """

    layers: tuple[int, ...]
    num_queries: int
    embed_dims: int
    feedback: bool
    output_dims: tuple[int, ...] = ()
    output_strides: tuple[int, ...] = ()


@dataclass
class InteractionTrace:
    """The student's side: what the queries looked at in one forward pass.

    Attributes:
        logits: One tensor (B, h, K, H * W) per interaction layer, before the softmax
            and before padding is masked out.
        queries: One tensor (B, K, d) per interaction layer, after its update.
        grid: (H, W) of the patch grid.
        valid: Bool (B, H * W), False on padded patches; None if nothing is padded.
        outputs: What the backbone returned, one (B, C, H, W) per output.
    """

    logits: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)
    valid: Tensor | None = None
    outputs: tuple[Tensor, ...] = ()


@dataclass
class InteractionTargets:
    """The teacher's side: which patches each text attends to.

    Attributes:
        maps: (B, L, T, h, w), float32; over the grid each map sums to 1 and covers
            the unpadded area of its image. Rows of texts that are not present are
            undefined, but finite.
        present: Bool (B, T); True where the text describes the image.
        features: Text-conditioned visual features (B, L, T, C), float32, or None for
            a teacher that has none.
        relations: Cosines between the features of the texts, (B, L, T, T), float32;
            they stand in for features that are too large to be kept. None otherwise.
        log_mass: Log of what each map summed to before it was normalised, (B, L, T).
            Within an image it says how much a layer finds of each text, and tiles of
            an image are weighted by it. That of similarities and gradients is small
            in tiles that lack the text; attention sums to 1 in any tile, but for what
            goes to the CLS token, so that tiles count nearly alike. None if the
            teacher cannot tell.
        scores: The teacher's own score, from 0 to 1, that a text describes an image,
            (B, T); None if it has none.
        texts: Long (B, T), which text each row is, after :meth:`select`; None where
            row t is text t.
        tokens: Dense tokens of the patches, (B, L, h, w, C), float32, over the unpadded
            area of each image like the maps; L need not be that of the maps. Only
            there if the teacher's ``wants_tokens`` asks for them.
        class_embeds: With tokens of the joint space of images and texts, unit vectors
            of the classes in it, (T, C), float32; None otherwise.
    """

    maps: Tensor
    present: Tensor
    features: Tensor | None = None
    relations: Tensor | None = None
    log_mass: Tensor | None = None
    scores: Tensor | None = None
    texts: Tensor | None = None
    tokens: Tensor | None = None
    class_embeds: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> InteractionTargets:
        """Apply a function to every tensor."""
        held = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{k: fn(v) for k, v in held if v is not None})

    def select(self, present: Tensor) -> InteractionTargets:
        """Keep only the rows of the texts that are present.

        Images with fewer texts than the one with most are filled up with rows that are
        not present. Nothing waits for the device, since ``present`` is on the CPU.

        Args:
            present: Bool (B, T) on the CPU, the same as ``self.present``.

        Returns:
            Targets with P rows, at least 1, and ``texts`` of shape (B, P).
        """
        assert self.texts is None and present.device.type == 'cpu'
        count = max(1, int(present.sum(1).max())) if len(present) else 1
        rows = torch.argsort(present.byte(), dim=1, descending=True, stable=True)
        rows, device = rows[:, :count], self.maps.device
        kept = present.gather(1, rows).to(device, non_blocking=True)
        rows = rows.to(device, non_blocking=True)

        def pick(value: Tensor | None, axis: int) -> Tensor | None:
            return None if value is None else take_rows(value, rows, axis)

        maps, relations = pick(self.maps, 2), pick(self.relations, 2)
        assert maps is not None
        return InteractionTargets(
            maps=maps,
            present=kept,
            features=pick(self.features, 2),
            relations=pick(relations, 3),
            log_mass=pick(self.log_mass, 2),
            scores=pick(self.scores, 1),
            texts=rows,
            tokens=self.tokens,
            class_embeds=self.class_embeds,
        )

    def spread(self, num_texts: int) -> InteractionTargets:
        """Undo :meth:`select`: row t is text t again, missing ones are not present."""
        assert self.texts is not None
        count = self.maps.shape[2]
        # rows that only fill up must not overwrite those of the same text
        rows = torch.where(self.present, self.texts, num_texts)

        def back(value: Tensor | None, axis: int) -> Tensor | None:
            if value is None:
                return None
            size = list(value.shape)
            size[axis] = num_texts + 1
            shape = [len(rows)] + [1] * (value.ndim - 1)
            shape[axis] = count
            index = rows.view(shape).expand_as(value)
            wide = value.new_zeros(size).scatter(axis, index, value)
            return wide.narrow(axis, 0, num_texts)

        present, maps = back(self.present, 1), back(self.maps, 2)
        relations = back(back(self.relations, 2), 3)
        log_mass = back(self.log_mass, 2)
        assert maps is not None and present is not None
        if log_mass is not None:  # nothing is found of a text that is not looked for
            least = torch.finfo(log_mass.dtype).min
            log_mass = log_mass.masked_fill(~present[:, None], least)
        uniform = 1 / (maps.shape[-2] * maps.shape[-1])
        return InteractionTargets(
            maps=torch.where(present[:, None, :, None, None], maps, uniform),
            present=present,
            features=back(self.features, 2),
            relations=relations,
            log_mass=log_mass,
            scores=back(self.scores, 1),
            tokens=self.tokens,
            class_embeds=self.class_embeds,
        )


def take_rows(value: Tensor, rows: Tensor, axis: int) -> Tensor:
    """Pick other rows in every image.

    Args:
        value: (B, ..., T, ...), with T at ``axis``.
        rows: Long (B, P).
        axis: Which axis the rows are, at least 1.

    Returns:
        (B, ..., P, ...).
    """
    shape = [len(rows)] + [1] * (value.ndim - 1)
    shape[axis] = rows.shape[1]
    size = list(value.shape)
    size[axis] = rows.shape[1]
    return value.gather(axis, rows.view(shape).expand(size))


def take_layers(value: Tensor, layers: Sequence[int]) -> Tensor:
    """Pick layers (or heads), the second axis, of (B, L, ...).

    Indexing with a list would send it to the device and wait for all work there.
    """
    if list(layers) == list(range(value.shape[1])):
        return value
    return torch.stack([value[:, layer] for layer in layers], 1)


def valid_patches(
    img_shapes: Sequence[tuple[int, int]],
    grid: tuple[int, int],
    stride: tuple[float, float],
    device: torch.device | str = 'cpu',
) -> Tensor:
    """Mark the patches whose centre lies inside the unpadded image.

    Args:
        img_shapes: (height, width) in pixels of each image before batch padding.
        grid: (H, W) of the patch grid.
        stride: Height and width of a patch in pixels.
        device: Where the mask is made.

    Returns:
        Bool (B, H * W).
    """
    shapes = torch.tensor([tuple(s[:2]) for s in img_shapes], dtype=torch.float32)
    rows = (torch.arange(grid[0]) + 0.5) * stride[0]
    cols = (torch.arange(grid[1]) + 0.5) * stride[1]
    inside = (rows[None, :, None] < shapes[:, 0, None, None]) & (
        cols[None, None, :] < shapes[:, 1, None, None]
    )
    return inside.flatten(1).to(device, non_blocking=True)
