"""Every teacher of a config can be built: on a tiny network in place of a download."""

import copy
from functools import cache
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from lfi_mmdet.models.teachers import FrozenTeacher
from lfi_mmdet.registry import build_part
from tests.test_models.test_teachers.tiny_blip import ARCH, write_vocabulary
from tests.test_models.test_teachers.tiny_open_clip import write_configs

CONFIGS = Path(__file__).parents[2] / 'configs' / 'lfi'
CLASSES = CocoDataset.METAINFO['classes']
#: Tiny models of the same kind
TINY = {
    'coca_ViT-L-14': 'tiny-coca',
    'ViT-B-16': 'tiny-clip',
    'ViT-B-16-quickgelu': 'tiny-clip',
    'EVA02-B-16': 'tiny-eva',
    'ViT-B-16-SigLIP': 'tiny-sigmoid',
    'ViT-B-16-SigLIP2': 'tiny-sigmoid',
}


@cache
def read(path):
    return Config.fromfile(path).model.get('teacher') or {}  # takes long


def teachers_of(path):
    """Configs of the single teachers a config names, which may be changed."""
    teacher = copy.deepcopy(read(path))
    return list(teacher.get('teachers', [teacher] if teacher else []))


ONLINE = [
    path
    for path in sorted(CONFIGS.glob('*_coco.py'))
    if any('pretrained' in teacher for teacher in teachers_of(path))
]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    import open_clip

    models = write_configs(tmp_path_factory.mktemp('models'))
    open_clip.add_model_config(models)
    return models, write_vocabulary(tmp_path_factory.mktemp('vocabulary'))


def test_there_is_a_config_for_every_teacher():
    names = {teacher.type for path in ONLINE for teacher in teachers_of(path)}
    assert names == {'BLIPTeacher', 'CLIPTeacher', 'CoCaTeacher', 'SigLIPTeacher'}
    assert len(ONLINE) >= 10


@pytest.mark.parametrize('path', ONLINE, ids=lambda path: path.stem)
def test_the_weights_of_a_config_are_known(path):
    import open_clip

    for teacher in teachers_of(path):
        if teacher.type == 'BLIPTeacher':
            assert teacher.pretrained.endswith('.pth')
        else:
            assert open_clip.get_model_config(teacher.model)
            assert open_clip.get_pretrained_cfg(teacher.model, teacher.pretrained)


@pytest.mark.parametrize('path', ONLINE, ids=lambda path: path.stem)
def test_the_teacher_of_a_config_takes_its_arguments_and_cocos_classes(path, folders):
    for cfg in teachers_of(path):
        cfg.pretrained = None
        if cfg.type == 'BLIPTeacher':
            pytest.importorskip('transformers', reason='the extra lfi_mmdet[blip]')
            cfg.update(arch=ARCH, image_size=32, tokenizer=folders[1])
        else:
            cfg.model = TINY[cfg.model]
        teacher = build_part(cfg, FrozenTeacher, 'model.teacher')
        teacher.set_class_names(CLASSES)
        assert teacher.num_texts == 80 + cfg.get('max_free', 0)
        assert teacher.num_layers and teacher.feature_dims
