"""Why one request stands where it stands, as HTML of its own."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from sooner.gateway.page.html import document, table
from sooner.gateway.page.words import UNKNOWN, count, name, plain, seconds

_BACK = '<header><h1>sooner</h1><p><a href="/sooner/">Back to the page</a></p></header>'


def no_request(id: str) -> str:
    """Return the page of a request that is not here."""
    told = f"<p>No request {name(id, 64)} waits or runs: it has ended, or never came.</p>"
    return document("sooner: no such request", f"{_BACK}<section>{told}</section>")


def request(told: Mapping[str, Any]) -> str:
    """Return why a request stands where it stands, as a page."""
    work, ranker, learned = told["work"], told["ranker"], told["learned"]
    tables = [
        table(
            "Its work",
            ("", "Tokens", "Engine seconds"),
            [
                ("Prompt", count(work["prompt_tokens"]), seconds(work["prompt_s"])),
                ("cached of it", count(work["cached_tokens"]), UNKNOWN),
                ("Reply, about", count(work["reply_tokens"]), seconds(work["reply_s"])),
                ("Together", UNKNOWN, seconds(work["total_s"])),
            ],
        )
    ]
    if "before" in told and told["before"]["next"]:
        nearest = [
            (name(one["id"]), seconds(one["work_s"]), seconds(one["boost_s"]))
            for one in told["before"]["next"]
        ]
        tables.append(
            table("Right before it", ("Of its tenant's", "Work", "Taken to be earlier by"), nearest)
        )
    if learned:
        groups = [
            (html.escape(plain(group["of"])), count(group["replies"]), count(group["usual_tokens"]))
            for group in learned["groups"]
        ]
        tables.append(table("Replies of its groups so far", ("Group", "Replies", "Usual tokens"), groups))
    if ranker:
        terms = [
            (f"{html.escape(plain(term['kind']))}: {name(term['text'])}", f"{term['amount']:+.3f}")
            for term in ranker["terms"]
        ]
        tables.append(
            table("Terms of the ranker's score", ("Longer (+) or shorter (\N{MINUS SIGN})", "Amount"), terms)
        )
    return document(
        "sooner: why this place?",
        f"{_BACK}<section><h2>Request {name(told['id'], 64)} of {name(told['tenant'])}</h2>"
        f'<p class="words">{html.escape(told["words"])}</p>{"".join(tables)}</section>',
    )
