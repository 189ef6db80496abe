"""Study files, right and wrong."""

import copy
from pathlib import Path

import pytest

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation.study.plan import parse_study, read_study
from lfi_mmdet.evaluation.study.variables import substitute

CONTENT = dict(
    name='test',
    seeds=[0, 1],
    config='config.py',
    iterations=40,
    val_interval=10,
    settings=dict(
        scenes=dict(
            scenes=dict(train=8), labels=['50%', 1.0], tests=dict(line=dict(scenes={}))
        )
    ),
    arms=dict(
        lfi=dict(options={'a.b': 1}),
        twin=dict(twin=True),
        pre=dict(stages=[dict(name='p', config='p.py', iterations=7)], seeds=[1]),
    ),
)


def parse(**changes):
    content = copy.deepcopy(CONTENT)
    for key, value in changes.items():
        place = content
        *path, last = key.split('__')
        for part in path:
            place = place[part]
        place[last] = value
    return parse_study(content, Path('study.yaml'))


def test_runs_are_arms_by_seeds_by_settings_with_the_twin_first():
    runs = [(s.name, a.name, seed) for s, a, seed in parse().runs()]
    half = [
        ('scenes-50pct', 'twin', 0),
        ('scenes-50pct', 'lfi', 0),
        ('scenes-50pct', 'twin', 1),
        ('scenes-50pct', 'lfi', 1),
        ('scenes-50pct', 'pre', 1),
    ]
    whole = [('scenes-100pct', arm, seed) for _, arm, seed in half]
    assert runs == half + whole


def test_an_arm_may_be_kept_to_some_settings():
    study = parse(arms__lfi__settings=['scenes-100pct'])
    assert {s.name for s, a, _ in study.runs() if a.name == 'lfi'} == {'scenes-100pct'}


def test_a_setting_takes_over_what_it_does_not_say():
    study = parse(
        settings__scenes__options={'a': 1, 'b': 1},
        settings__longer=dict(like='scenes', iterations=80, labels=3, options={'b': 2}),
    )
    longer = study.settings['longer']
    assert longer.iterations == 80 and longer.val_interval == 10
    assert longer.labels == 3 and longer.scenes == dict(train=8)
    assert longer.options == {'a': 1, 'b': 2} and [*longer.tests] == ['line']


def test_pretraining_is_counted_apart():
    assert parse().arms['pre'].pretrain_iters == 7
    assert parse().arms['lfi'].pretrain_iters == 0


def test_a_bar_of_one_arm_is_against_its_twin():
    bar = dict(name='b', setting='scenes-100pct', arms='lfi', metric='segm_mAP')
    (found,) = parse(bars=[dict(bar, at_least=1.6)]).bars
    assert found.arms == ('lfi', 'twin')


BAR = dict(name='b', setting='scenes-100pct', arms='lfi', metric='segm_mAP', at_least=1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(sedes=[1]), r'study\.sedes is not known.*did you mean seeds'),
        (dict(seeds=[1, 1]), r'seeds: \[1, 1\] is no list of different numbers'),
        (dict(iterations='many'), r"iterations: 'many' is no positive whole number"),
        (dict(arms__lfi__twn='a'), r'arms\.lfi\.twn is not known.*twin'),
        (dict(arms__lfi__twin='two'), r"arms\.lfi\.twin: 'two' is none of"),
        (dict(arms__twin={}), r'arms\.lfi has no twin: mark one arm'),
        (dict(arms__lfi__twin=True), r"twin: true is said of \['lfi', 'twin'\]"),
        (dict(arms__lfi__settings=['x']), r"arms\.lfi\.settings: 'x' is none of"),
        (dict(arms__pre__stages=[dict(name='p')]), r'stages\.0 lacks config, iterat'),
        (
            dict(
                arms__pre__stages=[dict(CONTENT['arms']['pre']['stages'][0], feeds=1)]
            ),
            r'feeds: 1 is none of backbone, load_from, nothing',
        ),
        (
            dict(config=None),
            r'arms\.lfi has no config, nor have settings\.scenes-50pct',
        ),
        (dict(name='a/b'), r"name: 'a/b' names folders"),
        (dict(settings__scenes__labels='0%'), r"labels: '0%' is no amount of labels"),
        (dict(settings__scenes__folder='x'), r'settings\.scenes: needs scenes'),
        (dict(settings__scenes__tests=dict(val={})), r'the name val is that of'),
        (dict(settings__s=dict(like='z')), r"settings\.s\.like: 'z' is none of"),
        (dict(selection_seeds=[1]), r'selection_seeds: \[1\] are also seeds of'),
        (dict(groups=dict(g=['lfi', 'x'])), r"groups\.g: 'x' is none of"),
        (dict(compare=[['lfi']]), r"compare\.0\.arms: \['lfi'\] is no pair of arms"),
        (
            dict(compare=[['lfi', 'best of x']]),
            r"compare\.0\.arms: 'best of x', groups",
        ),
        (dict(bars=[dict(BAR, setting='x')]), r"bars\.0\.setting: 'x' is none of"),
        (dict(bars=[dict(BAR, at_least=None)]), r'bars\.0 needs at_least, at_most or'),
        (dict(bars=[dict(BAR, interval='big')]), r"interval: 'big' is none of"),
        (dict(bars=[dict(BAR, metric='mAP')]), r"bars\.0\.metric: 'mAP' is none of"),
        (dict(bars=[dict(BAR, test='x')]), r"test: 'x' is none of \['val', 'line'\]"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(change, message):
    with pytest.raises(InputError, match=message):
        parse(**change)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path):
    with pytest.raises(InputError, match='No such file'):
        read_study(tmp_path / 'none.yaml')
    (tmp_path / 'bad.yaml').write_text('a: [')
    with pytest.raises(InputError, match='is no YAML'):
        read_study(tmp_path / 'bad.yaml')


def test_the_study_files_of_the_project_can_be_read():
    folder = Path(__file__).parents[3] / 'configs' / 'studies'
    assert [read_study(path).name for path in sorted(folder.glob('*.yaml'))]


def test_variables_are_replaced_in_texts_lists_mappings_and_keys():
    variables = {'seed': 3, 'data': '/d', 'stage.pre.checkpoint': '/c.pth'}
    found = substitute(
        {
            'a': '{seed}',
            'b': ['{data}/x', 1],
            'k{seed}': {'c': '{stage.pre.checkpoint}'},
        },
        variables,
        'options',
    )
    assert found == {'a': 3, 'b': ['/d/x', 1], 'k3': {'c': '/c.pth'}}
    assert substitute('{{seed}} {seed}', variables, 'o') == '{seed} 3'


def test_an_unknown_variable_is_named():
    with pytest.raises(InputError, match=r'options\.a: no variable \{sed\}; there are'):
        substitute({'a': '{sed}'}, dict(seed=1), 'options')
