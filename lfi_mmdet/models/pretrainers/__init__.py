from .caption_pretrainer import CaptionPretrainer

__all__ = ['CaptionPretrainer']
