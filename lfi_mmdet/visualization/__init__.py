from .detections import draw_detections
from .interaction_maps import MapPanel, MapRow, draw_interaction_maps, map_rows

__all__ = [
    'MapPanel',
    'MapRow',
    'draw_detections',
    'draw_interaction_maps',
    'map_rows',
]
