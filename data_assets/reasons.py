"""Why a row is refused: every code that stands in quarantined_events, and what it means.

Here: codes and words, in the order in which they are said. Not here: which rows they apply to (``ingest/classify.py``),
the table that they stand in (``contracts.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "malformed_record": "the record does not have the file's shape (fields, quotes, JSON syntax)",
    "empty_row": "the line is blank or every field is empty",
    "missing_user_id": "no user id",
    "missing_session_start": "no start time",
    "missing_session_end": "no end time, though it is required",
    "missing_event_type": "no event type",
    "missing_value": "no value, though it is required",
    "missing_metadata": "no metadata, though it is required",
    "unreadable_user_id": "the user id is not a whole number of 64 bits",
    "unreadable_session_start": "the start time is in none of the configured formats",
    "unreadable_session_end": "the end time is in none of the configured formats",
    "unreadable_value": "the value is not a finite number",
    "before_start_date": "the day is before start_date",
    "value_out_of_range": "the value is outside quality.value_min and quality.value_max",
    "unknown_event_type": "the event type is not in quality.required_event_types",
}
