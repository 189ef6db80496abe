from .interaction_distiller import InteractionDistiller
from .layer_mapping import map_layers
from .schedule import LossSchedule
from .target_grid import resample_maps

__all__ = ['InteractionDistiller', 'LossSchedule', 'map_layers', 'resample_maps']
