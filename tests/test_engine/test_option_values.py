"""What is written behind KEY= on the command line is what the config gets."""

from argparse import ArgumentParser

import pytest
from mmengine.config import DictAction

from lfi_mmdet.engine.command_line import ConfigOptions
from lfi_mmdet.engine.option_values import parse_option_value
from lfi_mmdet.evaluation import Variant


@pytest.fixture
def options_of():
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)

    def parse(*pairs):
        return parser.parse_args(['--cfg-options', *pairs]).cfg_options

    return parse


@pytest.mark.parametrize(
    'text',
    [
        'a drawing of a {}.',
        '/data/my images/train 1',
        ' with spaces around ',
        "a dog's photo",
        'a photo (not a {}) of it',
        'a photo (a {}, not a painting)',
        '(a) or (b)',
        'a smile :)',
        '',
    ],
)
def test_a_string_is_kept_as_it_is_written(options_of, text):
    options = options_of(f'model.teacher.template={text}', 'model.a.b=1')
    assert options == {'model.teacher.template': text, 'model.a.b': 1}
    variant = Variant.parse(['a', f'model.teacher.template={text}'], 'c.py', ('flops',))
    assert variant.options == {'model.teacher.template': text}


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('[a photo of a {}., a drawing of a {}.]',
         ['a photo of a {}.', 'a drawing of a {}.']),
        ('a photo of a {}.,a drawing of a {}.',
         ['a photo of a {}.', 'a drawing of a {}.']),
        ('[traffic light, [hot dog, 2], (tie, None)]',
         ['traffic light', ['hot dog', 2], ('tie', None)]),
        ("['a {}, drawn', \"a cat's {}\", ' b ']",
         ['a {}, drawn', "a cat's {}", ' b ']),
        ("'a photo, of a {}'", 'a photo, of a {}'),
        ("'a', 'b, c'", ['a', 'b, c']),
        ("dog's, cat's", ["dog's", "cat's"]),
        ('"[1, 2]"', [1, 2]),
        ('(1,2),(3,4)', [(1, 2), (3, 4)]),
    ],
)  # fmt: skip
def test_elements_of_lists_keep_their_inner_spaces(options_of, text, value):
    assert options_of(f'k={text}') == {'k': value}


@pytest.mark.parametrize(
    'text',
    [
        '1', '1.5', '1e-4', 'true', 'False', 'None', 'word', 'a=b', '"quoted"', "'7'",
        '1,2,3', '[1,2]', '(1,2)', '[]', '()', '(1,)', '[(1,2),(3,4)]',
        '[(a,b),[c,d],e]', 'a,', '[None,true]', '/a/b.py', '-1', '{a}',
        '[[1]]', '[1,,2]', '[one',
    ],
)  # fmt: skip
def test_without_spaces_values_are_those_of_mmengine(text):
    value = parse_option_value(text)
    expected = DictAction._parse_iterable(text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize('text', ['[1,2', '(1,2]', 'a),b', '[(1,2]'])
def test_brackets_without_partners_are_named(options_of, capsys, text):
    with pytest.raises(SystemExit):
        options_of(f'k={text}')
    assert f'--cfg-options: Imbalanced brackets exist in {text!r}' in (
        capsys.readouterr().err
    )
