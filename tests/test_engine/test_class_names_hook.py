"""Texts come from the training dataset."""

from types import SimpleNamespace

import pytest
from torch import nn

from lfi_mmdet.engine.hooks import ClassNamesHook


class Teacher:
    checked = None

    def check_dataset(self, dataset):
        self.checked = dataset


class Model(nn.Module):
    names = None

    def __init__(self):
        super().__init__()
        self.teacher = Teacher()

    def set_class_names(self, names):
        self.names = names


def runner(model, classes):
    dataset = SimpleNamespace(metainfo=dict(classes=classes))
    return SimpleNamespace(
        model=model, train_dataloader=SimpleNamespace(dataset=dataset)
    )


def test_the_teacher_gets_the_class_names_of_the_training_dataset():
    model = Model()
    run = runner(model, ('cat', 'dog'))
    ClassNamesHook().before_train(run)
    assert model.names == ('cat', 'dog')
    assert model.teacher.checked is run.train_dataloader.dataset


def test_a_model_without_texts_is_left_alone():
    ClassNamesHook().before_train(runner(nn.Identity(), None))


def test_without_a_teacher_there_need_be_no_class_names():
    model = Model()
    model.teacher = None
    ClassNamesHook().before_train(runner(model, None))
    assert model.names is None


def test_of_concatenated_datasets_that_differ_the_first_gives_the_names():
    model = Model()
    run = runner(model, None)
    run.train_dataloader.dataset.metainfo = [dict(classes=('a',)), dict(classes=('a',))]
    ClassNamesHook().before_train(run)
    assert model.names == ('a',)


def test_a_dataset_without_class_names_is_refused():
    with pytest.raises(ValueError, match='train_dataloader.dataset has no class names'):
        ClassNamesHook().before_train(runner(Model(), None))
