"""Numbers in the README come from the JSON of a run."""

import json

import pytest

from tools import update_readme

VERSIONS = dict(python='3.11', torch='2', mmengine='0', mmcv='2', mmdet='3')
FACTS = dict(gpu=None, cpu_threads=2, versions=VERSIONS, seed=0)
TEXT = (
    'a\n<!-- demo:start -->\nold\n<!-- demo:end -->\nb\n'
    '<!-- costs:start --><!-- costs:end -->'
)


@pytest.fixture
def results(tmp_path):
    row = dict(box_map=0.123, mask_map=0.1, box_ap50=0.2, mask_ap50=0.19,
               seconds_per_iter=0.5, parameters=1.5e6)  # fmt: skip
    demo = dict(
        FACTS, rows=dict(twin=row), note='Note.', command='make demo', minutes=9.6,
        divergence=dict(start=2.0, trained=0.5, uniform=2.1,
                        all_layers=[dict(block=5, start=2.0, trained=0.5)]),
    )  # fmt: skip
    model = dict(parameters=dict(total=1e6), flops=dict(total=2e9),
                 inference=dict(median_s=0.1, spread_s=0.02))  # fmt: skip
    lfi = dict(model, parameters=dict(total=1.02e6))
    costs = dict(FACTS, models=[model, lfi], command=['compare_models.py', 'x'])
    (tmp_path / 'demo.json').write_text(json.dumps(demo))
    (tmp_path / 'costs.json').write_text(json.dumps(costs))
    return tmp_path


def test_blocks_are_replaced_and_the_rest_is_kept(results):
    text = update_readme.fill(TEXT, results)
    assert text.startswith('a\n<!-- demo:start -->\n') and '\nb\n' in text
    assert '| twin | 12.3 | 10.0 | 20.0 | 19.0 | 0.50 | 1.50 M |' in text
    assert '5: 2.00 -> 0.50' in text and '| 100.0 ms (IQR 20) |' in text
    assert '+2.0%' in text and 'old' not in text
    assert update_readme.fill(text, results) == text


def test_a_missing_block_is_named(results):
    with pytest.raises(ValueError, match='demo:start'):
        update_readme.fill('nothing here', results)


def test_the_readme_says_what_the_results_say():
    assert update_readme.main(['--check']) == 0
