"""A tiny BLIP and its vocabulary, built on the spot."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = (
    '[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the drawing cat traffic light zeb ##ra '
    'kitten and on grass . two ##s'
).split()
VOCABULARY = len(WORDS) + 2  # [DEC] and [ENC]
ARCH = dict(
    vision=dict(
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        patch_size=8,
    ),
    text=dict(
        hidden_size=24,
        intermediate_size=48,
        num_attention_heads=3,
        num_hidden_layers=3,
        max_position_embeddings=40,
        vocab_size=VOCABULARY,
    ),
    joint_dims=16,
)


def write_vocabulary(folder: Path) -> str:
    """Write ``vocab.txt``; returns the folder."""
    (folder / 'vocab.txt').write_text('\n'.join(WORDS))
    return str(folder)


def sharpen(network: torch.nn.Module) -> None:
    """Random BERTs attend almost uniformly; this one does not."""
    torch.manual_seed(0)
    for name, value in network.named_parameters():
        if value.ndim > 1 and 'crossattention.self' in name:
            value.data.normal_(std=0.5)
        elif value.ndim > 1:
            value.data.normal_(std=0.2)


def save_weights(network: torch.nn.Module, file: Path) -> str:
    """Save as mmpretrain's retrieval model does, momentum towers included."""
    state = dict(network.state_dict())
    state.update(
        {'vision_backbone_m.cls_token': torch.zeros(1), 'temp': torch.ones([])}
    )
    torch.save(dict(state_dict=state, meta={}), file)
    return str(file)
