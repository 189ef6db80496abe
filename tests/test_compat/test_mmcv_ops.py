"""When and how ``mmcv._ext`` is substituted."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import mmcv
import pytest

from lfi_mmdet.compat.mmcv_ops import EXT_NAME, install_mmcv_ops
from lfi_mmdet.compat.torchvision_ops import OPS


def forget_ext(monkeypatch):
    """Unload ``mmcv._ext``, if it is loaded, until the end of the test."""
    monkeypatch.setitem(sys.modules, EXT_NAME, None)
    del sys.modules[EXT_NAME]


@pytest.fixture
def ext(monkeypatch):
    """A fresh substitute, as in an environment without compiled ops."""
    monkeypatch.setattr(mmcv, '_ext', None, raising=False)
    forget_ext(monkeypatch)
    if find_spec(EXT_NAME) is not None:
        pytest.skip('mmcv has compiled ops here')
    assert install_mmcv_ops()
    return sys.modules[EXT_NAME]


def test_the_substitute_serves_torchvisions_ops(ext):
    assert {name: getattr(ext, name) for name in OPS} == OPS
    assert mmcv._ext is ext


def test_the_substitute_is_found_like_any_module(ext):
    spec = find_spec(EXT_NAME)
    assert spec is ext.__spec__ and spec.name == ext.__name__ == EXT_NAME
    # what mmcv.utils.check_ops_exist looks at
    assert spec.loader is not None


def test_an_op_that_is_not_served_exists_and_names_itself_when_called(ext):
    assert hasattr(ext, 'modulated_deform_conv_forward')
    op = ext.modulated_deform_conv_forward
    with pytest.raises(NotImplementedError) as error:
        op(1, stride=2)
    message = str(error.value)
    assert "'modulated_deform_conv_forward'" in message
    assert 'roi_align_forward' in message
    assert 'mim install mmcv' in message and 'pip install' in message


@pytest.mark.parametrize('name', ['__file__', '__path__', '__wrapped__', '_private'])
def test_the_substitute_has_no_dunder_attributes_it_does_not_have(ext, name):
    assert not hasattr(ext, name)
    with pytest.raises(AttributeError, match=name):
        getattr(ext, name)


def test_installing_again_changes_nothing(ext):
    assert not install_mmcv_ops()
    assert sys.modules[EXT_NAME] is ext


def test_imported_compiled_ops_are_left_alone(monkeypatch):
    compiled = ModuleType(EXT_NAME)
    compiled.__spec__ = ModuleSpec(EXT_NAME, loader=None)
    monkeypatch.setitem(sys.modules, EXT_NAME, compiled)
    assert not install_mmcv_ops()
    assert sys.modules[EXT_NAME] is compiled
    assert not hasattr(compiled, 'nms')


def test_compiled_ops_on_disk_are_left_alone_even_if_they_do_not_load(
    monkeypatch, tmp_path
):
    (tmp_path / '_ext.py').write_text('raise ImportError("undefined symbol")')
    monkeypatch.setattr(mmcv, '__path__', [str(tmp_path), *mmcv.__path__])
    forget_ext(monkeypatch)
    assert not install_mmcv_ops()
    assert EXT_NAME not in sys.modules
    with pytest.raises(ImportError, match='undefined symbol'):
        __import__(EXT_NAME)


@pytest.mark.slow
def test_setup_helps_after_mmcv_ops_failed_to_import():
    script = """
import importlib.util, sys
import mmcv
if importlib.util.find_spec('mmcv._ext') is not None:
    sys.exit(77)
try:
    import mmcv.ops
except ModuleNotFoundError:
    pass
else:
    raise AssertionError('mmcv.ops needs no ops?')
from lfi_mmdet.compat import setup
setup()
setup()
import mmcv.ops, mmdet.models
from mmcv.utils import collect_env
assert 'torchvision' in collect_env()['MMCV Compiler']
"""
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=300
    )
    if done.returncode == 77:
        pytest.skip('mmcv has compiled ops here')
    assert done.returncode == 0, done.stderr
