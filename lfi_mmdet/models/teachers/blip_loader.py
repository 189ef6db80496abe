"""Load BLIP models of mmpretrain: the two towers, and nothing of their training."""

from __future__ import annotations

import logging
import os
from textwrap import shorten
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from lfi_mmdet.compat.checkpoints import load_checkpoint

from .open_clip_loader import RANDOM_SEED

_TEXT = dict(
    architectures=['BertModel'],
    attention_probs_dropout_prob=0.1,
    hidden_act='gelu',
    hidden_dropout_prob=0.1,
    hidden_size=768,
    initializer_range=0.02,
    intermediate_size=3072,
    layer_norm_eps=1e-12,
    max_position_embeddings=512,
    model_type='bert',
    num_attention_heads=12,
    num_hidden_layers=12,
    pad_token_id=0,
    add_type_embeddings=False,
    vocab_size=30524,
    add_cross_attention=True,
)
#: Known sizes: the vision tower, what differs in the text tower, the joint space
ARCHS: dict[str, dict[str, Any]] = {
    'base': dict(vision=dict(arch='b', patch_size=16), text={}, joint_dims=256),
    'large': dict(vision=dict(arch='l', patch_size=16), text={}, joint_dims=256),
}


class BLIPNetwork(nn.Module):
    """The towers of BLIP and the heads that compare their outputs.

    Parameters carry the names they have in mmpretrain's ``BlipRetrieval``.

    Args:
        arch: A name in :data:`ARCHS`, or a dict with ``vision`` (arguments of
            mmpretrain's ``VisionTransformer``), ``text`` (what differs from BERT base)
            and ``joint_dims`` (width of the space of the contrastive loss).
        image_size: Side, or (height, width), of the input in pixels.
    """

    def __init__(
        self, arch: str | dict[str, Any], image_size: int | tuple[int, int]
    ) -> None:
        super().__init__()
        if isinstance(arch, str):
            if arch not in ARCHS:
                raise ValueError(
                    f'teacher.arch={arch!r} is not known; choose from {sorted(ARCHS)} '
                    'or give a dict with vision, text and joint_dims'
                )
            arch = ARCHS[arch]
        missing = sorted({'vision', 'text', 'joint_dims'} - set(arch))
        if missing:
            raise ValueError(f'teacher.arch={dict(arch)} lacks {missing}')
        vision_transformer, text_encoder = _import_towers()
        self.vision_backbone = vision_transformer(
            img_size=image_size, out_type='raw', **arch['vision']
        )
        dims = self.vision_backbone.embed_dims
        config = {**_TEXT, **arch['text'], 'encoder_width': dims}
        self.text_backbone = text_encoder(config)
        self.vision_neck = nn.Linear(dims, arch['joint_dims'])
        self.text_neck = nn.Linear(config['hidden_size'], arch['joint_dims'])
        self.multimodal_head = nn.ModuleDict(
            dict(fc=nn.Linear(config['hidden_size'], 2))
        )

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the text tower, each with a cross-attention."""
        return self.text_backbone.encoder.layer


def load_blip(
    arch: str | dict[str, Any],
    pretrained: str | None,
    image_size: int | tuple[int, int],
) -> BLIPNetwork:
    """Build BLIP and load its weights strictly.

    Args:
        arch: See :class:`BLIPNetwork`.
        pretrained: Path or address of a ``BlipRetrieval`` checkpoint of mmpretrain,
            or None for random weights, the same in every process.
        image_size: See :class:`BLIPNetwork`; position embeddings are resized.

    Raises:
        ImportError: If transformers is missing or too new.
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        network = BLIPNetwork(arch, image_size)
    if pretrained is None:
        print_log(
            'teacher.pretrained is None: BLIP has RANDOM weights, and its attention '
            'means nothing; good for tests only',
            logger='current',
            level=logging.WARNING,
        )
        return network
    checkpoint = load_checkpoint(os.path.expanduser(pretrained))
    state: dict[str, Tensor] = checkpoint.get('state_dict', checkpoint)
    own = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own}
    # a buffer that newer files leave out
    missing = [key for key in own.keys() - state.keys() if 'position_ids' not in key]
    wrong = [f'{key} is missing' for key in sorted(missing)]
    for key, value in sorted(fitting.items()):
        # the vision tower resizes its positions by itself
        if value.shape != own[key].shape and key != 'vision_backbone.pos_embed':
            wrong.append(
                f'{key} has shape {tuple(value.shape)}, the model needs '
                f'{tuple(own[key].shape)}'
            )
    if wrong:
        more = f'; and {len(wrong) - 5} more' if len(wrong) > 5 else ''
        raise ValueError(
            f'teacher.pretrained={pretrained!r} does not fit teacher.arch={arch!r} of '
            f'BLIP retrieval: {"; ".join(wrong[:5])}{more}'
        )
    network.load_state_dict(fitting, strict=False)
    return network


def load_blip_tokenizer(folder: str | None) -> Any:
    """Return BLIP's tokenizer: BERT's, with ``[DEC]`` and ``[ENC]`` added.

    Args:
        folder: Folder with ``vocab.txt``; None downloads that of bert-base-uncased.

    Raises:
        FileNotFoundError: If the folder has no vocabulary.
        RuntimeError: If it cannot be downloaded or read.
    """
    _import_towers()
    from mmpretrain.models.utils.tokenizer import BlipTokenizer

    source = 'bert-base-uncased'
    if folder is not None:
        source = os.path.expanduser(folder)
        if not os.path.isfile(os.path.join(source, 'vocab.txt')):
            raise FileNotFoundError(f'teacher.tokenizer={folder!r} has no vocab.txt')
    try:
        return BlipTokenizer.from_pretrained(source)
    except Exception as error:
        raise RuntimeError(
            f'the tokenizer {source!r} of BLIP cannot be loaded '
            f'({type(error).__name__}: {shorten(str(error), 300)}); without network, '
            'download vocab.txt of bert-base-uncased on another machine and give its '
            'folder: teacher.tokenizer=/path/to/folder'
        ) from error


def _import_towers() -> tuple[Any, Any]:
    """Import mmpretrain's classes, which are hollow without a fitting transformers."""
    reason: object = None
    try:
        import transformers
        from transformers.modeling_utils import apply_chunking_to_forward  # noqa: F401
    except ImportError as error:
        reason = error
    if reason is None:
        try:
            from mmpretrain.models import VisionTransformer
            from mmpretrain.models.multimodal.blip.language_model import XBertEncoder

            return VisionTransformer, XBertEncoder
        except (ImportError, TypeError) as error:
            reason = f'{error}; transformers {transformers.__version__}'
    raise ImportError(
        'BLIPTeacher needs mmpretrain and transformers>=4.28,<4.50 (the extra '
        f'`lfi_mmdet[blip]`): {reason}'
    )
