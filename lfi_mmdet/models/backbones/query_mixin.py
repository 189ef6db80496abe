"""What backbones with interaction queries have in common."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from lfi_mmdet.structures import InteractionSpec, InteractionTrace, valid_patches

from ..utils import QueryInteraction, load_text_embeddings, queries_from_texts

#: How the names of what belongs to the queries start in the state dict of a detector
QUERY_KEYS = (
    'backbone.queries',
    'backbone.interaction.',
    'backbone.interaction_in.',
    'backbone.interaction_out.',
)


class QueryMixin:
    """Start values of the queries, and a record of what they look at.

    Attributes:
        patch_size: Side in pixels of the cells that queries look at.
        num_queries: K; with 0 there are neither queries nor an interaction.
        embed_dims: Channels d of a query.
        text_embeddings: File that the queries start from, if any.
    """

    patch_size: int
    num_queries: int
    embed_dims: int
    text_embeddings: str | None
    queries: nn.Parameter
    interaction: QueryInteraction
    _trace: InteractionTrace | None = None
    _img_shapes: Sequence[tuple[int, int]] | None = None

    def init_queries(self, read_texts: bool = True) -> None:
        """Give queries and interaction their start values.

        Args:
            read_texts: Whether queries start from ``text_embeddings``, if there are
                any. A model that is built for weights of a file needs no other file.

        Raises:
            ValueError: If the file of text embeddings holds another number of texts.
        """
        # at std 0.02 a narrow ViT's logits are next to 0, and so are their gradients
        for module in self.interaction.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        if self.text_embeddings is None or not read_texts:
            nn.init.trunc_normal_(self.queries, std=0.02)
            return
        texts = load_text_embeddings(self.text_embeddings)
        if len(texts) != self.num_queries:
            raise ValueError(
                f'text_embeddings={self.text_embeddings} holds {len(texts)} texts, but '
                f'num_queries={self.num_queries}'
            )
        with torch.no_grad():
            self.queries.copy_(queries_from_texts(texts, self.embed_dims))

    @property
    @abstractmethod
    def interaction_spec(self) -> InteractionSpec:
        """What :meth:`interactions` records, known beforehand."""

    @contextmanager
    def interactions(
        self,
        img_shapes: Sequence[tuple[int, int]] | None = None,
        record: bool = True,
    ) -> Iterator[InteractionTrace]:
        """Mask padding and, if asked to, record the forward pass inside the block.

        Args:
            img_shapes: (height, width) of each image before batch padding; queries
                do not look at patches beyond. None if nothing is padded.
            record: Whether the trace that is handed out is filled.
        """
        if self._trace is not None:
            raise RuntimeError('a recording of this backbone is already under way')
        trace = InteractionTrace()
        self._trace, self._img_shapes = (trace if record else None), img_shapes
        try:
            yield trace
        finally:
            # nothing is left on the module
            del self._trace, self._img_shapes

    def valid_cells(self, grid: tuple[int, int], x: Tensor) -> Tensor | None:
        """Which cells show something of their image, bool (B, h * w).

        Args:
            grid: (h, w) of the cells.
            x: The images, (B, 3, H, W).

        Returns:
            None if nothing is padded.
        """
        shapes, size = self._img_shapes, x.shape[-2:]
        if shapes is None or all(tuple(s[:2]) == tuple(size) for s in shapes):
            return None
        return valid_patches(shapes, grid, (self.patch_size,) * 2, x.device)


def freeze(backbone: nn.Module, parameters: Iterable[nn.Parameter]) -> list[str]:
    """Freeze parameters that no loss reaches, and have the log name them.

    Args:
        backbone: What they belong to.
        parameters: Some of its parameters.

    Returns:
        Their names.
    """
    ids = set()
    for parameter in parameters:
        parameter.requires_grad_(False)
        ids.add(id(parameter))
    names = [n for n, p in backbone.named_parameters() if id(p) in ids]
    if names:
        whole = (re.sub(r'^(blocks\.\d+)\..*', r'\1', name) for name in names)
        print_log(
            f'no loss reaches {len(names)} parameters of the backbone; frozen: '
            f'{", ".join(dict.fromkeys(whole))}',
            logger='current',
        )
    return names
