"""TRG: the graph of relations between tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from torch import Tensor, nn

from .base import DenseLoss, DensePair, places, whitened


@MODELS.register_module()
class TRGLoss(DenseLoss):
    """Token-level relationship graph (Zhang, Liu and He, 2023, arXiv 2306.12442).

    From each image some tokens are drawn; those of the whole batch are the nodes of two
    graphs, the student's and the teacher's, in which each node is tied to its k nearest
    others. Three parts::

        A_ij = exp(-|x_i - x_j|^2 / (2 sigma)) for neighbours, else 0
        L_local = mean_i KL(softmax_j A^S_ij || softmax_j A^T_ij)
        L_global = -mean_i log softmax_j(cos(P s_i, t_j) / tau)_i    P: linear
        CS = softmax(X X^T / sqrt(D)) over all tokens of an image
        L_inner = mean over tokens of |CS^T - CS^S|^2
        L = inner_weight * L_inner + local_weight * L_local + global_weight * L_global

    tau falls from coarse to fine in the course of the training. The equations are known
    to us from a summary of the paper, without the values of weights, sigma, k and tau:
    those below are ours. Tokens of transformers have no scale of their own, so nodes
    are unit vectors (sigma is then in units of 2 - 2 cos), and the X of L_inner are
    whitened. L_inner sums over a row, whose entries fall with the number of tokens.

    Args:
        loss_weight: Factor on all parts.
        inner_weight: Called alpha in the paper.
        local_weight: Called beta.
        global_weight: Called gamma.
        tokens_per_image: Nodes drawn from each image.
        neighbours: k.
        sigma: Width of the kernel.
        temperature: tau at the start and at the end of the training; linear between.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        inner_weight: float = 1.0,
        local_weight: float = 1.0,
        global_weight: float = 1.0,
        tokens_per_image: int = 32,
        neighbours: int = 8,
        sigma: float = 1.0,
        temperature: tuple[float, float] = (0.2, 0.07),
    ) -> None:
        super().__init__(loss_weight)
        for name, value in (
            ('tokens_per_image', tokens_per_image),
            ('neighbours', neighbours),
            ('sigma', sigma),
            ('temperature', min(temperature)),
        ):
            if not value > 0:
                raise ValueError(f'TRGLoss.{name}={value} must be above 0')
        self.inner_weight, self.local_weight = inner_weight, local_weight
        self.global_weight, self.sigma = global_weight, sigma
        self.tokens_per_image, self.neighbours = tokens_per_image, neighbours
        self.temperature = (float(temperature[0]), float(temperature[1]))

    def connect(self, student_dims: int, teacher_dims: int) -> None:
        """Build the projection to the teacher's channels."""
        if self.global_weight:
            self.proj = nn.Linear(student_dims, teacher_dims)

    def forward(self, pair: DensePair) -> Tensor:
        """See :meth:`DenseLoss.forward`."""
        valid = pair.valid.flatten(1)
        rows, there = draw(valid, self.tokens_per_image)
        student = nodes(places(pair.student), rows)
        teacher = nodes(places(pair.teacher), rows)
        loss = self.inner_weight * self.inner(pair, valid)
        loss = loss + self.local_weight * self.local(student, teacher, there)
        if self.global_weight:
            projected = self.proj(student)
            loss = loss + self.global_weight * self.contrast(projected, teacher, there)
        return self.loss_weight * loss

    def inner(self, pair: DensePair, valid: Tensor) -> Tensor:
        """L_inner, of all tokens of each image."""
        contexts = []
        for features in (pair.student, pair.teacher):
            tokens = places(whitened(features))
            logits = tokens @ tokens.mT / tokens.shape[-1] ** 0.5
            contexts.append(logits.masked_fill(~valid[:, None], -1e4).softmax(-1))
        error = (contexts[0] - contexts[1]).square().sum(-1)
        return (error * valid).sum() / valid.sum().clamp(min=1)

    def local(self, student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
        """L_local, of nodes (n, d) and (n, C) of which (n,) are there."""
        logs = []
        for tokens in (student, teacher):
            kernel = neighbour_kernel(tokens, there, self.neighbours, self.sigma)
            logs.append(kernel.masked_fill(~there, -1e4).log_softmax(-1))
        divergence = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        return (divergence * there).sum() / there.sum().clamp(min=1)

    def contrast(self, student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
        """L_global, of nodes (n, C) and (n, C) of which (n,) are there."""
        cosines = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).T
        logits = (cosines / self.current_temperature()).masked_fill(~there, -1e4)
        right = logits.log_softmax(-1).diagonal()
        return -(right * there).sum() / there.sum().clamp(min=1)

    def current_temperature(self) -> float:
        """tau at the iteration of the running training; outside of one, the first."""
        hub = MessageHub.get_current_instance()
        start, end = self.temperature
        if 'iter' not in hub.runtime_info or 'max_iters' not in hub.runtime_info:
            return start
        done = hub.get_info('iter') / max(hub.get_info('max_iters'), 1)
        return start + (end - start) * min(done, 1.0)


def draw(valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw places at random, in each image.

    Args:
        valid: Bool (B, N); padding is only drawn where nothing else is left.
        count: How many, at most N.

    Returns:
        Places, long (B, count), and which of them are valid, bool (B * count,).
    """
    chance = torch.rand(valid.shape, device=valid.device).masked_fill(~valid, -1)
    rows = chance.topk(min(count, valid.shape[1]), dim=1).indices
    return rows, valid.gather(1, rows).flatten()


def nodes(tokens: Tensor, rows: Tensor) -> Tensor:
    """The drawn tokens of all images, (B * count, C), of (B, N, C)."""
    index = rows[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, index).flatten(0, 1)


def neighbour_kernel(
    tokens: Tensor, there: Tensor, neighbours: int, sigma: float
) -> Tensor:
    """Adjacency of the graph of the nearest neighbours.

    Args:
        tokens: (n, C); only their directions matter.
        there: Bool (n,); others are nobody's neighbours.
        neighbours: k.
        sigma: Width of the kernel.

    Returns:
        (n, n), 0 where i is none of the k nearest others of j.
    """
    unit = F.normalize(tokens, dim=-1)
    squares = (2 - 2 * unit @ unit.T).clamp(min=0)
    far = squares.detach().masked_fill(~there[:, None], torch.inf)
    far = far.masked_fill(torch.eye(len(far), device=far.device).bool(), torch.inf)
    count = min(neighbours, len(far))
    # column j holds the neighbours of j
    nearest = far.topk(count, dim=0, largest=False).indices
    tied = torch.zeros_like(far).scatter(0, nearest, 1.0) * far.isfinite()
    return tied * (-squares / (2 * sigma)).exp()
