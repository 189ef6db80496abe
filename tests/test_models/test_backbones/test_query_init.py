"""Queries that start from text embeddings."""

import numpy as np
import pytest
import torch

from lfi_mmdet.models.backbones import InteractionViT
from lfi_mmdet.models.utils import load_text_embeddings, queries_from_texts


def cosines(x: torch.Tensor) -> torch.Tensor:
    x = torch.nn.functional.normalize(x.double(), dim=-1)
    return x @ x.T


@pytest.mark.parametrize('dims', [16, 64])
def test_cosines_between_texts_survive_a_change_of_width(dims):
    texts = torch.randn(10, 32)
    queries = queries_from_texts(texts, dims)
    assert queries.shape == (10, dims)
    torch.testing.assert_close(cosines(queries), cosines(texts), atol=1e-5, rtol=0)


def test_more_texts_than_channels_keep_the_strongest_directions():
    texts = torch.randn(50, 4) @ torch.randn(4, 32) + 1e-3 * torch.randn(50, 32)
    error = (cosines(queries_from_texts(texts, 8)) - cosines(texts)).abs().max()
    assert error < 1e-3


def test_their_size_is_that_of_random_queries():
    queries = queries_from_texts(torch.randn(10, 32), 16, std=0.02)
    assert abs(queries.square().mean().sqrt().item() - 0.02) < 1e-6


def make_vit(path, num_queries):
    return InteractionViT(
        arch=dict(embed_dims=24, num_layers=2, num_heads=3), global_layers=(1,),
        interaction_layers=(1,), num_queries=num_queries, text_embeddings=str(path),
    )  # fmt: skip


def test_the_backbone_starts_from_the_file(tmp_path):
    texts = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float16)
    np.save(tmp_path / 'texts.npy', texts)
    model = make_vit(tmp_path / 'texts.npy', 6)
    model.init_weights()
    expected = queries_from_texts(load_text_embeddings(tmp_path / 'texts.npy'), 24)
    assert torch.equal(model.queries.data, expected)


def test_a_file_with_another_number_of_texts_is_refused(tmp_path):
    torch.save(torch.randn(5, 8), tmp_path / 'texts.pt')
    with pytest.raises(ValueError, match='holds 5 texts, but num_queries=6'):
        make_vit(tmp_path / 'texts.pt', 6).init_weights()


def test_missing_broken_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.npy'):
        load_text_embeddings(tmp_path / 'none.npy')
    (tmp_path / 'broken.npy').write_bytes(b'\x93NUMPY')
    with pytest.raises(ValueError, match='broken.npy cannot be read'):
        load_text_embeddings(tmp_path / 'broken.npy')
    (tmp_path / 'texts.txt').write_text('1 2')
    with pytest.raises(ValueError, match='choose a .npy, .pt or .pth'):
        load_text_embeddings(tmp_path / 'texts.txt')
    np.save(tmp_path / 'flat.npy', np.ones(3))
    with pytest.raises(ValueError, match=r'shape \(3,\)'):
        load_text_embeddings(tmp_path / 'flat.npy')
