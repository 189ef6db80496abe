from .caption_pretrainer import CaptionPretrainer
from .interaction_pretrainer import InteractionPretrainer

__all__ = ['CaptionPretrainer', 'InteractionPretrainer']
