"""Start values of the interaction queries from text embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load_text_embeddings(path: str | Path) -> Tensor:
    """Read a (K, C) array of text embeddings, ``.npy`` or ``.pt``/``.pth``.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is broken, of another format, or not two-dimensional.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'text embeddings {path}: no such file')
    try:
        if path.suffix == '.npy':
            array = torch.from_numpy(np.load(path).astype(np.float32))
        elif path.suffix in ('.pt', '.pth'):
            array = torch.load(path, map_location='cpu', weights_only=True).float()
        else:
            raise ValueError('choose a .npy, .pt or .pth file')
    except Exception as error:
        raise ValueError(f'text embeddings {path} cannot be read: {error}') from error
    if array.ndim != 2:
        raise ValueError(
            f'text embeddings {path} have shape {tuple(array.shape)}, not (texts, dims)'
        )
    return array


def queries_from_texts(
    embeddings: Tensor, embed_dims: int, std: float = 0.02
) -> Tensor:
    """Carry the geometry of text embeddings over to queries of another width.

    The normalised embeddings are expressed in their principal directions, of which
    the first ``embed_dims`` are kept, and turned by a fixed random rotation. Cosines
    between texts are kept exactly if their rank is at most ``embed_dims``, which holds
    for up to ``embed_dims`` texts, and best in the least-squares sense otherwise. No
    parameter is added.

    Args:
        embeddings: (K, C), of any length.
        embed_dims: Channels d of a query.
        std: Root mean square of the result.

    Returns:
        (K, d), float32.
    """
    texts = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    u, s, _ = torch.linalg.svd(texts, full_matrices=False)
    rank = min(embed_dims, s.numel())
    coordinates = texts.new_zeros(len(texts), embed_dims)
    coordinates[:, :rank] = u[:, :rank] * s[:rank]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(
        embed_dims, embed_dims, generator=generator, dtype=torch.float64
    )
    rotation, _ = torch.linalg.qr(noise)
    return (coordinates @ rotation * std * embed_dims**0.5).float()
