"""What is missing is said before a deep import fails."""

import subprocess
import sys
import warnings
from importlib.util import find_spec

import mmengine
import pytest

from lfi_mmdet.compat import requirements_check, setup


@pytest.fixture
def hide(monkeypatch):
    """Make modules appear not to be installed."""

    def hide(*names):
        monkeypatch.setattr(
            requirements_check,
            'find_spec',
            lambda name: None if name in names else find_spec(name),
        )

    return hide


@pytest.mark.parametrize('name', ['torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet'])
def test_a_missing_package_is_named_with_the_ways_to_install_it(hide, name):
    hide(name)
    with pytest.raises(ImportError) as error:
        requirements_check.check_requirements()
    message = str(error.value)
    assert f'lfi_mmdet needs {name}, not found' in message
    assert 'make setup' in message
    assert '--no-deps -r requirements/openmmlab.txt' in message
    assert 'onedl-mmdetection' in message


def test_all_missing_packages_are_named_at_once(hide):
    hide('mmcv', 'mmdet', 'torch')
    with pytest.raises(ImportError, match='needs torch, mmcv, mmdet, not found'):
        requirements_check.check_requirements()


def test_setup_checks_first(hide):
    hide('mmdet')
    with pytest.raises(ImportError, match='needs mmdet, not found'):
        setup()


def test_the_message_comes_without_torch_and_mmengine_to_import():
    script = """
import sys
sys.modules.update(dict.fromkeys(('torch', 'mmengine', 'numpy')))
from lfi_mmdet.compat import setup
setup()
"""
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=60
    )
    assert 'ImportError: lfi_mmdet needs torch, mmengine, not found' in done.stderr


def with_pkg_resources():
    import pkg_resources  # noqa: F401


def without_pkg_resources():
    pass


@pytest.mark.parametrize('needs_it', [True, False])
@pytest.mark.parametrize('has_it', [True, False])
def test_only_an_mmengine_that_needs_pkg_resources_warns_of_its_absence(
    monkeypatch, hide, needs_it, has_it
):
    hide(*([] if has_it else ['pkg_resources']))
    if has_it and find_spec('pkg_resources') is None:
        pytest.skip('no pkg_resources here')
    monkeypatch.setattr(
        mmengine.utils,
        'get_installed_path',
        with_pkg_resources if needs_it else without_pkg_resources,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        requirements_check.check_requirements()
    texts = [str(w.message) for w in caught if w.category is RuntimeWarning]
    if needs_it and not has_it:
        (text,) = texts
        assert f'mmengine {mmengine.__version__}' in text
        assert "pip install 'setuptools<82'" in text
    else:
        assert not texts


def test_mmengines_need_of_pkg_resources_is_recognised():
    # holds for the releases named in requirements/openmmlab*.txt
    from mmengine.utils import get_installed_path

    upstream = mmengine.__version__ == '0.10.7'
    assert ('pkg_resources' in get_installed_path.__code__.co_names) == upstream
