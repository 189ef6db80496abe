from . import backbones, detectors, distillers, losses, necks, pretrainers, teachers

__all__ = [
    'backbones',
    'detectors',
    'distillers',
    'losses',
    'necks',
    'pretrainers',
    'teachers',
]
