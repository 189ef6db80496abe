from .benchmark import Benchmark
from .checkpoint_size import checkpoint_bytes
from .complexity import FlopCount, count_flops, count_parameters
from .dataloader import interaction_dataloader
from .demo_batch import demo_data, full_proposals, head_work
from .interaction_divergence import (
    InteractionDivergence,
    LayerDivergence,
    interaction_divergence,
)
from .loader_timing import PipelineTimer, time_loaders
from .memory import peak_memory, resident_bytes
from .reading import InteractionReading, evaluation_mode, read_interactions
from .report import run_info, write_json
from .subjects import Setting, Subject, build_subjects
from .timing import Spread, time_in_turns
from .train_step import TrainStep
from .variants import MEASURES, TARGETS, Variant

__all__ = [
    'MEASURES',
    'TARGETS',
    'Benchmark',
    'FlopCount',
    'InteractionDivergence',
    'InteractionReading',
    'LayerDivergence',
    'PipelineTimer',
    'Setting',
    'Spread',
    'Subject',
    'TrainStep',
    'Variant',
    'build_subjects',
    'checkpoint_bytes',
    'count_flops',
    'count_parameters',
    'demo_data',
    'evaluation_mode',
    'full_proposals',
    'head_work',
    'interaction_dataloader',
    'interaction_divergence',
    'peak_memory',
    'read_interactions',
    'resident_bytes',
    'run_info',
    'time_in_turns',
    'time_loaders',
    'write_json',
]
