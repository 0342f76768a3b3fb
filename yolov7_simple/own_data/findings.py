"""What reading a folder has found beside the boxes: repairs, what was not used, and what a user should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..runtime.errors import examples

NUM_NAMED = 3


class Findings:
    """Repairs by what was done, files that were not used by the reason, and remarks; each becomes one line.

    Attributes:
        repairs (Counter[str]): What was done, such as 'boxes with swapped corners', and how often.
        unused (dict[str, list[str]]): Reason -> files, such as 'labels without an image'.
        example_of (dict[str, str]): What was done -> the first place.
        remarks (list[str]): Whole sentences, such as how the split was made.
    """

    def __init__(self) -> None:
        self.repairs: Counter[str] = Counter()
        self.unused: dict[str, list[str]] = {}
        self.remarks: list[str] = []
        self.example_of: dict[str, str] = {}

    def repair(self, what: str, where: str, count: int = 1) -> None:
        """Count a repair; the first place is named in the line."""
        if count:
            self.repairs[what] += count
            self.example_of.setdefault(what, where)

    def leave_out(self, reason: str, files: Sequence[str]) -> None:
        """Note files that are not used."""
        if files:
            self.unused.setdefault(reason, []).extend(files)

    def remark(self, text: str) -> None:
        """Note a sentence, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def add(self, other: Findings) -> None:
        """Take over what others have found."""
        for what, count in other.repairs.items():
            self.repair(what, other.example_of[what], count)
        for reason, files in other.unused.items():
            self.leave_out(reason, files)
        for text in other.remarks:
            self.remark(text)

    def lines(self) -> list[str]:
        """All of it, a line each."""
        return [
            *self.remarks,
            *(f'repaired: {count} {what}, such as in {self.example_of[what]}' for what, count in self.repairs.items()),
            *(
                f'not used: {len(files)} {reason}: {examples(files, NUM_NAMED)}'
                for reason, files in self.unused.items()
            ),
        ]
