"""Which nouns of a caption an image shows: a loss on the patches."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def noun_logits(cosines: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Log-odds that nouns are in an image, from its patches.

    The patches vote by a soft maximum (multiple instance learning: a noun is there if
    some patch shows it)::

        logit = log mean over patches of exp(scale * cos(noun, patch)) + bias

    Up to a constant this is the log mass of the map that ``reading='similarity'``
    makes at the temperature ``1 / scale``.

    Args:
        cosines: (B, ..., N, T), of N patches and T nouns.
        scale: Scalar, above 0.
        bias: Scalar.

    Returns:
        (B, ..., T).
    """
    votes = (scale * cosines).logsumexp(-2)
    return votes - math.log(cosines.shape[-2]) + bias


def noun_presence_loss(logits: Tensor, named: Tensor) -> Tensor:
    """Binary cross entropy of every noun, whether a caption names it.

    Args:
        logits: (B, ..., T), see :func:`noun_logits`.
        named: Bool (B, T).

    Returns:
        Scalar, the mean.
    """
    shape = (len(named),) + (1,) * (logits.ndim - 2) + named.shape[1:]
    target = named.view(shape).expand_as(logits).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target)
