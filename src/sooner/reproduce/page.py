"""A reproduction as one HTML file, on the report's own style: no script, no network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources

from sooner.report.table import number
from sooner.reproduce.result import Claim, Figure, Reproduction, Row


def html(found: Reproduction) -> str:
    """Return the page as text."""
    style = resources.files("sooner.report").joinpath("page.css").read_text(encoding="utf-8")
    held = sum(claim.holds for claim in found.claims)
    figures = "".join(_figure(figure) for figure in found.figures)
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f"<h1>{escape(found.title)}</h1>\n"
        f'<p class="lead">{held} of {len(found.claims)} claims of {escape(found.paper)} reproduced.</p>\n'
        f'<h2>Claims</h2><div class="scroll">{_claims(found)}</div>\n'
        f'<h2>Figures</h2><div class="grid">{figures}</div>\n'
        f'<h2>Ours beside the paper</h2><div class="scroll">{_rows(found)}</div>\n'
        f"<h2>How to read this</h2><ul>{notes}</ul>\n"
        f"<h2>Settings</h2>{_settings(found)}\n"
        f'<p class="hint">Made by: sooner reproduce {escape(found.name)}; {found.cpu_s:.0f} s of CPU.</p>\n'
        "</main></body></html>\n"
    )


def _claims(found: Reproduction) -> str:
    return (
        '<table><thead><tr><th scope="col">Claim</th><th scope="col">Reproduced</th>'
        '<th scope="col" style="text-align: left">Why, and how sure the claim is</th></tr></thead><tbody>'
        f"{''.join(_claim(claim) for claim in found.claims)}</tbody></table>"
    )


def _claim(claim: Claim) -> str:
    wrap = 'style="white-space: normal; text-align: left"'
    held = claim.verdict if claim.holds else f"<b>{claim.verdict}</b>"
    return (
        f'<tr><th scope="row" {wrap}>{escape(claim.text)}</th><td>{held}</td>'
        f"<td {wrap}>{escape(claim.explanation)} <small>({escape(claim.source)})</small></td></tr>"
    )


def _rows(found: Reproduction) -> str:
    return (
        '<table><thead><tr><th scope="col">Setting</th><th scope="col">Measure</th><th scope="col">Ours</th>'
        '<th scope="col">Paper</th><th scope="col">Ours / paper</th></tr></thead><tbody>'
        f"{''.join(_row(row) for row in found.rows)}</tbody></table>"
    )


def _row(row: Row) -> str:
    unit = f" <small>[{escape(row.unit)}]</small>" if row.unit else ""
    paper = number(row.paper) if row.paper is not None else ""
    ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
    return (
        f'<tr><th scope="row">{escape(row.setting)}</th><td>{escape(row.measure)}{unit}</td>'
        f"<td>{number(row.ours)}</td><td>{paper}</td><td>{ratio}</td></tr>"
    )


def _settings(found: Reproduction) -> str:
    rows = []
    for name, value in found.settings.items():
        doubt = f" <b>unconfirmed</b>: {escape(found.unconfirmed[name])}" if name in found.unconfirmed else ""
        rows.append(f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}{doubt}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _figure(figure: Figure) -> str:
    caption = f"<figcaption>{escape(figure.title)}</figcaption>"
    return f"<figure>{caption}{_legend(figure.legend)}{figure.svg}</figure>"


def _legend(entries: Mapping[str, str]) -> str:
    items = (
        '<li><svg viewBox="0 0 26 8" aria-hidden="true">'
        f'<line class="line {style}" x1="1" x2="25" y1="4" y2="4"/></svg>{escape(name)}</li>'
        for name, style in entries.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
