"""What the results say of what was measured."""

import json
import math

import pytest

from lfi_mmdet.evaluation.study.outcome import (
    ATTEMPT_MARK,
    result_lines,
    why_failed,
)

from .fakes import fake_task

BOTH = dict(type='CocoMetric', metric=['bbox', 'segm'])
NOTHING = dict.fromkeys(
    [f'{k}_{m}' for k in ('bbox', 'segm') for m in ('mAP', 'mAP_50', 'mAP_75')], 0.0
)


def measured(tmp_path, found, evaluator, test=None):
    """Metrics in the last line of a run whose evaluations gave some metrics."""
    task = fake_task(tmp_path, val_evaluator=evaluator)
    task.folder.mkdir(parents=True)
    record = dict(finished=True, iteration=4, evaluations={'2': found, '4': found})
    (task.folder / 'record.json').write_text(json.dumps(record))
    if test is not None:
        (task.folder / 'tests.json').write_text(json.dumps(dict(line=test)))
    lines = result_lines(task, 'finished', None, {})
    assert len(lines) == 2 and lines[0]['metrics']['val'] == lines[1]['metrics']['val']
    json.dumps(lines, allow_nan=False)  # as the results are written
    return lines[-1]['metrics']


def test_what_was_not_measured_has_no_value(tmp_path):
    boxes = {'coco/bbox_mAP': 0.4}
    found = measured(tmp_path, boxes, dict(type='CocoMetric', metric='bbox'))
    assert found == dict(val=dict(bbox_mAP=0.4))


@pytest.mark.parametrize('value', [-1, -1.0, math.nan, math.inf])
def test_a_value_that_is_none_is_left_out(tmp_path, value):
    given = {'coco/bbox_mAP': 0.4, 'coco/segm_mAP': value, 'coco/bbox_mAP_s': value}
    found = measured(tmp_path, given, BOTH, test=given)
    assert found == dict(val=dict(bbox_mAP=0.4), line=dict(bbox_mAP=0.4))
    none = {'coco/bbox_mAP': value, 'coco/segm_mAP': value}
    assert measured(tmp_path / 'b', none, BOTH, test=none) == dict(val={}, line={})


@pytest.mark.parametrize(
    ('evaluator', 'expected'),
    [
        (BOTH, NOTHING),
        ([BOTH], NOTHING),
        (
            dict(type='CocoMetric', metric='bbox'),
            {k: v for k, v in NOTHING.items() if k.startswith('bbox')},
        ),
        (
            dict(type='mmdet.CocoMetric', metric=['segm'], metric_items=['mAP']),
            dict(segm_mAP=0.0),
        ),
        (dict(BOTH, format_only=True), {}),
        (dict(type='VOCMetric', metric='mAP'), {}),
        (None, {}),
    ],
)
def test_nothing_detected_is_zero_of_what_the_evaluator_computes(
    tmp_path, evaluator, expected
):
    found = measured(tmp_path, {}, evaluator, test={})
    assert found == dict(val=expected, line=expected)


def test_other_metrics_stay_where_nothing_was_detected(tmp_path):
    found = measured(tmp_path, {'pascal_voc/mAP': 0.1}, [BOTH, dict(type='VOCMetric')])
    assert found['val'] == {**NOTHING, 'pascal_voc/mAP': 0.1}


def test_a_reason_is_of_the_last_attempt(tmp_path):
    task = fake_task(tmp_path, 's/lfi/seed0')
    task.folder.mkdir(parents=True)
    attempts = ['error: no data\n', 'half of a line\n']
    text = ''.join(f'{ATTEMPT_MARK}\n{attempt}' for attempt in attempts)
    (task.folder / 'log.txt').write_text(text)
    assert why_failed(task, 1, {}) == ('failed', 'exit code 1: half of a line')
