from .base import FrozenTeacher
from .clip import CLIPTeacher
from .coca import CoCaTeacher
from .ground_truth import GroundTruthTeacher
from .prompted import PromptTeacher
from .siglip import SigLIPTeacher

__all__ = [
    'CLIPTeacher',
    'CoCaTeacher',
    'FrozenTeacher',
    'GroundTruthTeacher',
    'PromptTeacher',
    'SigLIPTeacher',
]
