from . import backbones, detectors, distillers, losses, necks, teachers

__all__ = ['backbones', 'detectors', 'distillers', 'losses', 'necks', 'teachers']
