"""The quick ways in which text becomes features give what the plain ones give."""

from __future__ import annotations

import zlib

from hypothesis import example, given
from hypothesis import strategies as st

from sooner.chat import Context
from sooner.rankers.features import hashed
from sooner.rankers.features.hashed import NUMBERS, numbers

TEXT = st.one_of(
    st.text(), st.text(st.characters(max_codepoint=127)), st.text("aZ09. \n\x85\ud800²Ⅷ漢", max_size=600)
)


@given(TEXT)
@example("")
def test_shares_of_letters_are_counted_one_by_one(text: str) -> None:
    found = dict(zip(NUMBERS, numbers(text, Context()), strict=True))
    head, letters = text[:500], max(len(text[:500]), 1)
    assert found["share of other scripts"] == sum(not letter.isascii() for letter in head) / letters
    assert found["share of capitals"] == sum(letter.isupper() for letter in head) / letters
    assert found["share of digits"] == sum(letter.isdigit() for letter in head) / letters


@given(TEXT)
def test_each_word_has_the_number_of_its_own_bytes(text: str) -> None:
    parts = hashed._parts(text, Context(turn=3, reply_lens=(7.0,), system=text))
    for words in (parts.words, parts.last_line, parts.shape, parts.context, parts.system, []):
        plain = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
        assert hashed._crc(words).tolist() == plain
    assert len(parts.last_line) <= 3
