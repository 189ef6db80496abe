"""Targets of a teacher, computed once and kept on the disk."""

from .codec import DTYPES, decode, encode, error_bound, total_variation
from .errors import MissingTargetsError, TargetStoreError
from .meta import FORMAT_VERSION, TARGETS_VERSION, StoreMeta, differences
from .record import StoredTargets
from .store import TargetStoreReader, TargetStoreWriter, prepare_store
from .teacher_config import inner_teacher, more_texts, plain_teacher

__all__ = [
    'DTYPES',
    'FORMAT_VERSION',
    'MissingTargetsError',
    'StoreMeta',
    'StoredTargets',
    'TARGETS_VERSION',
    'TargetStoreError',
    'TargetStoreReader',
    'TargetStoreWriter',
    'decode',
    'differences',
    'encode',
    'error_bound',
    'inner_teacher',
    'more_texts',
    'plain_teacher',
    'prepare_store',
    'total_variation',
]
