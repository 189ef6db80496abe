from .base import FrozenTeacher
from .blip import BLIPTeacher
from .cached import CachedTeacher
from .clip import CLIPTeacher
from .coca import CoCaTeacher
from .ensemble import EnsembleTeacher
from .ground_truth import GroundTruthTeacher
from .prompted import PromptTeacher, Reading
from .siglip import SigLIPTeacher

__all__ = [
    'BLIPTeacher',
    'CLIPTeacher',
    'CachedTeacher',
    'CoCaTeacher',
    'EnsembleTeacher',
    'FrozenTeacher',
    'GroundTruthTeacher',
    'PromptTeacher',
    'Reading',
    'SigLIPTeacher',
]
