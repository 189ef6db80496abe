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
        num_outs: Number of levels; those beyond the four are made by max pooling.
        init_cfg: See :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < 4:
            raise ValueError(f'neck.num_outs={num_outs} is less than the 4 levels')
        self.num_extra = num_outs - 4
        c = in_channels
        scales = [
            nn.Sequential(
                nn.ConvTranspose2d(c, c // 2, 2, 2),
                LayerNorm2d(c // 2, eps=1e-6),
                nn.GELU(),
                nn.ConvTranspose2d(c // 2, c // 4, 2, 2),
            ),
            nn.ConvTranspose2d(c, c // 2, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2, 2),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels, eps=1e-6),
            )
            for scale, channels in zip(scales, (c // 4, c // 2, c, c))
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """From the last of ``inputs``, (B, C, H, W), make levels from 4H x 4W down."""
        outs = [level(inputs[-1]) for level in self.levels]
        for _ in range(self.num_extra):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
