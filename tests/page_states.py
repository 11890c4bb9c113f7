"""What the page shows, with every word of a stranger one of your choice."""

from __future__ import annotations

from typing import Any

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'; alert(1); '",
    "</title><script>alert(1)</script>",
    "</bdi></td></table><h1>x",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "]]>",
    "<!--",
    "x" * 10_000,
    "<b>" * 3_000,
    "\u202egnp.exe",
    "\u2066a\u2069b\u200f",
    "one\ntwo\r\nthree",
    "\x00\x07\x1b[31mred",
    "\u2028\u2029",
    "Z\u0351\u0352\u0353\u0354\u0355\u0356algo",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "",
    " ",
    "${7*7}{{7*7}}<%= 7 %>",
)


def worth(text: str) -> dict[str, Any]:
    """Return an answer of `sooner whatif` whose words are `text`."""
    loss = {
        "tenant": text,
        "requests": 9,
        "lost": 2,
        "mean_extra": 0.5,
        "worst_extra": 1.0,
        "mean_change": -1.0,
    }
    return {
        "at": 0.0, "since": 0.0, "requests": 9, "served": text, "sentence": text[:200], "lost": [loss],
        "lost_more": 1,
    }  # fmt: skip


def state(text: str) -> dict[str, Any]:
    """Return a state in which every word of a stranger is `text`."""
    spread = {"p50": 1.0, "p90": 2.0, "p99": None}
    engine = {"name": text, "kind": "vllm", "state": "up", "running": 1, "limit": 2}
    waiting = {"position": 1, "id": text, "tenant": text, "waited_s": 1.0, "eta_s": None}
    tenant = {"name": text, "waiting": 1, "requests": 1, "share": 1.0, "fair_share": None}
    hour = {
        "length_s": 1.0, "requests": 1, "in_time": 1, "cut": 0, "failed": 0, "per_second": 1.0,
        "goodput": 1.0, "tokens_per_second": 1.0, "wait": spread, "ttft": spread, "e2e": spread,
        "refused": {"refused_full": 1},
    }  # fmt: skip
    taus = {"tau": 0.5, "tau_error": 0.1}
    turns = [{"when": 0.0, "on": False, "by": text}]
    measures = ("tau", "tau_error", "gain", "gain_error")
    return {
        "at": 0.0,
        "ordering": {"on": False, "policy": text, "turns": turns},
        "waiting": 10_000,
        "running": 3,
        "engines": {"rows": [{**engine, "waiting_inside": None, "kv": 0.5}], "more": 0},
        "queue": {
            "rows": [{**waiting, "prompt_tokens": 1, "reply_tokens": None, "reason": text}],
            "more": 9999,
        },
        "hour": hour,
        "day": hour,
        "slo": {"ttft_s": 2.0, "tpot_s": 0.1},
        "worth": {"off": "", "answer": worth(text)},
        "total": {"requests": 1, "finished": 1, "client_gone": 0, "upstream_errors": 0},
        "tenants": {"rows": [{**tenant, "mean_wait_s": None}], "more": 3},
        "truth": {"judged": 3, "tau": None, "ratio": None, "groups": []},
        "learned": [
            {"of": "sender", "group": text, "on": True, "seen": 9, "alarms": 0, "gain": None, **taus}
        ],
        "shadow": {
            "acting": text, "shadow": text, "requests": 7,
            **{f"{one}_{what}": 0.1 for one in ("acting", "shadow", "better") for what in measures},
            "better_gain": None,
        },
        "shadow_policy": {
            "acting": text, "shadow": text, "pairs": 7,
            **{f"{one}_{what}": 0.1 for one in ("acting", "shadow", "better") for what in measures},
        },
    }  # fmt: skip


def why(text: str) -> dict[str, Any]:
    """Return why a request stands where it stands, all of it in the words of `text`."""
    term = {"kind": text, "text": text, "amount": 1.0}
    return {
        "id": text, "tenant": text, "words": text, "ranker": {"terms": [term]},
        "before": {"next": [{"id": text, "work_s": 1.0, "boost_s": None}]},
        "learned": {"on": True, "groups": [{"of": text, "replies": 1, "usual_tokens": 9.0}]},
        "work": dict.fromkeys(
            ("prompt_tokens", "cached_tokens", "reply_tokens", "prompt_s", "reply_s", "total_s"), 1
        ),
    }  # fmt: skip
