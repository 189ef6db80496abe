from .load_captions import LoadCaptions

__all__ = ['LoadCaptions']
