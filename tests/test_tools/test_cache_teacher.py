"""tools/cache_teacher.py, from command line to report."""

import pytest

from lfi_mmdet.datasets.target_store import StoreMeta, TargetStoreReader
from lfi_mmdet.engine.plain_errors import plain_errors
from tests.tiny import tiny_config_text, write_tiny_coco, write_tiny_run

FROM_CACHE = """
model['teacher'] = dict(type='CachedTeacher', store='stores/tiny',
                        teacher=dict(type='GroundTruthTeacher', grid_size=8))
train_pipeline[-1:] = [dict(type='LoadCachedTargets', store='stores/tiny'),
                       dict(type='PackInteractionInputs')]
"""


def test_a_store_is_made_and_its_size_error_and_time_are_told(tool, tmp_path, capsys):
    config = write_tiny_run(tmp_path)
    assert tool('cache_teacher', config, '--out', 'store', '--device', 'cpu') == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0] == 'store: 4 images, 2 texts per image, 2 layers, 8x8 cells, uint8'
    assert lines[1].startswith('size:') and 'MB per 1,000 images; COCO' in lines[1]
    assert lines[2].startswith('error: total variation of a map')
    assert lines[3].startswith('time:') and 's per image and process' in lines[3]
    assert len(TargetStoreReader('store')) == 4


def test_options_reach_the_store(tool, tmp_path):
    config = write_tiny_run(tmp_path, val='val')
    write_tiny_coco(tmp_path, num_images=3, split='val')
    arguments = (
        '--split val --dtype float16 --texts top:1 --max-images 2 --batch-size 1 '
        '--device cpu --cfg-options model.teacher.grid_size=4'
    )
    assert tool('cache_teacher', config, *arguments.split()) == 0
    meta = StoreMeta.read('work_dirs/tiny/targets_val')
    assert meta.dataset['ann_file'] == 'val.json' and meta.num_images == 2
    assert (meta.dtype, meta.texts, meta.grid) == ('float16', 'top:1', [4, 4])
    record = TargetStoreReader('work_dirs/tiny/targets_val').get(1)
    assert record.maps.shape == (2, 1, 4, 4)


def test_the_store_of_a_config_that_reads_one_is_filled(tool, tmp_path):
    write_tiny_coco(tmp_path)
    config = tmp_path / 'cached.py'
    config.write_text(tiny_config_text(tmp_path, extra=FROM_CACHE))
    assert tool('cache_teacher', config, '--device', 'cpu') == 0
    assert len(TargetStoreReader('stores/tiny')) == 4


@pytest.mark.parametrize(
    'words, message',
    [
        ('--texts most', '--texts most: choose "present", "all" or "top:N"'),
        ('--out tiny.py', '--out tiny.py: File exists'),
        ('--cfg-options model.teacher=clip', "model.teacher='clip' is not a config"),
        ('--cfg-options model.teacher=None', 'model.teacher is None; nothing to'),
        ('--cfg-options model.teacher.blur=[-1]', 'teacher.blur=[-1] is not a list'),
        ('--cfg-options model.teacher.type=Other', "model.teacher.type='Other' is not"),
        (
            '--cfg-options train_dataloader.dataset.ann_file=other.json',
            'train_dataloader.dataset.ann_file: no file',
        ),
    ],
)
def test_what_cannot_be_used_ends_in_one_message(tool, tmp_path, words, message):
    config = write_tiny_run(tmp_path)
    with pytest.raises(SystemExit) as caught, plain_errors():
        tool('cache_teacher', config, '--device', 'cpu', *words.split())
    assert message in caught.value.code and '\n' not in caught.value.code


def test_a_store_of_another_teacher_is_refused_with_the_reason(tool, tmp_path):
    config = write_tiny_run(tmp_path)
    tool('cache_teacher', config, '--out', 'store', '--device', 'cpu')
    with pytest.raises(SystemExit) as caught, plain_errors():
        tool(
            *('cache_teacher', config, '--out', 'store', '--device', 'cpu'),
            *('--cfg-options', 'model.teacher.noise=0.5'),
        )
    assert 'teacher.noise: left at its default in the store, 0.5 here' in (
        caught.value.code
    )
