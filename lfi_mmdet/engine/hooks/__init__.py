from .class_names_hook import ClassNamesHook
from .compile_hook import CompileHook
from .dataset_check_hook import DatasetCheckHook
from .invalid_loss_hook import InvalidLossHook
from .iteration_seed_hook import IterationSeedHook
from .paired_start_hook import PairedStartHook
from .progress_bar_hook import ProgressBarHook
from .run_record_hook import RunRecordHook
from .test_sets_hook import TestSetsHook

__all__ = [
    'ClassNamesHook',
    'CompileHook',
    'DatasetCheckHook',
    'InvalidLossHook',
    'IterationSeedHook',
    'PairedStartHook',
    'ProgressBarHook',
    'RunRecordHook',
    'TestSetsHook',
]
