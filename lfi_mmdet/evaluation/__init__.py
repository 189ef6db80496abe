from .complexity import FlopCount, count_flops, count_parameters
from .dataloader import interaction_dataloader
from .demo_batch import DemoBatch
from .interaction_divergence import (
    InteractionDivergence,
    LayerDivergence,
    interaction_divergence,
)
from .reading import InteractionReading, evaluation_mode, read_interactions
from .report import run_info, write_json
from .timing import Timing, time_in_turns

__all__ = [
    'DemoBatch',
    'FlopCount',
    'InteractionDivergence',
    'InteractionReading',
    'LayerDivergence',
    'Timing',
    'count_flops',
    'count_parameters',
    'evaluation_mode',
    'interaction_dataloader',
    'interaction_divergence',
    'read_interactions',
    'run_info',
    'time_in_turns',
    'write_json',
]
