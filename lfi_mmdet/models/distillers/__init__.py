from .base import Distiller, build_distiller
from .combined_distiller import CombinedDistiller
from .defaults import default_distiller
from .feature_distiller import FeatureDistiller
from .interaction_distiller import InteractionDistiller
from .layer_mapping import map_layers
from .query_assignment import HungarianAssignment, SinkhornAssignment
from .schedule import LossSchedule
from .target_grid import resample_maps
from .teacher_mixin import TeacherMixin

__all__ = [
    'CombinedDistiller',
    'Distiller',
    'FeatureDistiller',
    'HungarianAssignment',
    'InteractionDistiller',
    'LossSchedule',
    'SinkhornAssignment',
    'TeacherMixin',
    'build_distiller',
    'default_distiller',
    'map_layers',
    'resample_maps',
]
