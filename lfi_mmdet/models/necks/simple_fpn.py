"""The simple feature pyramid of ViTDet."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from torch import Tensor, nn


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Build a pyramid from the last, single-scale feature map of a plain backbone.

    Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection*,
    2022: parallel (de)convolutions of one map at 4, 2, 1 and 1/2 times its
    resolution, each followed by a 1x1 and a 3x3 convolution with LayerNorm.

    Args:
        in_channels: Channels of the backbone's map.
        out_channels: Channels of every level.
        num_outs: Number of levels; those beyond ``scales`` are made by max pooling.
        scales: Resolutions of the levels over that of the map, from fine to coarse;
            4, 2, 1 and 0.5 are known.
        init_cfg: See :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_extra = num_outs - len(scales)
        if self.num_extra < 0:
            raise ValueError(
                f'neck.num_outs={num_outs} is less than the {len(scales)} levels of '
                f'neck.scales={tuple(scales)}'
            )
        c = in_channels
        known: dict[float, tuple[nn.Module, int]] = {
            4: (
                nn.Sequential(
                    nn.ConvTranspose2d(c, c // 2, 2, 2),
                    LayerNorm2d(c // 2, eps=1e-6),
                    nn.GELU(),
                    nn.ConvTranspose2d(c // 2, c // 4, 2, 2),
                ),
                c // 4,
            ),
            2: (nn.ConvTranspose2d(c, c // 2, 2, 2), c // 2),
            1: (nn.Identity(), c),
            0.5: (nn.MaxPool2d(2, 2), c),
        }
        unknown = [scale for scale in scales if scale not in known]
        if unknown:
            raise ValueError(f'neck.scales={unknown}; choose from {tuple(known)}')
        self.levels = nn.ModuleList(
            nn.Sequential(
                known[scale][0],
                nn.Conv2d(known[scale][1], out_channels, 1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
            )
            for scale in scales
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make the levels, fine to coarse, from the last input, (B, C, H, W)."""
        outs = [level(inputs[-1]) for level in self.levels]
        for _ in range(self.num_extra):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
