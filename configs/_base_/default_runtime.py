_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['lfi_mmdet'], allow_failed_imports=False)
find_unused_parameters = False
default_hooks = dict(
    dataset_check=dict(type='DatasetCheckHook'),
    # the texts of an LFI teacher are the class names of the training dataset
    class_names=dict(type='ClassNamesHook'),
    # a resumed run repeats an uninterrupted one; see also persistent_workers
    iteration_seed=dict(type='IterationSeedHook'),
)
