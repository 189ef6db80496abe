"""The page on adding a teacher is right: its code is run as it stands there."""

import re
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from tests.tiny import CLASSES, write_tiny_run

PAGE = Path(__file__).parents[2] / 'docs' / 'add_a_teacher.md'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A tiny config whose teacher is the one of the page, in a module of its own."""
    code, config = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (tmp_path / 'my_teachers.py').write_text(code)
    write_tiny_run(tmp_path)
    (tmp_path / 'colours.py').write_text(
        config.replace('./mask-rcnn_vit-s_lfi_coco.py', './tiny.py')
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Config.fromfile(tmp_path / 'colours.py')
    MODELS.module_dict.pop('PaletteTeacher', None)
    sys.modules.pop('my_teachers', None)


def test_the_teacher_trains_a_student(run, tmp_path):
    run.work_dir = str(tmp_path / 'work')
    run.model.distiller.losses.relation = dict(type='InteractionRelationLoss')
    runner = Runner.from_cfg(run)
    runner.train()
    assert runner.model.teacher.class_names == CLASSES
    history = runner.message_hub.log_scalars
    assert history['train/loss_lfi_attention'].current() > 0
    state = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)
    assert not any('teacher' in key for key in state['state_dict'])


def test_its_maps_point_at_the_colour(run):
    teacher = MODELS.build(dict(type='PaletteTeacher', class_names=CLASSES))
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, :16, 48:] = 4  # red, top right
    image[:, 2, 40:, :8] = 4  # blue, bottom left
    targets = teacher.interact(image, torch.ones(1, 3, dtype=torch.bool))
    maps = targets.maps[0, 0].flatten(1)
    assert (maps.argmax(1) % 8)[[0, 2]].tolist() == [6, 0]
    assert (maps.argmax(1) // 8)[[0, 2]].tolist() == [0, 5]
    with pytest.raises(ValueError, match='knows no .*pink'):
        teacher.set_class_names(('pink', 'red', 'blue'))
