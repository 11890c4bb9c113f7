"""What the gateway counts, by name and with the text that `/metrics` shows."""

from __future__ import annotations

COUNTERS = {
    "requests": "Requests that came to a generating endpoint",
    "finished": "Requests whose reply came to its end",
    "in_time": "Replies that came to their end in time; see [slo] in the settings",
    "refused_full": "Requests refused because the waiting room, or the tenant's part of it, was full",
    "refused_wait": "Requests refused because they would wait too long",
    "refused_deadline": "Requests refused because their deadline was out of reach",
    "refused_down": "Requests refused because no engine for their model was up",
    "refused_limit": "Requests refused because of their tenant's limits",
    "refused_key": "Requests refused, or replies ended, because their key was revoked meanwhile",
    "refused_bytes": "Requests refused because the bodies held took all the memory that they may",
    "malformed": "Connections that sent what is no HTTP request",
    "strangers_closed": "Connections without a good key, closed to make room for others",
    "client_gone": "Requests whose client left before the end",
    "slow_clients": "Clients that did not take their reply in time and were cut off",
    "retries": "Requests sent to another engine before their first byte",
    "retries_refused": "Requests not sent again because too many were",
    "upstream_errors": "Failures of engines, one for each try",
    "cut_streams": "Replies that an engine broke off after the first byte",
    "journal_lost": "Finished requests that could not be written to the journal",
    "journal_failures": "Tries to write the journal that failed; its rows wait",
    "scored": "Requests whose score came while they waited",
    "scorer_timeouts": "Requests that kept their neutral place because no score came in time",
    "scorer_failures": "Scores that the ranker could not give",
    "scorer_restarts": "Times the scorer process was started again",
    "odd_paces": "Replies and coefficients that made no sense as an engine's pace, and were left out",
    "drift_alarms": "Times that replies had changed and were learned anew",
    "policy_errors": "Keys that the policy could not give; such a request takes its arrival's place",
    "hook_errors": "Exceptions that were caught",
}
