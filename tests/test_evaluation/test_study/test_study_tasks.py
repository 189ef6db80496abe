"""The trainings that a study file makes: their files, what they keep, their digests."""

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmcv.transforms import Compose
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from PIL import Image

from lfi_mmdet.datasets.shapes import choose_classes
from lfi_mmdet.engine.hooks.paired_start_hook import PairedStartHook
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation.study import tasks as tasks_module
from lfi_mmdet.evaluation.study.feeding import feed
from lfi_mmdet.evaluation.study.hashes import file_digest, named_files, neutral
from lfi_mmdet.evaluation.study.plan import Arm, Stage, parse_study
from lfi_mmdet.evaluation.study.tasks import ROOT, TaskMaker, select
from tests.tiny import write_tiny_coco

TRAIN, VAL = 'annotations/train_small.json', 'annotations/val_small.json'
CONFIG = """
data_root = 'data/x/'
model = dict(backbone=dict(depth=1), head=dict(loss_weight=1.0))
train_dataloader = dict(batch_size=2, num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(type='CocoDataset', data_root=data_root, ann_file={train!r},
                 data_prefix=dict(img='train/')))
val_dataloader = dict(dataset=dict(type='CocoDataset', data_root=data_root,
    ann_file='annotations/instances_val.json', data_prefix=dict(img='val/')))
val_evaluator = dict(type='CocoMetric', metric='bbox',
    ann_file=data_root + 'annotations/instances_val.json')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
default_hooks = dict()
"""
PRE = dict(name='pre', config='pre.py', iterations=2)


@pytest.fixture(autouse=True)
def starts(monkeypatch):
    """No start weights: the models of these configs cannot be built."""
    monkeypatch.setattr(
        tasks_module, 'write_start', lambda model, seed, folder: folder / f'{seed}.pth'
    )


def write_data(folder):
    for split in ('train', 'val'):
        write_tiny_coco(folder, split=split)
        (folder / 'annotations').mkdir(exist_ok=True)
        for name in (f'instances_{split}', f'{split}_small'):
            path = folder / 'annotations' / f'{name}.json'
            path.write_text((folder / f'{split}.json').read_text())
    return folder


def make(tmp_path, train=TRAIN, arm=(), root='data', work='work', labels='50%', **more):
    """Tasks of one arm and two seeds, on a folder of data."""
    data = tmp_path / root
    if not data.is_dir():
        write_data(data)
    paths = {}
    for name in ('c', 'pre'):
        # every call its own file: configs are read once
        paths[name] = tmp_path / f'{name}{len([*tmp_path.glob("*.py")])}.py'
        paths[name].write_text(CONFIG.format(train=train))
    arm = dict(arm)
    if 'stages' in arm:
        arm['stages'] = [dict(s, config=str(paths['pre'])) for s in arm['stages']]
    given = dict(
        folder=str(data), train=dict(ann_file=TRAIN), val=dict(ann_file=VAL),
        labels=labels,
    )  # fmt: skip
    content = dict(
        name='test', seeds=[0, 1], config=str(paths['c']), iterations=4,
        val_interval=2, settings=dict(s={**given, **more}),
        arms=dict(a=dict(arm, twin=True)),
    )  # fmt: skip
    maker = TaskMaker(parse_study(content, tmp_path / 's.yaml'), tmp_path / work)
    return maker, select(maker.study, maker, lambda *_: True)


def runs(tmp_path, **changes):
    return [task for task in make(tmp_path, **changes)[1] if task.points]


# -- the files of a setting ------------------------------------------------------------
@pytest.mark.parametrize('labels', ['50%', '100%'])
def test_a_config_that_names_other_labels_than_the_setting_is_refused(tmp_path, labels):
    message = (
        r'settings\.s: labelled images are those of annotations/train_small\.json .*'
        r'c\d\.py names .*/data/annotations/instances_train\.json'
    )
    with pytest.raises(InputError, match=message):
        make(tmp_path, train='annotations/instances_train.json', labels=labels)


def test_labels_that_an_option_names_are_learned_from(tmp_path):
    options = {'train_dataloader.dataset.ann_file': '{labels}'}
    first, second = runs(
        tmp_path, train='annotations/instances_train.json', arm=dict(options=options)
    )
    files = [
        t.config['train_dataloader']['dataset']['ann_file'] for t in (first, second)
    ]
    assert [Path(file).name for file in files] == ['instances_50pct.json'] * 2
    assert files[0] != files[1]
    options = {'train_dataloader.dataset.ann_file': 'annotations/instances_train.json'}
    with pytest.raises(InputError, match='no dataset of it the drawn labels'):
        make(tmp_path, arm=dict(options=options))


def test_labels_may_be_one_of_several_data_sets(tmp_path):
    leaf = dict(data_root='{data}', ann_file='{labels}')
    other = dict(data_root='{data}', ann_file='{rest}')
    joined = dict(
        _delete_=True, type='ConcatDataset', datasets=[other, dict(dataset=leaf)]
    )
    assert runs(tmp_path, arm=dict(options={'train_dataloader.dataset': joined}))
    joined['datasets'] = [other]
    with pytest.raises(InputError, match='no dataset of it the drawn labels'):
        make(tmp_path, arm=dict(options={'train_dataloader.dataset': joined}))


def test_a_run_is_evaluated_on_the_set_of_its_setting(tmp_path):
    (tmp_path / 'data' / 'pictures').mkdir(parents=True)
    write_data(tmp_path / 'data')
    val = dict(ann_file=VAL, img='pictures/')
    config = runs(tmp_path, val=val)[0].config
    data = tmp_path / 'data'
    dataset = config['val_dataloader']['dataset']
    assert (dataset['data_root'], dataset['ann_file']) == (f'{data}/', VAL)
    assert dataset['data_prefix'] == dict(img='pictures/')
    assert config['val_evaluator']['ann_file'] == f'{data}/{VAL}'


def test_evaluation_on_another_set_is_refused(tmp_path):
    other = 'annotations/instances_val.json'
    for options in (
        {'val_dataloader.dataset.ann_file': other},
        {'val_evaluator.ann_file': f'{{data}}/{other}'},
    ):
        with pytest.raises(InputError, match='instances_val.json instead of .*small'):
            make(tmp_path, options=options)
    with pytest.raises(InputError, match='set val: no folder .*/none; name .* key img'):
        make(tmp_path, val=dict(ann_file=VAL, img='none'))


# -- what stages feed ------------------------------------------------------------------
def fed(*feeds, neck=None, **content):
    model = dict(backbone=dict(), teacher=dict(), neck=neck or {})
    cfg = Config(dict(model=model, **content))
    stages = tuple(Stage(f'x{i}', 'c', {}, 1, kind) for i, kind in enumerate(feeds))
    arm = Arm('a', 'a', None, {}, stages, None, None, None)
    keep = feed(cfg, arm, [f'{i}.pth' for i in range(len(feeds))])
    return keep, cfg.model.backbone.get('init_cfg', {}).get('checkpoint'), cfg


@pytest.mark.parametrize(
    ('feeds', 'keep', 'backbone', 'whole'),
    [
        (['backbone', 'nothing'], ['0.pth'], '0.pth', None),
        (['nothing'], [], None, None),
        (['backbone', 'backbone'], ['1.pth'], '1.pth', None),
        (['nothing', 'load_from', 'nothing'], ['1.pth'], None, '1.pth'),
        (['backbone', 'load_from'], ['0.pth', '1.pth'], '0.pth', '1.pth'),
    ],
)
def test_what_was_fed_is_kept_and_nothing_else(feeds, keep, backbone, whole):
    found, init, cfg = fed(*feeds)
    assert (found, init, cfg.get('load_from')) == (keep, backbone, whole)


def test_feeding_that_would_be_overwritten_is_refused():
    with pytest.raises(InputError, match=r'x1\.feeds: backbone, but the load_from'):
        fed('load_from', 'backbone')
    with pytest.raises(InputError, match=r'x0\.feeds: nothing, but options start'):
        fed('nothing', load_from='0.pth')
    for init in (dict(checkpoint='0.pth'), [dict(checkpoint='0.pth')]):
        with pytest.raises(InputError, match=r'x0\.feeds: nothing, but options start'):
            fed('nothing', neck=dict(stages=[dict(init_cfg=init)]))


def test_the_start_hook_of_a_run_keeps_the_backbone_that_was_fed(tmp_path):
    stages = [PRE, dict(PRE, name='scores', iterations=3, feeds='nothing')]
    run = runs(tmp_path, arm=dict(stages=stages))[0]
    hook = run.config['default_hooks']['study_start']
    assert hook['keep'] == [str(run.needs[0].checkpoint)]
    later = run.needs[1].config['default_hooks']['study_start']
    assert later['keep'] == hook['keep']


def test_only_what_a_checkpoint_put_into_the_model_is_kept(tmp_path):
    path = str(tmp_path / 'x.pth')
    held = {
        'backbone.a': torch.ones(2),
        'neck.b': torch.ones(2),
        'head.c': torch.ones(3),
    }
    torch.save(dict(state_dict=held), path)
    model = {name: torch.zeros(2) for name in (*held, 'backbone.neck.b')}
    hook = PairedStartHook('start.pth', keep=[path])
    # a whole detector that feeds a backbone leaves the neck to the twin
    assert hook._kept_names(model, None) == {'backbone.a'}
    # and the head has another shape, so it was not loaded
    assert hook._kept_names(model, path) == {'backbone.a', 'neck.b'}


# -- digests ---------------------------------------------------------------------------
def test_the_same_data_elsewhere_is_the_same_config(tmp_path):
    more = dict(tests=dict(again=dict(ann_file=VAL)), arm=dict(stages=[PRE]))
    maker, here = make(tmp_path, **more)
    _, there = make(tmp_path, root='elsewhere/coco', work='other', **more)
    assert [t.digest for t in here] == [t.digest for t in there]
    assert [t.facts['recipe_hash'] for t in here] == [
        t.facts['recipe_hash'] for t in there
    ]
    text = f'error: {tmp_path}/data/train/1.png, {sys.prefix}/lib/x.py'
    shown = neutral(text, maker.folders)
    assert re.fullmatch(r'error: DATA-\w{12}/train/1\.png, PYTHON/lib/x\.py', shown)


def test_other_data_in_another_folder_is_another_config(tmp_path):
    here = runs(tmp_path)
    other = write_data(tmp_path / 'other')
    content = json.loads((other / TRAIN).read_text())
    content['annotations'][0]['category_id'] = 3
    (other / TRAIN).write_text(json.dumps(content))
    there = runs(tmp_path, root='other')
    assert here[0].digest != there[0].digest


def test_only_whole_names_of_folders_are_replaced():
    names = {'/usr': 'PYTHON', '/x/usr/w': 'WORK'}
    text = r'/usr/a /home/usr/b /usr2/c "/usr" /x/usr/w/d \n/usr'
    expected = r'PYTHON/a /home/usr/b /usr2/c "PYTHON" WORK/d \nPYTHON'
    assert neutral(text, names) == expected


def recipe(tmp_path, **changes):
    hashes = [task.facts['recipe_hash'] for task in runs(tmp_path, **changes)]
    assert len(hashes) == 2 and re.fullmatch('[0-9a-f]{64}', hashes[0])
    assert hashes[0] == hashes[1]
    return hashes[0]


def test_seeds_share_their_recipe_and_what_is_trained_otherwise_does_not(tmp_path):
    weight = 'model.head.loss_weight'
    # these differ between seeds in a way that is meant
    options = {
        'x.y': '{seed}', 'x.z': 'a {rest}', 'x.w': '{stage.checkpoint}', weight: 1.0,
    }  # fmt: skip
    arm = dict(options=options, stages=[PRE])
    found = [
        recipe(tmp_path, arm=arm),
        recipe(tmp_path, arm=dict(arm, options={**options, weight: 2.0})),
        recipe(tmp_path, arm=dict(arm, stages=[dict(PRE, iterations=3)])),
        recipe(tmp_path, arm=dict(arm, stages=[dict(PRE, options={weight: 3.0})])),
        recipe(tmp_path, arm=dict(arm, own_weights=['head'])),
        recipe(tmp_path, arm=arm, labels='75%'),
    ]
    assert len(set(found)) == len(found)
    assert recipe(tmp_path, arm=arm) == found[0]


def test_a_stage_that_amounts_of_labels_share_has_one_recipe(tmp_path):
    few, all_ = (
        runs(tmp_path, arm=dict(stages=[PRE]), labels=labels)[0]
        for labels in ('75%', '100%')
    )
    (first,), (second,) = few.needs, all_.needs
    assert few.facts['recipe_hash'] != all_.facts['recipe_hash']
    assert first.facts['recipe_hash'] == second.facts['recipe_hash']


def test_stages_of_two_seeds_share_their_recipe(tmp_path):
    first, second = (run.needs[0] for run in runs(tmp_path, arm=dict(stages=[PRE])))
    assert first.digest != second.digest
    assert first.facts['recipe_hash'] == second.facts['recipe_hash']


def test_another_teacher_in_the_same_file_is_another_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_module, 'ROOT', tmp_path)
    teachers = tmp_path / 'configs' / 'teachers'
    teachers.mkdir(parents=True)
    for name in ('t.pt', 'words.txt', 'unnamed.pt'):
        (teachers / name).write_text('first')
    (teachers / 't.json').write_text('{"text": {"bpe_path": ["words.txt", 1, null]}}')
    options = {
        'model.teacher.pretrained': 'configs/teachers/t.pt',
        'model.teacher.model_configs': str(teachers / 't.json'),
    }
    found = [recipe(tmp_path, arm=dict(options=options))]
    for name in ('t.pt', 'words.txt'):
        (teachers / name).write_text('another one')
        found.append(recipe(tmp_path, arm=dict(options=options)))
    assert len(set(found)) == 3
    (teachers / 'unnamed.pt').write_text('another one')
    assert recipe(tmp_path, arm=dict(options=options)) == found[-1]


def test_files_that_a_config_names():
    teachers = 'configs/teachers/coca_shapes'
    value = dict(
        a=[f'{teachers}.json', ('x', None, 1.5)], b=str(ROOT / f'{teachers}.pt'),
        c='README.md', d='configs', e='a\0b', f='x' * 5000,
    )  # fmt: skip
    found = named_files(value, ROOT, ROOT / 'configs')
    names = [f'{teachers}{end}' for end in ('.json', '.pt', '_bpe.txt.gz')]
    assert found == {name: file_digest(ROOT / name) for name in names}


# -- the studies of this project -------------------------------------------------------
OURS = sorted(path.stem for path in (ROOT / 'configs/studies').glob('*.yaml'))


def write_photos(folder: Path) -> str:
    """COCO files of one image each, without any object."""
    image = dict(id=1, file_name='1.jpg', width=8, height=8)
    for split in ('train', 'val'):
        (folder / f'{split}2017').mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(folder / f'{split}2017' / '1.jpg')
        path = folder / 'annotations' / f'instances_{split}2017.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(images=[image], annotations=[], categories=[])))
    return str(folder)


def pipelines(part):
    """All pipelines of a config."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == 'pipeline':
                yield value
            yield from pipelines(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from pipelines(value)


@pytest.mark.parametrize('name', OURS)
def test_all_trainings_of_our_studies_can_be_made(tmp_path, name):
    path = ROOT / f'configs/studies/{name}.yaml'
    content = yaml.safe_load(path.read_text())
    for given in content['settings'].values():
        if 'folder' in given:
            given['folder'] = write_photos(tmp_path / 'photos')
            continue
        few = dict(train=200 if '1%' in given.get('labels', []) else 20, val=2)
        given['scenes'].update(few, unlabeled=5)
    seeds = {content['seeds'][0], *content.get('selection_seeds', [])[:1]}
    study = parse_study(content, path)
    maker = TaskMaker(study, tmp_path)
    made = select(study, maker, lambda setting, arm, seed: seed in seeds)
    names = {task.facts['arm'] for task in made if task.points}
    assert names == set(study.arms)
    image = np.zeros((8, 8, 3), np.uint8)
    for task in made:
        for text in re.findall(r'[^\s\'"]*\{\w+[\w.]*\}', str(task.config)):
            pytest.fail(f'{task.id}: {text} was not replaced')
        assert re.fullmatch('[0-9a-f]{64}', task.facts['recipe_hash'])
        model = MODELS.build(ConfigDict(copy.deepcopy(task.config['model'])))
        if hasattr(model, 'set_class_names'):  # of the classes of the scenes
            shown = task.config['train_dataloader']['dataset'].get('metainfo', {})
            model.set_class_names(shown.get('classes', choose_classes(12)))
        for pipeline in pipelines(task.config):
            Compose(copy.deepcopy(pipeline))
            for step in pipeline:
                if step['type'] == 'Resize':  # looks at its arguments when it is used
                    resized = TRANSFORMS.build(step)(dict(img=image.copy()))
                    assert resized['img'].shape[2] == 3
        for need in task.needs:
            init = task.config['model']['backbone']['init_cfg']
            assert init['checkpoint'] == str(need.checkpoint)
            keep = task.config['default_hooks']['study_start']['keep']
            assert keep == [str(need.checkpoint)]
