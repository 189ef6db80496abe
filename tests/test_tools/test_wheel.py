"""An installed wheel, without a checkout: a project of one config file trains."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from lfi_mmdet import cli, config_path, shipped
from lfi_mmdet.cli import COMMANDS, main
from tests.tiny import CLASSES, write_tiny_coco

ROOT = Path(__file__).parents[2]


# -- the command -----------------------------------------------------------------------
def test_every_command_has_its_tool_and_every_tool_its_command():
    tools = {tool for tool, _ in COMMANDS.values()}
    assert all((ROOT / 'tools' / tool).is_file() for tool in tools)
    found = {p.name for p in (ROOT / 'tools').iterdir() if p.suffix in ('.py', '.sh')}
    # of the project itself
    assert found - tools == {'_launch.py', '_launch.sh', 'demo.py', 'update_readme.py'}


def test_the_command_tells_what_it_can_do(capsys):
    assert main(['--help']) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main([]) == 2
    assert main(['--version']) == 0
    assert 'lfi_mmdet 0.' in capsys.readouterr().out
    assert main(['trian']) == 2
    assert "'trian' is no command; choose train, test" in capsys.readouterr().err


def test_a_tool_gets_its_arguments_and_its_end_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(
        "import sys\nprint(sys.argv[1:])\nraise SystemExit(sys.argv[1] == 'bad')\n"
    )
    (tmp_path / 'tools' / 'test.py').write_text("raise SystemExit('no such file')\n")
    (tmp_path / 'tools' / 'dist_train.sh').write_text('exit "$1"\n')
    monkeypatch.setattr(cli, 'shipped_root', lambda: tmp_path)
    before = list(sys.argv), list(sys.path)
    assert main(['train', 'a.py', '--amp']) == 0
    assert capsys.readouterr().out == "['a.py', '--amp']\n"
    assert main(['train', 'bad']) == 1
    assert main(['test']) == 1 and 'no such file' in capsys.readouterr().err
    assert main(['dist-train', '3']) == 3
    assert (sys.argv, sys.path) == before


# -- files of ours ---------------------------------------------------------------------
def test_files_that_configs_name_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'configs/teachers/coca_shapes.json'
    assert Path(shipped.shipped_file(name)).is_file()
    assert shipped.shipped_file('configs/mine.json') == 'configs/mine.json'
    (tmp_path / 'configs' / 'teachers').mkdir(parents=True)
    (tmp_path / name).write_text('{}')
    assert shipped.shipped_file(name) == name


def test_a_config_that_is_not_there_is_told_with_its_neighbours():
    path = config_path('lfi/mask-rcnn_vit-s_lfi_coco.py')
    assert Path(path).is_file()
    with pytest.raises(
        FileNotFoundError, match="no config 'lfi/mask-rcnn_vit-l.*vit-s"
    ):
        config_path('lfi/mask-rcnn_vit-l_lfi_coco.py')


def test_a_config_in_python_style_takes_our_settings_from_a_checkout(tmp_path):
    (tmp_path / 'mine.py').write_text(
        'from mmengine.config import read_base\n'
        'from torch.optim import SGD\n'
        "name = 'lfi/mask-rcnn_vit-s_lfi_coco.py'\n"
        "globals().update(__import__('lfi_mmdet').config_settings(name))\n"
        'model.backbone.update(num_queries=2)\n'
        'optim_wrapper.optimizer.type = SGD\n'
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    ours = Config.fromfile(config_path('lfi/mask-rcnn_vit-s_lfi_coco.py'))
    assert cfg.model.backbone.num_queries == 2 != ours.model.backbone.num_queries
    assert cfg.model.neck == ours.model.neck
    assert cfg.train_dataloader == ours.train_dataloader


def test_the_model_index_has_every_config_and_tells_of_no_run_that_was_not():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    files = [yaml.safe_load((ROOT / name).read_text()) for name in index['Import']]
    models = [model for file in files for model in file['Models']]
    names = {collection['Name'] for file in files for collection in file['Collections']}
    configs = [model['Config'] for model in models]
    found = {str(p.relative_to(ROOT)) for p in (ROOT / 'configs/lfi').glob('*.py')}
    assert sorted(configs) == sorted(found)
    readme = (ROOT / 'configs' / 'lfi' / 'README.md').read_text()
    for model in models:
        assert model['In Collection'] in names
        assert model['Name'] == Path(model['Config']).stem
        (row,) = re.findall(rf'^\| \[{model["Name"]}\]\(.*$', readme, re.MULTILINE)
        not_run = row.endswith('| not run yet |')
        assert (model['Metadata']['Status'] == 'not run yet') == not_run
        # results need the file they come from
        assert ('Results' in model) == ('Weights' in model)
        assert not (not_run and 'Results' in model)


# -- the wheel -------------------------------------------------------------------------
DATA = """
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True)]
pack = dict(type='PackDetInputs', meta_keys=(
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
data = dict(
    data_root='{root}/', ann_file='train.json', data_prefix=dict(img='train/'),
    metainfo=dict(classes={classes!r}), pipeline=[*load, pack])
"""
TEXT = (
    "_base_ = __import__('lfi_mmdet').config_path('lfi/mask-rcnn_vit-s_lfi_coco.py')"
    + DATA
    + """
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{root}/train.json')
test_evaluator = val_evaluator
model = dict(
    backbone=dict(
        arch='deit-tiny', num_queries={count}, pretrain_img_size=64, init_cfg=None),
    neck=dict(in_channels=192),
    roi_head=dict(bbox_head=dict(num_classes={count}),
                  mask_head=dict(num_classes={count})),
    teacher=dict(_delete_=True, type='GroundTruthTeacher', grid_size=8),
    distiller=dict(losses=dict(relation=None)))
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3))
"""
)
PYTHON = (
    """
from mmengine.config import read_base

with read_base():
    from lfi_mmdet.configs.lfi.mask_rcnn_vit_s_lfi_coco import *
"""
    + DATA
    + """
few = dict(num_workers=0, persistent_workers=False)
train_dataloader.update(batch_size=2, **few)
val_dataloader.update(**few)
for loader in (train_dataloader, val_dataloader):
    loader.dataset.update(data)
test_dataloader = val_dataloader
val_evaluator.update(ann_file='{root}/train.json')
test_evaluator = val_evaluator
model.backbone.update(
    arch='deit-tiny', num_queries={count}, pretrain_img_size=64, init_cfg=None)
model.neck.update(in_channels=192)
model.roi_head.bbox_head.update(num_classes={count})
model.roi_head.mask_head.update(num_classes={count})
model.teacher = dict(type='GroundTruthTeacher', grid_size=8)
model.distiller.losses.relation = None
train_cfg.update(max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3))
"""
)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Folder that the wheel is installed into, beside the packages that are there."""
    folder = tmp_path_factory.mktemp('wheel')
    source, target = folder / 'source', folder / 'site'
    names = ['git', 'ls-files', '-co', '--exclude-standard']
    done = subprocess.run(names, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip('no git to tell which files belong to the project')
    for name in done.stdout.splitlines():
        if not name.startswith(('tests/', 'docs/')) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
    built = ['wheel', '--no-deps', '--no-build-isolation', '-w', str(folder)]
    subprocess.run([*pip, *built, str(source)], check=True)
    (wheel,) = folder.glob('*.whl')
    subprocess.run(
        [*pip, 'install', '--no-deps', '--target', str(target), str(wheel)], check=True
    )
    return target


def run(installed, folder, *command):
    environment = dict(
        os.environ, PYTHONPATH=str(installed), CUDA_VISIBLE_DEVICES='',
        PYTHONWARNINGS='ignore',
    )  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path):
    """An empty folder with data and configs, which inherit ours and differ."""
    write_tiny_coco(tmp_path)
    for name, content in (('mine.py', TEXT), ('python_style.py', PYTHON)):
        text = content.format(root=tmp_path, classes=CLASSES, count=len(CLASSES))
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.slow
def test_a_project_of_one_file_trains_and_tests_by_the_command(installed, project):
    command = str(installed / 'bin' / 'lfi-mmdet')
    where = 'import lfi_mmdet; print(lfi_mmdet.__file__)'
    assert str(installed) in run(installed, project, sys.executable, '-c', where)
    run(installed, project, command, 'train', 'mine.py', '--work-dir', 'work')
    assert (project / 'work' / 'epoch_1.pth').is_file()
    shown = run(installed, project, command, 'test', 'mine.py', 'work/epoch_1.pth')
    assert 'coco/segm_mAP' in shown


@pytest.mark.slow
def test_the_tool_of_mmdet_trains_it_too(installed, project):
    import mmdet

    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
    run(installed, project, sys.executable, str(tool), 'mine.py', '--work-dir', 'work')
    assert (project / 'work' / 'epoch_1.pth').is_file()


@pytest.mark.slow
def test_a_config_in_python_style_inherits_ours(installed, project):
    command = str(installed / 'bin' / 'lfi-mmdet')
    run(installed, project, command, 'train', 'python_style.py', '--work-dir', 'work')
    assert (project / 'work' / 'epoch_1.pth').is_file()
    # both say the same, names of imports and helpers aside
    compare = """
from mmengine.config import Config
first, second = (Config.fromfile(f'{name}.py') for name in ('mine', 'python_style'))
for key in ('model', 'train_dataloader', 'test_evaluator', 'optim_wrapper'):
    assert first[key].to_dict() == second[key].to_dict(), key
"""
    run(installed, project, sys.executable, '-c', compare)


@pytest.mark.slow
def test_mim_finds_configs_tools_and_models(installed):
    inside = installed / 'lfi_mmdet' / '.mim'
    assert (inside / 'tools' / 'train.py').is_file()
    assert (inside / 'tools' / 'test.py').is_file()
    index = yaml.safe_load((inside / 'model-index.yml').read_text())
    for name in index['Import']:
        models = yaml.safe_load((inside / name).read_text())['Models']
        assert all((inside / model['Config']).is_file() for model in models)


@pytest.mark.slow
def test_mim_trains_and_tests_it(installed, project):
    pytest.importorskip('mim', reason='OpenMIM is not installed')
    mim = [sys.executable, '-m', 'mim']
    run(installed, project, *mim, 'train', 'lfi_mmdet', 'mine.py', '--gpus', '0',
        '--work-dir', 'work')  # fmt: skip
    assert (project / 'work' / 'epoch_1.pth').is_file()
    shown = run(installed, project, *mim, 'test', 'lfi_mmdet', 'mine.py', '--gpus', '0',
                '--checkpoint', 'work/epoch_1.pth')  # fmt: skip
    assert 'coco/segm_mAP' in shown and 'finished successfully' in shown
