"""What a person at a terminal sees of a run: one bar a stage, full at the end."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress

from data_assets import progress
from data_assets.cli import STAGES, Show


def test_one_bar_for_each_stage_full_at_the_end() -> None:
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as bars:
        show = Show(as_json=False)
        show.bars = bars
        for first in (1, 4):  # two ranges
            show.expect(3)
            with progress.listening(show.step):
                progress.step("raw_events", "a file.csv")
                for stage in STAGES[1:]:
                    for day in range(first, first + 3):
                        progress.step(stage, f"2024-03-0{day}")
        assert [task.fields | {"total": task.total, "done": task.completed} for task in bars.tasks] == [
            {"total": 6, "done": 6}
        ] * len(STAGES[1:])
    progress.step("raw_events", "nobody listens")


def test_lines_elsewhere_and_silence_beside_json(capsys) -> None:
    for as_json, lines in ((False, 2), (True, 0)):
        show = Show(as_json=as_json)
        show.expect(2)
        for stage in STAGES[1:3]:
            for day in ("2024-03-01", "2024-03-02"):
                show.step(stage, day)
        assert len(capsys.readouterr().err.splitlines()) == lines
