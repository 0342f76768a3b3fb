"""The screen of a run: what is shown, in a terminal and in a file."""

import io
import logging
import os
import sys
import warnings

import pytest
from mmengine.logging import MMLogger, print_log

from yolov7_simple.datasets.coco import CheckedCocoDataset
from yolov7_simple.engine import screen as module
from yolov7_simple.engine.screen import MAX_TABLE, Screen, ScreenHandler, short_screen
from yolov7_simple.engine.screen_hook import as_typed, command, duration, label, main_metric


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as the test says."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, 'time', clock)
    return clock


def test_without_a_terminal_progress_is_told_ever_more_seldom(clock):
    stream = io.StringIO()
    screen = Screen(stream)
    for second in range(30 * 24 * 3600 // 10):  # a month
        clock.now = 100.0 + 10 * second
        screen.progress(f'at {10 * second}', second, 9)
    times = [int(line.split()[1]) for line in stream.getvalue().splitlines()]
    assert times[:4] == [30, 60, 120, 240] and len(times) < 20


def test_on_a_terminal_lines_are_above_the_line_of_progress(clock):
    stream = Terminal()
    screen = Screen(stream)
    screen.progress('half', 1, 2)
    screen.say('a line')
    assert '\n' not in stream.getvalue().split('a line')[0]
    before, after = stream.getvalue().split('a line\n')
    assert 'half' in before and before.endswith('\r') and 'half' in after
    screen.progress('too soon', 2, 2)
    clock.now += 1
    screen.progress('later', 2, 2)
    screen.close()
    assert 'too soon' not in stream.getvalue() and 'later' in stream.getvalue()
    assert stream.getvalue().endswith('\r')


def test_of_warnings_from_one_place_the_first_few_are_shown():
    stream = io.StringIO()
    screen = Screen(stream)
    for i in range(51):
        screen.warn(('optimizer.py', 1), f'tensor {i} is frozen')
    screen.warn(('other.py', 1), 'alone')
    screen.warn(('other.py', 1), 'alone')
    assert not stream.getvalue()
    screen.release()
    assert stream.getvalue().splitlines() == ['tensor 0 is frozen (and 50 more like it, in the log)', 'alone']
    for i in range(10):
        screen.warn(('images.py', 1), f'{i}.jpg is cut short')
    assert stream.getvalue().splitlines()[2:] == [f'{i}.jpg is cut short' for i in range(3)]
    screen.close()
    assert stream.getvalue().splitlines()[5:] == ['0.jpg is cut short (and since then 7 more like it, in the log)']


def test_a_stream_that_nobody_reads_ends_no_training():
    class Closed(Terminal):
        def write(self, text):
            raise BrokenPipeError

    screen = Screen(Closed())
    screen.progress('half', 1, 2)
    screen.say('a line')
    screen.close()


def test_logs_of_this_package_and_warnings_are_shown():
    stream = io.StringIO()
    screen = Screen(stream)
    screen.release()
    log = MMLogger.get_instance('test_screen')
    log.handlers = [ScreenHandler(screen, logging.INFO)]
    log.info('of the host')
    log.warning('x will be deprecated in future')
    log.debug('too low')
    table = '\n+--+\n|1|\n+--+'
    log.info(table)
    assert not stream.getvalue()
    log.error('of the host')
    print_log('twice', 'current', logging.WARNING)
    print_log('twice', 'current', logging.WARNING)
    dataset = CheckedCocoDataset.__new__(CheckedCocoDataset)
    dataset.ann_file = 'all.json'
    dataset._report('8 images')  # by mmengine's print_log
    assert stream.getvalue().splitlines() == ['error: of the host', 'warning: twice', 'all.json: 8 images']
    screen.shows_tables = True
    log.info(table)
    log.info(table.replace('|1|', '\n'.join(['|1|'] * MAX_TABLE)))
    assert stream.getvalue().splitlines()[3:] == [*table.split(), f'A table of {MAX_TABLE + 2} lines is in the log.']


def test_python_warnings_are_shown_in_full_and_all_is_as_before(monkeypatch):
    stream, before = io.StringIO(), warnings.showwarning
    monkeypatch.setattr(sys, 'stdout', stream)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped, short_screen(lambda screen: None):
        warnings.simplefilter('always')
        warnings.warn('a long ' + 'text ' * 50, UserWarning, stacklevel=1)
        warnings.warn('for developers', FutureWarning, stacklevel=1)
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert sys.stdout is stream and warnings.showwarning is before
    shown = [line for line in stream.getvalue().splitlines() if 'UserWarning: ' in line]
    assert len(shown) == 1 and 'text ' * 50 in shown[0] and __file__ in shown[0]
    assert 'for developers' not in stream.getvalue()


def test_words(tmp_path, monkeypatch):
    assert [duration(s) for s in (4.4, 59.4, 61, 3599, 3700, 200_000)] == [
        '4 s', '59 s', '1 min', '1 h 00 min', '1 h 02 min', '2 d 7 h',
    ]  # fmt: skip
    assert [label(name) for name in ('coco/bbox_mAP', 'pascal_voc/mAP', 'val_loss')] == ['mAP', 'mAP', 'val_loss']
    metrics = {'val_loss': 1.0, 'coco/bbox_mAP': 0.5}
    assert main_metric(metrics, 'val_loss') == 'val_loss' and main_metric(metrics, 'other') == 'coco/bbox_mAP'
    assert main_metric({'accuracy': 1.0}, None) == 'accuracy' and main_metric({}, None) is None
    monkeypatch.chdir(tmp_path)
    assert as_typed(tmp_path / 'a' / 'b c') == 'a/b c' and as_typed('/usr/x') == '/usr/x'
    assert as_typed('s3://bucket/a') == 's3://bucket/a'
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'bin/python'))
    monkeypatch.setenv('PATH', '/nowhere')
    assert command('tools/report.py', tmp_path / 'b c') == "bin/python tools/report.py 'b c'"
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/python').symlink_to(os.path.realpath('/bin/sh'))
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    assert command('tools/report.py', 'work') == 'python tools/report.py work'
