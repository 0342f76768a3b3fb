import os
from pathlib import Path

import pytest

from yolov7_simple.runtime.names import FreeNames, as_text, result_names


def test_names_of_results_are_never_the_same():
    paths = [Path(name) for name in ('a/x.jpg', 'b/x.jpg', 'a_x.jpg', 'x.png', 'c/y.jpg', 'caf\udce9.jpg')]
    assert result_names(paths) == ['a_x.jpg', 'b_x.jpg', 'a_x_2.jpg', 'x.png', 'y.jpg', 'caf%e9.jpg']


@pytest.mark.parametrize('name', ['x' * 240, '物' * 80, '物' * 84 + 'x', 'caf\udce9' * 50])
def test_long_names_fit_with_any_ending(name, tmp_path):
    free = FreeNames()
    names = [free.give(name, suffix='.jpg.png') for _ in range(3)]
    assert len(set(names)) == 3
    for given in names:
        (tmp_path / given).touch()
        assert given.endswith('.jpg.png') and len(os.fsencode(given)) <= 255


def test_names_differ_by_more_than_case():
    free = FreeNames()
    assert [free.give(name, suffix='.png') for name in ('a', 'A', 'a', 'b')] == ['a.png', 'A_2.png', 'a_3.png', 'b.png']
    free = FreeNames()
    assert [free.give('x', name, suffix='.txt') for name in ('x.jpg', 'x.png', 'x.png')] == [
        'x.txt',
        'x.png.txt',
        'x.png_2.txt',
    ]


def test_a_thousand_equal_names_take_no_longer_each():
    free = FreeNames()
    assert len({free.give('same') for _ in range(5000)}) == 5000


def test_what_is_not_text_becomes_text():
    assert as_text('物.jpg') == '物.jpg' and as_text('a\udcff\udce4.jpg') == 'a%ff%e4.jpg'
