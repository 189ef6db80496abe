from .class_names_hook import ClassNamesHook
from .compile_hook import CompileHook
from .dataset_check_hook import DatasetCheckHook
from .iteration_seed_hook import IterationSeedHook
from .progress_bar_hook import ProgressBarHook

__all__ = [
    'ClassNamesHook',
    'CompileHook',
    'DatasetCheckHook',
    'IterationSeedHook',
    'ProgressBarHook',
]
