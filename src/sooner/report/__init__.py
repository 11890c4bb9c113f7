"""Tables and plots that compare arms: on the terminal, as JSON, and as one self-contained page.

arms.py    an arm, and the measures every output shows
svg.py     axes, lines and dots as SVG text
page.py    the page
table.py   the table on the terminal
"""

from sooner.report.arms import Arm, Timeline, as_json, gather, split_meta
from sooner.report.page import write_html
from sooner.report.table import print_table

__all__ = ["Arm", "Timeline", "as_json", "gather", "print_table", "split_meta", "write_html"]
