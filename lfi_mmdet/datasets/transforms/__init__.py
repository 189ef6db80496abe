from .geometry import check_geometry
from .load_cached_targets import LoadCachedTargets
from .load_captions import LoadCaptions
from .measure_geometry import measure_geometry
from .pack_interaction_inputs import PackInteractionInputs
from .warp_maps import warp_maps

__all__ = [
    'LoadCachedTargets',
    'LoadCaptions',
    'PackInteractionInputs',
    'check_geometry',
    'measure_geometry',
    'warp_maps',
]
