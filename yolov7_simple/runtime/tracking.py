"""Follow the detections of a video from frame to frame, with ByteTrack of the ``trackers`` package. N detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .drawing import class_color, draw_detections
from .errors import InputError, examples
from .onnx_detector import Detections
from .sources import InputSource
from .videos import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from trackers import ByteTrackTracker

NO_TRACK = -1
WEAKEST = 0.1  # ByteTrack's: a weaker detection does not keep a track alive
UNTRACKED_COLOR = (160, 160, 160)


def check_tracking(sources: Sequence[InputSource]) -> None:
    """Check before a model is loaded that all sources may be videos, by their names, and that the package is there.

    Raises:
        InputError: They are not, or it is not.
    """
    others = [str(source) for source in sources if not source.may_be_video]
    if others:
        raise InputError(
            f'--track follows objects from frame to frame of a video, and these are none: {examples(others)}; name '
            f'videos alone ({", ".join(sorted(VIDEO_SUFFIXES))}), or leave --track out'
        )
    VideoTracker(score_thr=1.0)


class VideoTracker:
    """Give the detections of a video the numbers of their tracks.

    A track begins with a detection of score ``score_thr`` or more, and has a number from the next frame on, if it goes
    on there. It goes on with weaker detections, from ``WEAKEST`` on, and ends a second after the last. All detections
    of a track are of one class.

    Args:
        score_thr: Lowest score of a detection that begins a track.
        rate: Frames a second.

    Raises:
        InputError: The ``trackers`` package is missing.
    """

    def __init__(self, score_thr: float, rate: float = 30.0) -> None:
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise InputError(f'--track needs the trackers package: pip install trackers ({error})') from error
        self._tracker_type, self._boxes_type = ByteTrackTracker, supervision.Detections
        self.score_thr = score_thr
        self.rate = rate
        self._trackers: dict[int, ByteTrackTracker] = {}  # of each class that was seen
        self._numbers: dict[tuple[int, int], int] = {}  # by class and number within it

    def __call__(self, found: Detections) -> NDArray[np.int64]:
        """Follow the detections of the next frame.

        Returns:
            (N,), for each detection the number of its track, from 1, or ``NO_TRACK``.
        """
        tracks = np.full(len(found.scores), NO_TRACK, np.int64)
        strong_enough = found.scores >= min(WEAKEST, self.score_thr)
        for label in sorted({*self._trackers, *found.labels[strong_enough].tolist()}):
            (chosen,) = np.nonzero(strong_enough & (found.labels == label))
            boxes = self._boxes_type(
                xyxy=found.boxes[chosen].astype(np.float64),
                confidence=found.scores[chosen],
                data={'index': chosen},
            )
            followed = self._tracker_of(label).update(boxes)
            for i, number in zip(followed.data.get('index', ()), followed.tracker_id.tolist()):
                if number != NO_TRACK:
                    tracks[i] = self._numbers.setdefault((label, number), len(self._numbers) + 1)
        return tracks

    def _tracker_of(self, label: int) -> ByteTrackTracker:
        if label not in self._trackers:
            self._trackers[label] = self._tracker_type(
                frame_rate=self.rate,
                track_activation_threshold=self.score_thr,
                high_conf_det_threshold=self.score_thr,
            )
        return self._trackers[label]


def draw_tracks(
    image: NDArray[np.uint8], found: Detections, tracks: NDArray[np.int64], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw detections in the colours of their tracks, with the numbers; those of no track are grey.

    Args:
        image: (H, W, 3), BGR.
        found: Detections to draw.
        tracks: (N,), numbers of their tracks, or ``NO_TRACK``.
        classes: Names of the classes.

    Returns:
        See :func:`draw_detections`.
    """
    names = [classes[label] for label in found.labels.tolist()]
    return draw_detections(
        image,
        found.boxes,
        found.scores,
        np.arange(len(tracks)),
        [name if track == NO_TRACK else f'{name} #{track}' for name, track in zip(names, tracks.tolist())],
        [UNTRACKED_COLOR if track == NO_TRACK else class_color(track) for track in tracks.tolist()],
    )
