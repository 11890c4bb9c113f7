"""Traces of requests: lengths, mostly arrival times, sometimes prefixes; one file a format.

Every file that `sooner.workloads.logs` can open is read, and the first record tells the format. What is no
trace is taken for a log with prompts. `.tar.gz` is ServeGen's.
"""

from __future__ import annotations

from pathlib import Path

from sooner.core import DataError
from sooner.workloads.logs import sources
from sooner.workloads.logs.report import Report
from sooner.workloads.traces import formats, from_log, servegen
from sooner.workloads.traces.trace import Column, Trace, of_columns

__all__ = ["Column", "Trace", "read"]

ALLOWED = (
    "allowed: prompt_len and output_len (arrival_time), or the columns of Azure's, BurstGPT's, vidur's, "
    "Mooncake's or Qwen's traces"
)


def read(path: Path) -> Trace:
    """Return the trace in a file or a folder.

    Raises DataError where it is of no known format or holds no request.
    """
    if path.name.removesuffix(".gz").endswith(".tar"):
        return of_columns(servegen.sent(path)._asdict(), str(path))
    report = Report()
    records = list(sources.records(path, report))
    found = formats.of(records)
    if found is None:
        try:
            return from_log.read(records, str(path), report)
        except DataError as error:
            raise DataError(f"{error}; as a trace, {ALLOWED}") from error
    if report.dropped:
        raise DataError(f"{str(path)!r} is not JSONL that can be read whole: {report}")
    trace = found.read(records, str(path))
    return trace.noted(
        *report.notes, *(f"{name} was not read ({why})" for name, why in report.skipped.items())
    )
