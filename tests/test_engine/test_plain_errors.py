"""Which errors become one message, and which keep their traceback."""

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import MODELS
from torch._utils import ExceptionWrapper

from lfi_mmdet.engine import plain_errors as plain_errors_module
from lfi_mmdet.engine.plain_errors import explain, plain_errors
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.distillers import map_layers


def caught(call, *args, **kwargs):
    with pytest.raises(Exception) as info:
        call(*args, **kwargs)
    return info.value


def test_what_this_package_raises_on_purpose_is_explained():
    assert 'choose from' in explain(caught(map_layers, 'other', 2, 2))
    assert explain(InputError('what is wrong')) == 'what is wrong'


def test_what_breaks_inside_of_this_package_keeps_its_traceback():
    # len(...) of a number, nothing that was meant
    assert explain(caught(map_layers, 'uniform', 2, None)) is None


def test_errors_of_others_keep_their_traceback():
    assert explain(caught(np.zeros(3).reshape, 2)) is None
    assert explain(ValueError('never raised')) is None


def test_unknown_names_are_explained_with_the_closest_ones():
    message = explain(caught(MODELS.build, dict(type='SimpelFPN')))
    assert "type='SimpelFPN' is not registered as a model" in message
    assert "did you mean 'SimpleFPN'" in message


def test_arguments_that_a_class_does_not_have_are_explained():
    error = caught(MODELS.build, dict(type='SimpleFPN', in_chanels=4))
    assert 'in_chanels' in explain(error)
    # the same mistake in code is a bug
    assert explain(caught(map_layers, rule='last', student=4)) is None


@pytest.mark.parametrize('worker', [False, True])
@pytest.mark.parametrize(
    'content, message', [(b'nonsense', r'broken.png cannot be'), (b'', 'is empty')]
)
def test_images_that_cannot_be_read_are_explained(tmp_path, worker, content, message):
    path = tmp_path / 'broken.png'
    path.write_bytes(content)
    error = caught(LoadImageFromFile(), dict(img_path=str(path)))
    if worker:
        # how a data loader hands on what its worker met
        info = (type(error), error, error.__traceback__)
        error = caught(ExceptionWrapper(info, 'in a worker').reraise)
    text = explain(error)
    assert message in text and '\n' not in text


def test_a_known_error_ends_the_program_with_its_message():
    with pytest.raises(SystemExit) as info, plain_errors():
        raise InputError('what is wrong')
    assert info.value.code == 'error: what is wrong'


def test_another_process_lets_the_first_speak_before_it_speaks_itself(monkeypatch):
    waited = []
    monkeypatch.setattr(plain_errors_module.time, 'sleep', waited.append)
    with pytest.raises(SystemExit) as info, plain_errors(process=3):
        raise InputError('what is wrong')
    assert info.value.code == 'error: what is wrong (said by process 3)'
    assert waited and waited[0] > 0


def test_an_unknown_error_passes_through():
    with pytest.raises(ZeroDivisionError), plain_errors():
        print(1 / 0)
