from .interaction import QueryInteraction
from .query_init import load_text_embeddings, queries_from_texts
from .query_weights import own_weights, pretrained_file
from .stage_grid import to_grid
from .vit_block import ViTBlock
from .vit_checkpoint import load_vit_checkpoint

__all__ = [
    'QueryInteraction',
    'ViTBlock',
    'load_text_embeddings',
    'load_vit_checkpoint',
    'own_weights',
    'pretrained_file',
    'queries_from_texts',
    'to_grid',
]
