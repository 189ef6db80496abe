"""How far the queries' attention is from the teacher's, and from the objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lfi_mmdet.models.detectors import LFIMixin
from lfi_mmdet.models.losses.attention import map_divergence

from .reading import InteractionReading, class_masks, read_interactions


@dataclass
class LayerDivergence:
    """Means over the dataset for one supervised layer.

    Attributes:
        layer: Block of the student after which the queries looked.
        teacher_layer: Layer of the teacher, counted from 0.
        kl: KL(teacher || student) in nats, over all present (image, text) rows.
        kl_uniform: The same for a student that looks everywhere alike.
        pointing: Share of rows in which the centre of the student's first patch lies
            on an object of the class; None without ground-truth masks.
        mass_inside: Share of the student's attention on the objects of the class;
            None without ground-truth masks.
        teacher_pointing: The same for the teacher, on the student's grid.
        teacher_mass_inside: The same for the teacher.
    """

    layer: int
    teacher_layer: int
    kl: float
    kl_uniform: float
    pointing: float | None
    mass_inside: float | None
    teacher_pointing: float | None
    teacher_mass_inside: float | None


@dataclass
class InteractionDivergence:
    """Result of :func:`interaction_divergence`.

    Attributes:
        layers: One entry per supervised layer.
        num_images: Images seen.
        num_rows: Present (image, text) rows.
        num_mask_rows: Those whose class has a mask in the image.
        area_inside: Share of the image under the masks, which is ``mass_inside`` of
            a student that looks everywhere alike; None without masks.
    """

    layers: list[LayerDivergence]
    num_images: int
    num_rows: int
    num_mask_rows: int
    area_inside: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return asdict(self)


def interaction_divergence(
    model: LFIMixin, batches: Iterable[dict]
) -> InteractionDivergence:
    """Compare the attention of the queries with the teacher's and the ground truth.

    Args:
        model: Detector with a teacher and a distiller; its mode is left as it was.
        batches: A dataloader such as :func:`interaction_dataloader`'s.

    Raises:
        ValueError: If the detector has no teacher, or no text is present anywhere.
    """
    return summarise(read_interactions(model, batch) for batch in batches)


def summarise(readings: Iterable[InteractionReading]) -> InteractionDivergence:
    """Average over the rows of all batches; see :func:`interaction_divergence`."""
    values: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    areas: list[Tensor] = []
    layers: list[tuple[int, int]] = []
    num_images = 0
    for reading in readings:
        layers, num_images = reading.layers, num_images + len(reading.data_samples)
        rows, centre, cover = mask_rows(reading)
        areas.append((cover * uniform_maps(reading)[rows[0]]).sum(-1).cpu())
        for i in range(len(layers)):
            for name, value in _layer_values(reading, i, rows, centre, cover).items():
                values[name, i].append(value.double().cpu())
    num_rows = sum(len(v) for v in values['kl', 0])
    num_mask_rows = sum(map(len, areas))
    if not num_rows:
        raise ValueError(f'no text is present in any of the {num_images} images')

    def mean(parts: list[Tensor]) -> float | None:
        joined = torch.cat(parts)
        return float(joined.double().mean()) if len(joined) else None

    names = sorted({name for name, _ in values})
    return InteractionDivergence(
        layers=[
            LayerDivergence(s, t, **{n: mean(values[n, i]) for n in names})  # type: ignore[arg-type]
            for i, (s, t) in enumerate(layers)
        ],
        num_images=num_images,
        num_rows=num_rows,
        num_mask_rows=num_mask_rows,
        area_inside=mean(areas),
    )


def uniform_maps(reading: InteractionReading) -> Tensor:
    """Maps that look at all unpadded patches alike, (B, N)."""
    valid = reading.valid.float()
    return valid / valid.sum(-1, keepdim=True)


def mask_rows(
    reading: InteractionReading,
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Lay the ground-truth masks of the present texts on the student's grid.

    Returns:
        The R rows with a mask as indices (image, text); bool (R, N), whether the mask
        covers a patch's centre; float (R, N), the share of a patch that it covers, of
        what is no padding.
    """
    present, (h, w), p = reading.present.cpu(), reading.grid, reading.patch_size
    images, texts, centres, covers = [], [], [], []

    def shares(area: Tensor) -> Tensor:
        """Share of each patch's pixels, flattened (N,)."""
        padding = (0, w * p - area.shape[1], 0, h * p - area.shape[0])
        return F.avg_pool2d(F.pad(area.float(), padding)[None], p).flatten()

    for image, sample in enumerate(reading.data_samples):
        for label, mask in class_masks(sample).items():
            if not present[image, label] or not mask.any():
                continue
            full = mask.new_zeros(h * p, w * p)
            full[: mask.shape[0], : mask.shape[1]] = mask
            images.append(image)
            texts.append(label)
            centres.append(full[p // 2 :: p, p // 2 :: p].flatten())
            inside = shares(torch.ones_like(mask))
            covers.append(shares(mask) / inside.clamp(min=1 / p**2))
    device = reading.valid.device
    rows = (
        torch.tensor(images, dtype=torch.long, device=device),
        torch.tensor(texts, dtype=torch.long, device=device),
    )
    empty = torch.zeros(0, h * w)
    return (
        rows,
        (torch.stack(centres) if centres else empty.bool()).to(device),
        (torch.stack(covers) if covers else empty).to(device),
    )


def _layer_values(
    reading: InteractionReading,
    index: int,
    rows: tuple[Tensor, Tensor],
    centre: Tensor,
    cover: Tensor,
) -> dict[str, Tensor]:
    """The terms of :class:`LayerDivergence` before the mean, one value per row."""
    pair, present = reading.pairs[index], reading.present
    uniform = uniform_maps(reading).clamp(min=1e-30).log()[:, None]
    student, teacher = pair.log_attention.exp()[rows], pair.target[rows]

    def pointing(maps: Tensor) -> Tensor:
        return centre.gather(1, maps.argmax(-1, keepdim=True))[:, 0]

    return dict(
        kl=map_divergence(pair.log_attention, pair.target)[present],
        kl_uniform=map_divergence(uniform, pair.target)[present],
        pointing=pointing(student),
        mass_inside=(student * cover).sum(-1),
        teacher_pointing=pointing(teacher),
        teacher_mass_inside=(teacher * cover).sum(-1),
    )
