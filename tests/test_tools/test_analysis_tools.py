"""analyze_interactions, from command line to report."""

import copy
import importlib.util
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.visualization import MapPanel, MapRow
from tests.test_models.test_detectors import test_competitors as competitors
from tests.test_models.test_detectors.test_competitors import (  # noqa: F401
    tiny_models,
)
from tests.tiny import CLASSES, tiny_config_text, write_tiny_coco

TOOLS = Path(__file__).parents[2] / 'tools'


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


analyze = load_tool('analyze_interactions')


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('tools')
    write_tiny_coco(root)
    (root / 'lfi.py').write_text(tiny_config_text(root))
    (root / 'plain.py').write_text(
        "_base_ = './lfi.py'\n"
        'model = dict(teacher=None, backbone=dict(num_queries=0))\n'
    )
    return root


@pytest.fixture(scope='module')
def checkpoint(root) -> str:
    """A detector whose queries look at little but one patch."""
    torch.manual_seed(1)
    model = MODELS.build(Config.fromfile(root / 'lfi.py').model)
    model.init_weights()
    with torch.no_grad():
        model.backbone.interaction.read_query.weight.mul_(200)
        model.backbone.interaction.read_key.weight.mul_(200)
    torch.save(dict(state_dict=model.state_dict(), meta={}), root / 'trained.pth')
    return str(root / 'trained.pth')


class Batches(list):
    """A data loader of batches that are there already."""

    dataset = SimpleNamespace(metainfo=dict(classes=CLASSES))


def test_pictures_name_the_texts_that_are_no_classes(monkeypatch):
    cfg = competitors.tiny_cfg()
    cfg.model.backbone.num_queries = len(CLASSES) + 1
    cfg.model.teacher = dict(
        type='CLIPTeacher', model='tiny-clip', present='all', more_texts=['red shape']
    )
    model = competitors.build(cfg)
    show_all = partial(analyze.map_rows, max_classes=9)
    monkeypatch.setattr(analyze, 'map_rows', show_all)
    loader = Batches([copy.deepcopy(competitors.batch())])
    rows = analyze.pictures(model, loader, 1, last_only=True)
    assert {row.label for row in rows} == {*CLASSES, 'red shape'}


def test_start_and_trained_are_compared_in_table_report_and_picture(
    root, checkpoint, tmp_path, capsys
):
    arguments = [str(root / 'lfi.py'), checkpoint, '--out-dir', str(tmp_path)]
    level = MMLogger.get_current_instance().level
    assert analyze.main([*arguments, '--images', '3', '--detections', '1']) == 0
    assert MMLogger.get_current_instance().level == level
    report = json.loads((tmp_path / 'interactions.json').read_text())
    start, trained = report['start'], report['trained']
    assert start['num_images'] == trained['num_images'] == 3
    # fresh queries look at a bit of everything, the others at one patch
    assert trained['layers'][1]['kl'] > 2 * start['layers'][1]['kl']
    assert report['teacher'] == 'GroundTruthTeacher' and report['seed'] == 0
    assert report['versions']['torch'] == torch.__version__
    shown = capsys.readouterr().out
    for title in ('KL start', 'KL trained', 'start / trained', 'pointing teacher'):
        assert title in shown
    ratio = start['layers'][0]['kl'] / trained['layers'][0]['kl']
    assert f'{ratio:.3f}' in shown
    widths = {}
    for name in ('interactions.png', 'detections.png'):
        with Image.open(tmp_path / name) as image:
            image.load()
            widths[name] = image.width
    analyze.main([*arguments, '--images', '1', '--start-checkpoint', 'none'])
    with Image.open(tmp_path / 'interactions.png') as image:
        assert image.width < widths['interactions.png']


def test_the_last_map_before_the_training_stands_beside_the_teachers():
    def row(*titles):
        panels = [MapPanel(title, np.zeros((2, 2))) for title in titles]
        return MapRow(np.zeros((2, 2, 3), np.uint8), 'dog', None, panels)

    rows = [row('teacher', 'student, block 3', 'student, block 7')]
    before = row('teacher', 'student, block 3', 'student, block 7')
    analyze.add_before(rows, [before])
    assert [panel.title for panel in rows[0].panels] == [
        'teacher',
        'before training, block 7',
        'student, block 3',
        'student, block 7',
    ]
    assert rows[0].panels[1] is before.panels[-1]


def test_the_same_seed_gives_the_same_start(root, tmp_path):
    reports = []
    for seed in (0, 0, 1):
        analyze.main(
            [str(root / 'lfi.py'), '--out-dir', str(tmp_path), '--pictures', '0']
            + ['--images', '1', '--seed', str(seed)]
        )
        reports.append(json.loads((tmp_path / 'interactions.json').read_text()))
    assert reports[0]['start'] == reports[1]['start'] != reports[2]['start']
    # queries that were never initialised, zeros, would look everywhere alike
    first = reports[0]['start']['layers'][0]
    assert abs(first['kl'] - first['kl_uniform']) > 1e-3
    assert 'trained' not in reports[0]
    assert not (tmp_path / 'interactions.png').exists()


def test_options_reach_the_config_and_another_start_is_loaded(
    root, checkpoint, tmp_path
):
    analyze.main(
        [str(root / 'lfi.py'), checkpoint, '--start-checkpoint', checkpoint]
        + ['--out-dir', str(tmp_path), '--images', '1', '--pictures', '1']
        + ['--cfg-options', 'model.teacher.blur=[3.0]', '--last-layer']
    )
    report = json.loads((tmp_path / 'interactions.json').read_text())
    assert report['start'] == report['trained']
    assert {layer['teacher_layer'] for layer in report['start']['layers']} == {0}


def test_a_config_without_a_teacher_is_refused(root, capsys):
    with pytest.raises(SystemExit):
        analyze.main([str(root / 'plain.py')])
    assert 'plain.py: model.teacher is None' in capsys.readouterr().err


def test_there_must_be_something_to_measure(root, capsys):
    with pytest.raises(SystemExit):
        analyze.main([str(root / 'lfi.py'), '--start-checkpoint', 'none'])
    assert 'nothing to measure' in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(root, tmp_path):
    plain = MODELS.build(Config.fromfile(root / 'plain.py').model)
    weights = {**plain.state_dict(), 'extra': torch.zeros(1)}
    path = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=weights), path)
    with pytest.raises(
        InputError, match=r'plain\.pth is for another model: backbone\.queries is not'
    ):
        analyze.main(
            [str(root / 'lfi.py'), str(path), '--start-checkpoint', 'none']
            + ['--out-dir', str(tmp_path / 'out')]
        )
    assert not (tmp_path / 'out').exists()
