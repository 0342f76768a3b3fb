"""What a run was planned with at its first start, which it goes on with after ``--resume``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.files import write_json
from .plan import ImageSize
from .wall_time import WallTime

PLAN_FILE = 'plan.json'


@dataclasses.dataclass(frozen=True)
class KeptPlan:
    """The plan of a first start; all None for a run that was begun before there were plans.

    Args:
        epochs: Length.
        size: Of the images; None where no mosaic makes the samples.
        batch_size: Of each process.
        tile: Side of the windows; 0 for none.
        every: How many times rarer than else validations are.
        rate: Learning rate, and the batch that it is for.
        time: The time that was asked for, as it was given.
    """

    epochs: int | None = None
    size: ImageSize | None = None
    batch_size: int | None = None
    tile: int | None = None
    every: int | None = None
    rate: tuple[float, int] | None = None
    time: str | None = None

    @classmethod
    def of_first_start(cls, folder: Path, wall_time: WallTime | None) -> KeptPlan | None:
        """Read the plan of the run in a work dir; None if there is no run in it to go on with.

        Raises:
            InputError: It cannot be read, or another time is asked for now.
        """
        path = folder / 'own_data' / PLAN_FILE
        kept = cls()
        if path.is_file():
            try:
                kept = cls(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise InputError(f'{path}: not the plan of a run ({error}); without it a new one is made') from error
            kept = dataclasses.replace(kept, size=kept.size and tuple(kept.size))
        elif not (folder / 'last_checkpoint').is_file():
            return None
        before = kept.time and WallTime.parse(kept.time).seconds
        if wall_time and wall_time.seconds != before:
            planned = f'for --time {kept.time}' if kept.time else 'without --time'
            raise InputError(
                f'--time {wall_time.text}: the run in {folder} was begun {planned}, and --resume goes on with its '
                'plan: leave --time out, or set another length by --epochs'
            )
        return kept

    def write(self, out_dir: Path) -> None:
        """Write it for a later ``--resume``."""
        write_json(out_dir / PLAN_FILE, dataclasses.asdict(self))
