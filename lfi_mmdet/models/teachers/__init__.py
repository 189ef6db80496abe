from .base import FrozenTeacher
from .blip import BLIPTeacher
from .cached import CachedTeacher
from .clip import CLIPTeacher
from .coca import CoCaTeacher
from .ensemble import EnsembleTeacher
from .ground_truth import GroundTruthTeacher
from .prompted import PromptTeacher, Reading
from .random_weights import RandomTeacher
from .shuffled import ShuffledTeacher
from .siglip import SigLIPTeacher
from .uniform import UniformTeacher
from .wrapper import TeacherWrapper

__all__ = [
    'BLIPTeacher',
    'CLIPTeacher',
    'CachedTeacher',
    'CoCaTeacher',
    'EnsembleTeacher',
    'FrozenTeacher',
    'GroundTruthTeacher',
    'PromptTeacher',
    'RandomTeacher',
    'Reading',
    'ShuffledTeacher',
    'SigLIPTeacher',
    'TeacherWrapper',
    'UniformTeacher',
]
