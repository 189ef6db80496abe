from .class_names_hook import ClassNamesHook
from .dataset_check_hook import DatasetCheckHook
from .iteration_seed_hook import IterationSeedHook
from .progress_bar_hook import ProgressBarHook

__all__ = [
    'ClassNamesHook',
    'DatasetCheckHook',
    'IterationSeedHook',
    'ProgressBarHook',
]
