from .interaction import QueryInteraction
from .query_init import load_text_embeddings, queries_from_texts
from .vit_block import ViTBlock
from .vit_checkpoint import load_vit_checkpoint

__all__ = [
    'QueryInteraction',
    'ViTBlock',
    'load_text_embeddings',
    'load_vit_checkpoint',
    'queries_from_texts',
]
