"""tools/check_teacher.py, from the command line to table, report and picture."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from PIL import Image

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.teachers import FrozenTeacher, GroundTruthTeacher
from lfi_mmdet.structures import InteractionTargets
from tests.test_models.test_teachers.tiny_open_clip import save_sharp, write_configs
from tests.tiny import tiny_config_text, write_tiny_coco

TOOL = Path(__file__).parents[2] / 'tools/check_teacher.py'
spec = importlib.util.spec_from_file_location('check_teacher', TOOL)
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


class TwoFaced(GroundTruthTeacher):
    """In one reading right in its last layer, in the other always confused."""

    READINGS = ('wrong', 'right')

    def __init__(self, reading=None, layers='all', **kwargs):
        faults = dict(confusion=1.0) if reading == 'wrong' else {}
        super().__init__(blur=(0.2, 0.2), grid_size=16, **faults, **kwargs)
        self.layers = [4, 7] if layers == 'all' else list(layers)

    def targets(self, *args):
        found = super().targets(*args)
        found.maps[:, 0] = found.maps[:, 0].roll((8, 8), (-2, -1))
        return found


class Blank(FrozenTeacher):
    """Sees nothing and needs no masks."""

    num_layers = 1

    def __init__(self):
        super().__init__(view=dict(size=16))

    def encode_texts(self, class_names):
        pass

    def interact(self, images, present):
        maps = torch.full((*present.shape, 4, 4), 1 / 16)
        return InteractionTargets(maps=maps[:, None], present=present)


@pytest.fixture(scope='module', autouse=True)
def registered():
    for cls in (TwoFaced, Blank):
        MODELS.register_module(module=cls)
    yield
    for cls in (TwoFaced, Blank):
        MODELS.module_dict.pop(cls.__name__)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('check')
    write_tiny_coco(root, num_images=24)
    (root / 'tiny.py').write_text(tiny_config_text(root))
    return root


def write_config(root, name, teacher, more=''):
    path = root / name
    path.write_text(f"_base_ = './tiny.py'\nmodel = dict(teacher={teacher})\n{more}")
    return path


def run(*argv):
    return check.main([str(word) for word in argv])


def test_the_good_reading_and_layer_are_found_reported_and_drawn(
    root, tmp_path, capsys
):
    config = write_config(
        root, 'faces.py', "dict(_delete_=True, type='TwoFaced', present='ground_truth')"
    )
    out = tmp_path / 'out'
    assert run(config, '--out-dir', out, '--pictures', 2, '--batch-size', 4) == 0
    report = json.loads((out / 'teacher.json').read_text())
    found = report['recommendation']
    assert (found['reading'], found['best'], found['layers']) == ('right', '7', ['7'])
    assert report['num_images'] == 24 and report['teacher'] == 'TwoFaced'
    assert report['versions']['torch'] == torch.__version__
    names = [(one['reading'], one['layer']) for one in report['layers']]
    assert names == [('wrong', '4'), ('wrong', '7'), ('right', '4'), ('right', '7')]
    best = report['layers'][3]
    assert best['specific_pointing']['value'] > 0.95
    assert best['presence_auc']['value'] == best['score_auc']['value'] == 1
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith('| *')]
    assert '| right ' in line and '| 7 ' in line
    assert "model = dict(teacher=dict(reading='right', layers=[7]))" in shown
    assert 'Bonferroni' in shown and 'warning: 24 images with objects are few' in shown
    with Image.open(out / 'teacher.png') as image:
        image.load()


def test_readings_images_and_the_place_of_the_report_can_be_chosen(
    root, tmp_path, monkeypatch, capsys
):
    config = write_config(root, 'faces.py', "dict(_delete_=True, type='TwoFaced')")
    monkeypatch.chdir(tmp_path)
    run(config, '--readings', 'wrong', '--images', 6, '--layers', '2,9')
    report = json.loads((tmp_path / 'work_dirs/faces/teacher/teacher.json').read_text())
    names = [(one['reading'], one['layer']) for one in report['layers']]
    assert names == [('wrong', '2'), ('wrong', '9')] and report['num_images'] == 6
    assert report['recommendation']['reading'] is None
    shown = capsys.readouterr().out
    assert 'no layer of any reading beats chance' in shown
    assert 'model = dict(' not in shown
    assert not (tmp_path / 'work_dirs/faces/teacher/teacher.png').exists()


def test_a_random_clip_is_read_in_both_ways_and_not_recommended(
    root, tmp_path, monkeypatch, capsys
):
    folder = write_configs(tmp_path / 'configs')
    import open_clip

    open_clip.add_model_config(folder)
    weights = save_sharp('tiny-clip', tmp_path)[1]
    config = write_config(
        root,
        'clip.py',
        f"dict(_delete_=True, type='CLIPTeacher', model='tiny-clip', layers=[-1], "
        f'pretrained={weights!r}, model_configs={folder!r})',
    )
    run(config, '--out-dir', tmp_path, '--images', 12)
    report = json.loads((tmp_path / 'teacher.json').read_text())
    layers = {(one['reading'], one['layer']): one for one in report['layers']}
    expected = [(r, str(i)) for r in ('similarity', 'gradient') for i in range(3)]
    assert list(layers) == expected
    for one in layers.values():
        assert one['pointing']['num_rows'] == 24
        assert one['presence_auc'] is not None and one['score_auc'] is not None
    assert len(report['teacher_sha256']) == 64
    assert report['recommendation']['reading'] is None


def test_one_of_several_teachers_can_be_checked(root, tmp_path, capsys):
    good = "dict(type='TwoFaced')"
    plain = "dict(type='GroundTruthTeacher', grid_size=16, blur=(0.2,))"
    config = write_config(
        root,
        'both.py',
        f"dict(_delete_=True, type='EnsembleTeacher', teachers=[{plain}, {good}])",
    )
    options = ('--out-dir', tmp_path, '--images', 12)
    run(config, *options, '--member', 1, '--readings', 'right')
    assert 'model.teacher.teachers[1]: dict(reading=' in capsys.readouterr().out
    run(config, *options)
    report = json.loads((tmp_path / 'teacher.json').read_text())
    assert {one['reading'] for one in report['layers']} == {'as configured'}
    with pytest.raises(SystemExit):
        run(config, *options, '--member', 2)
    assert '--member 2: model.teacher has 2 teachers, 0 to 1' in capsys.readouterr().err


def test_of_stored_targets_the_teacher_is_checked_and_no_store_is_needed(
    root, tmp_path, capsys
):
    config = write_config(
        root,
        'cached.py',
        "dict(_delete_=True, type='CachedTeacher', store='nowhere', "
        "teacher=dict(type='TwoFaced'))",
    )
    run(config, '--out-dir', tmp_path, '--readings', 'right', '--images', 12)
    shown = capsys.readouterr().out
    line = "model = dict(teacher=dict(teacher=dict(reading='right', layers=[7])))"
    assert line in shown


def test_a_config_without_a_teacher_is_refused(root, capsys):
    with pytest.raises(SystemExit):
        run(write_config(root, 'plain.py', None))
    assert 'plain.py: model.teacher is None' in capsys.readouterr().err


def test_a_reading_the_teacher_does_not_have_is_refused(root):
    config = write_config(root, 'faces.py', "dict(_delete_=True, type='TwoFaced')")
    with pytest.raises(InputError, match=r"no reading 'left'.*\['wrong', 'right'\]"):
        run(config, '--readings', 'left')
    with pytest.raises(InputError, match='TwoFaced takes no heads'):
        run(config, '--heads', 'keep')


def test_layers_that_are_none_are_refused(root, capsys):
    with pytest.raises(SystemExit):
        run(root / 'tiny.py', '--layers', 'last')
    assert "'last' is neither" in capsys.readouterr().err


def test_a_dataset_without_masks_is_refused(root, tmp_path):
    annotations = write_tiny_coco(tmp_path)
    content = json.loads(annotations.read_text())
    for annotation in content['annotations']:
        del annotation['segmentation']
    annotations.write_text(json.dumps(content))
    config = tmp_path / 'tiny.py'
    config.write_text(tiny_config_text(tmp_path))
    with pytest.raises(InputError, match='0.png has objects without masks'):
        run(config, '--out-dir', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_config_that_loads_no_masks_is_refused(tmp_path):
    write_tiny_coco(tmp_path)
    text = tiny_config_text(tmp_path).replace(', with_mask=True', '')
    (tmp_path / 'tiny.py').write_text(text)
    config = write_config(tmp_path, 'blank.py', "dict(_delete_=True, type='Blank')")
    with pytest.raises(ValueError, match='objects without masks.*with_mask=True'):
        run(config, '--out-dir', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
