"""Tracks of drawn detections that are known to belong together."""

import sys

import numpy as np
import pytest

from yolov7_simple.runtime import Detections, InputError
from yolov7_simple.runtime.drawing import class_color
from yolov7_simple.runtime.sources import InputSource
from yolov7_simple.runtime.tracking import NO_TRACK, UNTRACKED_COLOR, VideoTracker, check_tracking, draw_tracks


def detections(*rows):
    """Rows of (x, y, score, label), boxes of 20 pixels."""
    values = np.array(rows, np.float32).reshape(-1, 4)
    boxes = np.concatenate([values[:, :2], values[:, :2] + 20], 1)
    return Detections(boxes, values[:, 2], values[:, 3].astype(np.int64))


@pytest.fixture
def tracker():
    pytest.importorskip('trackers')
    return VideoTracker(score_thr=0.5, rate=10)


def test_objects_keep_their_numbers_where_detections_change_order(tracker):
    """Two of one class meet and pass one another, a third of another class lies on the first."""
    rng = np.random.default_rng(0)
    seen = []
    for i in range(20):
        rows = [(10 + 4 * i, 10, 0.9, 0), (90 - 4 * i, 40, 0.8, 0), (12 + 4 * i, 12, 0.7, 1)]
        order = rng.permutation(3)
        tracks = tracker(detections(*(rows[k] for k in order)))
        seen.append(tracks[np.argsort(order)].tolist())
    assert seen[0] == [NO_TRACK] * 3  # one frame begins no track
    assert sorted(seen[1]) == [1, 2, 3] and all(tracks == seen[1] for tracks in seen[1:])


def test_weak_detections_continue_a_track_and_begin_none(tracker):
    scores = [0.9, 0.9, 0.2, 0.2, 0.05, 0.9]
    tracks = [tracker(detections((10 + i, 10, score, 0), (60, 60, 0.3, 0)))[0] for i, score in enumerate(scores)]
    assert tracks == [NO_TRACK, 1, 1, 1, NO_TRACK, 1]
    assert tracker(detections((15, 10, 0.9, 0), (60, 60, 0.3, 0))).tolist() == [1, NO_TRACK]


@pytest.mark.parametrize('gap, number', [(8, 1), (12, 2)])
def test_a_track_ends_a_second_after_its_last_detection(tracker, gap, number):
    for _ in range(3):
        tracker(detections((10, 10, 0.9, 0)))
    for _ in range(gap):
        assert not len(tracker(detections()))
    tracker(detections((10, 10, 0.9, 0)))
    assert tracker(detections((10, 10, 0.9, 0))).tolist() == [number]


def test_boxes_without_area_do_no_harm(tracker):
    found = Detections(np.zeros((2, 4), np.float32), np.full(2, 0.9, np.float32), np.zeros(2, np.int64))
    for _ in range(3):
        assert len(tracker(found)) == 2


def test_tracks_are_drawn_in_colours_of_their_own():
    image = np.zeros((100, 100, 3), np.uint8)
    found = detections((10, 40, 0.9, 0), (50, 40, 0.9, 0))
    drawn = draw_tracks(image, found, np.array([7, NO_TRACK]), ['cell'])
    colors = {tuple(color) for color in drawn.reshape(-1, 3).tolist()}
    assert {class_color(7), UNTRACKED_COLOR} <= colors and class_color(0) not in colors


def test_what_cannot_be_tracked_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'frame of a video, and these are none: .*b\.jpg; name videos alone'):
        check_tracking(
            [InputSource(tmp_path / 'a.MP4', 'a'), InputSource(0, 'b'), InputSource(tmp_path / 'b.jpg', 'c')]
        )
    monkeypatch.setitem(sys.modules, 'trackers', None)
    with pytest.raises(InputError, match='needs the trackers package: pip install trackers'):
        check_tracking([InputSource(tmp_path / 'a.MP4', 'a')])
