from .interaction_distiller import InteractionDistiller
from .layer_mapping import map_layers
from .query_assignment import HungarianAssignment, SinkhornAssignment
from .schedule import LossSchedule
from .target_grid import resample_maps

__all__ = [
    'HungarianAssignment',
    'InteractionDistiller',
    'LossSchedule',
    'SinkhornAssignment',
    'map_layers',
    'resample_maps',
]
