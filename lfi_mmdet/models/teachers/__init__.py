from .base import FrozenTeacher
from .clip import CLIPTeacher
from .coca import CoCaTeacher
from .ground_truth import GroundTruthTeacher

__all__ = ['CLIPTeacher', 'CoCaTeacher', 'FrozenTeacher', 'GroundTruthTeacher']
