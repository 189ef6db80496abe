"""Numbers in the README come from the JSON of a run."""

import json
import re

import pytest

from lfi_mmdet.evaluation.study.report import make_report, write_report
from tests.test_evaluation.test_study import lines
from tools import demo, update_readme

VERSIONS = dict(python='3.11', torch='2', mmengine='0', mmcv='2', mmdet='3')
FACTS = dict(gpu=None, cpu_threads=2, versions=VERSIONS, seed=0)
TEXT = (
    'a\n<!-- demo:start -->\nold\n<!-- demo:end -->\nb\n'
    '<!-- costs:start --><!-- costs:end -->'
    '<!-- confirm:start --><!-- confirm:end -->'
    '<!-- domains:start --><!-- domains:end -->'
    '<!-- controls:start --><!-- controls:end -->'
)
RESULTS_TEXT = (
    '<!-- gate:start --><!-- gate:end -->\n<!-- gates:start --><!-- gates:end -->\n'
    '<!-- confirm:start --><!-- confirm:end --><!-- scenes:start --><!-- scenes:end -->'
    '<!-- domains:start --><!-- domains:end -->'
    '<!-- controls:start --><!-- controls:end -->'
    '<!-- ablations:start --><!-- ablations:end -->'
    '<!-- doses:start --><!-- doses:end --><!-- photos:start --><!-- photos:end -->'
)
STUDIES = (
    *('confirm', 'scenes', 'domains', 'controls', 'ablations', 'doses', 'photos'),
)
BAR = dict(
    name='mask', arms=['lfi', 'twin'], setting='s', metric='segm_mAP', test='val',
    at_least=2.4, at_most=None, interval='above_zero',
)  # fmt: skip


@pytest.fixture
def results(tmp_path):
    row = dict(box_map=0.123, mask_map=0.1, box_ap50=0.2, mask_ap50=0.19,
               seconds_per_iter=0.5, parameters=1.5e6)  # fmt: skip
    demo = dict(
        FACTS, rows=dict(twin=row), note='Note.', command='make demo', minutes=9.6,
        divergence=dict(start=2.0, trained=0.5, uniform=2.1,
                        all_layers=[dict(block=5, start=2.0, trained=0.5)]),
    )  # fmt: skip
    (tmp_path / 'demo.json').write_text(json.dumps(demo))
    write_benchmark(tmp_path, [twin(), *variants()])
    write_study(tmp_path)
    write_gate(tmp_path)
    return tmp_path


def write_study(folder):
    results = folder / 'results.jsonl'
    runs = [
        lines.run(arm, seed, {10: 0.1, 20: value})
        for arm, value in (('twin', 0.2), ('lfi', 0.25))
        for seed in range(5)
    ]
    lines.write(results, lines.plan(seeds=range(5), bars=[BAR]), *runs)
    report = make_report([results], ['tools/report.py', 'x'])
    for name in STUDIES:
        write_report(report, folder / name)


def write_gate(folder):
    spread = dict(value=0.93, low=0.9, high=0.95, chance=0.5)
    one = dict(value=0.88, low=None, high=None, chance=0.09)
    layer = dict(
        reading='similarity', layer='1', presence_auc=spread, pointing_multi=one
    )
    content = dict(FACTS, layers=[layer, dict(layer, presence_auc=None)],
                   num_images=300, command=['check_teacher.py', 'c.py'])  # fmt: skip
    better = dict(layer, layer='2', presence_auc=dict(spread, value=0.94))
    line = dict(content, layers=[*content['layers'], better])
    for name, told in (
        ('teacher/teacher', content),
        ('teacher/domains/line', line),
        ('doses/lfi', content),
    ):
        path = folder / f'{name}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told))


def spread(median, width=0.0):
    return dict(median=median, low=median - width, high=median + width)


def timed(kind, median, ratio=None, width=0.01):
    found = {kind: spread(median)}
    return found | (dict(ratio=spread(ratio, width)) if ratio else {})


def twin():
    return dict(
        name='twin', parameters=dict(total=1e6, exported=1e6), flops=dict(total=2e9),
        inference=timed('seconds', 0.1), inference_memory=timed('bytes', 2**30),
        train_step=timed('seconds', 1.0), train_memory=timed('bytes', 2**31),
        checkpoint=dict(teacher=0),
    )  # fmt: skip


def variants():
    loader = dict(share=0.02, shares=spread(0.03, 0.01), images=50,
                  seconds=spread(0.2))  # fmt: skip
    return [
        dict(name='feedback', parameters=dict(total=1.02e6, exported=1.02e6),
             flops=dict(total=2.1e9), inference=timed('seconds', 0.105, 1.05),
             inference_memory=timed('bytes', 2**30, 1.001)),
        dict(name='no-feedback', parameters=dict(total=1.02e6, exported=1e6),
             inference=timed('seconds', 0.101, 1.005)),
        dict(name='cached', train_step=timed('seconds', 1.1, 1.1204), loader=loader,
             train_memory=timed('bytes', 2**31, 1.1), checkpoint=dict(teacher=0),
             teacher=dict(type='CoCaTeacher', model='coca')),
        dict(name='clip', train_step=timed('seconds', 1.1, 1.1, 0.2),
             checkpoint=dict(teacher=0),
             teacher=dict(type='CLIPTeacher', model='ViT-B-16')),
    ]  # fmt: skip


def write_benchmark(folder, models, **changes):
    content = dict(
        FACTS, models=models, command=['benchmark.py', 'x', '--variant', 'a b'],
        shape=[64, 96], batch_size=2, objects_per_image=7, classes_per_image=3,
        repeat=5, positives=0, remarks=[], **changes,
    )  # fmt: skip
    (folder / 'benchmark.json').write_text(json.dumps(content))


def test_blocks_are_replaced_and_the_rest_is_kept(results):
    text = update_readme.fill(TEXT, results)
    assert text.startswith('a\n<!-- demo:start -->\n') and '\nb\n' in text
    assert '| twin | 12.3 | 10.0 | 20.0 | 19.0 | 0.50 | 1.50 M |' in text
    assert '5: 2.00 -> 0.50' in text and 'old' not in text
    assert '64x96 pixels' in text and '7 objects of 3 classes' in text
    # as a shell takes it
    assert "`python tools/benchmark.py x --variant 'a b'`, CPU, 2 threads" in text
    assert update_readme.fill(text, results) == text


def cells(results, title):
    text = update_readme.fill(TEXT, results)
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {title}')]
    return [cell.strip() for cell in line.strip('|').split('|')][1:]


def test_each_cost_stands_beside_its_bar(results):
    assert cells(results, 'parameters added') == [
        'at most 3%', '+2.0% (0.02 M on 1.0 M)', 'yes'
    ]  # fmt: skip
    assert cells(results, 'the same without feedback, exp') == ['0', 'none', 'yes']
    assert cells(results, 'inference latency') == [
        'at most 1.04x', '1.050x (1.040-1.060); 105 ms, twin 100 ms', '**no**'
    ]  # fmt: skip
    assert cells(results, 'inference memory')[1:] == [
        '1.001x (0.991-1.011); 1024 MiB, twin 1024 MiB', '-'
    ]  # fmt: skip
    assert cells(results, 'arithmetic')[1] == '+5.0%; 2.1 GFLOPs, twin 2.0'
    assert cells(results, 'training memory')[2] == 'yes'
    assert cells(results, 'training step, online CLIP')[1:] == [
        '1.100x (0.900-1.300); 1100 ms, twin 1000 ms; CLIPTeacher ViT-B-16', 'yes'
    ]  # fmt: skip
    assert cells(results, 'reading and')[1:] == [
        '2.0% (2.0%-4.0%) of 200 ms, 50 images', 'yes'
    ]  # fmt: skip
    assert cells(results, 'teacher in')[1:] == ['0 bytes (cached, clip)', 'yes']


def test_rounding_does_not_meet_a_bar(results):
    shown, verdict = cells(results, 'training step, cached')[1:]
    assert shown.startswith('1.120x (') and verdict == '**no**'


def test_noise_is_what_reaches_the_bar_with_its_quartiles(results):
    assert cells(results, 'the same without feedback |')[2] == 'yes'
    models = [twin(), *variants()]
    models[2]['inference'] = timed('seconds', 0.101, 1.005, width=0.004)
    write_benchmark(results, models)
    assert cells(results, 'the same without feedback |')[2] == '**no**'


def test_what_was_not_measured_is_not_claimed(results):
    assert cells(results, 'training step, online CoCa') == [
        'at most 1.5x', 'not measured', '-'
    ]  # fmt: skip
    models = [twin(), *variants()]
    models[3]['loader'].update(share=None, shares=None)
    write_benchmark(results, models)
    assert cells(results, 'reading and')[1:] == ['not measured', '-']


def test_a_teacher_in_a_checkpoint_is_told(results):
    models = [twin(), *variants()]
    models[4]['checkpoint'] = dict(teacher=12)
    write_benchmark(results, models)
    assert cells(results, 'teacher in')[1:] == [
        '12 bytes (cached, clip)',
        '**no**',
    ]


def test_a_missing_block_is_named(results):
    with pytest.raises(ValueError, match='demo:start'):
        update_readme.fill('nothing here', results)


def test_a_missing_measurement_is_named(results):
    (results / 'benchmark.json').unlink()
    with pytest.raises(FileNotFoundError, match='measure first, see tools/benchmark'):
        update_readme.fill(TEXT, results)


def test_a_bar_of_the_study_stands_in_the_readme_with_its_command(results):
    text = update_readme.fill(TEXT, results)
    row = (
        '| mask | s | lfi minus twin | segm_mAP | at least +2.4, interval above zero |'
    )
    assert row + ' +5.0 (+5.0 to +5.0' in text and '| 5 | met |' in text
    assert '10 of 10 runs finished; `python tools/study.py test.yaml`' in text


def test_the_results_show_arms_commands_and_the_gate(results):
    text = update_readme.fill(RESULTS_TEXT, results, 'docs/results/README.md')
    assert '| LFI | 5/5 | 5 | 50.0 ± 0.0 |' in text and '**Scenes**' in text
    assert 'then `python tools/report.py x`' in text
    assert '| similarity | 1 | 0.930 (0.900-0.950) | 0.880 | 0.090 |' in text
    assert '| similarity | 1 | - | 0.880 | 0.090 |' in text
    assert '300 images; `python tools/check_teacher.py c.py`' in text
    best = '| line | similarity, 2 | 0.940 (0.900-0.950) | 0.880 | 0.090 |'
    assert best in text and '- line: 300 images; `python tools/check' in text


def test_gains_stand_beside_the_quality_of_the_teacher(results):
    text = update_readme.fill(RESULTS_TEXT, results, 'docs/results/README.md')
    (block,) = re.findall('<!-- doses:start -->(.*)<!-- doses:end -->', text, re.DOTALL)
    rows = [line for line in block.splitlines() if line.startswith('| ')]
    # the twin has no teacher
    assert [row.split(' | ')[1] for row in rows[2:]] == ['-', '0.880']
    assert '+5.0' in rows[3] and 'check_teacher.py c.py' in block
    (results / 'doses' / 'lfi.json').unlink()
    with pytest.raises(KeyError, match='lfi'):
        update_readme.fill(RESULTS_TEXT, results, 'docs/results/README.md')


def test_costs_without_bars_stand_by_variant(results):
    (results / 'benchmark_r50.json').write_text(
        (results / 'benchmark.json').read_text()
    )
    text = update_readme.fill(
        '<!-- costs:start --><!-- costs:end -->', results, 'docs/any_detector.md'
    )
    assert '| twin | 1.0 M | 100 ms | 1000 ms | 2048 MiB |' in text
    assert (
        '| feedback | +0.02 M; exported +0.02 M | 1.050x (1.040-1.060) | - | - |'
        in text
    )
    assert '| cached | - | - | 1.120x (1.110-1.130) | 1.100x (1.090-1.110) |' in text


def test_published_models_stand_with_their_results_and_commands(results):
    record = dict(
        file='a-12345678.pth', bytes=5 * 2**20, iter=400, command='make demo',
        metrics={'coco/bbox_mAP': 0.1234, 'coco/segm_mAP': 0.2},
        versions=dict(torch='2'), machine=dict(cpu='a processor'),
    )  # fmt: skip
    text = update_readme.published(dict(a=record))
    row = '| `a` | [weights](published/a-12345678.pth), [config](published/a.py), '
    assert f'{row}[log](published/a.log.json) | 5.0 | 12.3 | 20.0 |' in text
    assert '`make demo`, 400 iterations, a processor; torch 2.' in text


def test_a_study_that_was_not_run_is_named(results):
    (results / 'confirm' / 'report.json').unlink()
    with pytest.raises(FileNotFoundError, match='confirm.*see tools/report'):
        update_readme.fill(TEXT, results)


def test_the_readme_says_what_the_results_say():
    assert update_readme.main(['--check']) == 0


def test_the_shown_demo_is_the_demo_of_today():
    path = update_readme.ROOT / 'docs' / 'results' / 'demo.json'
    shown = json.loads(path.read_text())
    then = shown['note'], shown.get('recipe')
    assert then == (demo.NOTE, demo.recipe()), 'run make demo, and copy what it wrote'
