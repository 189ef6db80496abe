"""Examples in the documents."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    f'{path.relative_to(ROOT)}-{number}': block
    for path in (
        ROOT / 'README.md',
        *ROOT.glob('docs/*.md'),
        *ROOT.glob('configs/*/*.md'),
    )
    for number, block in enumerate(
        re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)
    )
}


@pytest.mark.parametrize('name', EXAMPLES)
def test_an_example_is_python(name):
    compile(EXAMPLES[name], name, 'exec')


TAKES_MODELS = {
    name: taken.start()
    for name, text in EXAMPLES.items()
    if (taken := re.search(r'^from mmdet\.(apis|models)', text, re.MULTILINE))
}


@pytest.mark.parametrize('name', TAKES_MODELS)
def test_who_takes_models_of_mmdet_imports_this_package_first(name):
    """Without compiled ops of mmcv, mmdet cannot be imported before."""
    assert 'import lfi_mmdet' in EXAMPLES[name][: TAKES_MODELS[name]]


@pytest.mark.parametrize('name', TAKES_MODELS)
def test_calls_of_mmdet_name_their_device(name):
    """The third argument of ``init_detector`` is a palette."""
    for node in ast.walk(ast.parse(EXAMPLES[name])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ('init_detector', 'DetInferencer'):
                assert len(node.args) <= 2
                assert 'device' in {keyword.arg for keyword in node.keywords}
