"""`multipart/form-data`, read strictly and written anew, so that an engine reads what was read here."""

from __future__ import annotations

import re
import secrets
from typing import ClassVar, NamedTuple

from sooner.core import ConfigError

_BOUNDARY = re.compile(
    r"multipart/form-data[ \t]*;[ \t]*boundary=(?:([0-9A-Za-z'()+_,./:=?-]{1,70})"
    r'|"([0-9A-Za-z\'()+_,./:=? -]{0,69}[0-9A-Za-z\'()+_,./:=?-])")[ \t]*\Z',
    re.IGNORECASE,
)
_DISPOSITION = re.compile(
    rb'form-data[ \t]*;[ \t]*name="([A-Za-z0-9_.\[\]-]{1,64})"'
    rb'(?:[ \t]*;[ \t]*filename="([^"\\\r\n\x00-\x1f]{0,255})")?'
    rb"(?:[ \t]*;[ \t]*filename\*=[!-~]{1,512})?[ \t]*\Z",
    re.IGNORECASE,
)
_HEAD = 2048  # bytes that a part's own head may have
_PARTS = 64
_TYPE = re.compile(
    rb"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}(?:; ?[a-z]+=[A-Za-z0-9_.-]{1,40})?\Z"
)


class BadRequest(ConfigError):
    """A request that cannot be served as it is; `status` and `code` are the answer's."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"


class Part(NamedTuple):
    """One field of a form; a file has a `filename`, which may be empty, and perhaps a type."""

    name: str
    value: bytes
    filename: bytes | None = None
    type: bytes = b""


def parts(body: bytes, content_type: str) -> list[Part]:
    """Return the fields of a form. Raises BadRequest for what could be read in two ways."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise BadRequest(f"Content-Type {content_type[:80]!r}, allowed: multipart/form-data with a boundary")
    mark = b"--" + (found[1] or found[2]).encode("ascii")
    if not body.startswith(mark + b"\r\n"):
        raise BadRequest("the form does not begin with its boundary")
    fields: list[Part] = []
    at = len(mark) + 2
    while True:
        end = body.find(b"\r\n" + mark, at)
        if end < 0:
            raise BadRequest("the form does not end with its boundary")
        fields.append(_part(body, at, end))
        if len(fields) > _PARTS:
            raise BadRequest(f"the form has more than {_PARTS} fields")
        at = end + 2 + len(mark)
        if body[at : at + 2] == b"--":
            if body[at + 2 :] not in (b"", b"\r\n"):
                raise BadRequest("something follows the form's end")
            return fields
        if body[at : at + 2] != b"\r\n":
            raise BadRequest("the form's boundary is followed by something else, allowed: a line's end")
        at += 2


def _part(body: bytes, start: int, end: int) -> Part:
    split = body.find(b"\r\n\r\n", start, min(end, start + _HEAD))
    if split < 0:
        raise BadRequest(f"a field of the form has no head, or one of more than {_HEAD} bytes")
    named, kind = None, b""
    for line in body[start:split].split(b"\r\n"):
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        match name.lower():
            case b"content-disposition" if named is None:
                named = _DISPOSITION.match(value)
            case b"content-type" if not kind and _TYPE.match(value):
                kind = value
            case b"content-length":
                continue
            case b"content-transfer-encoding" if value.lower() in (b"binary", b"8bit"):
                continue
            case _:
                raise BadRequest(f"a field of the form has the line {line[:60]!r}")
    if named is None:
        raise BadRequest('a field of the form has no plain Content-Disposition: form-data; name="..."')
    return Part(named[1].decode("ascii"), body[split + 4 : end], named[2], kind)


def written(fields: list[Part]) -> tuple[bytes, str]:
    """Return a form of these fields, and its content type."""
    boundary = secrets.token_hex(24).encode("ascii")
    pieces: list[bytes] = []
    for field in fields:
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"' % (boundary, field.name.encode("ascii"))
        if field.filename is not None:
            head += b'; filename="%b"' % field.filename
        if field.type:
            head += b"\r\nContent-Type: %b" % field.type
        pieces += (head, b"\r\n\r\n", field.value, b"\r\n")
    pieces.append(b"--%b--\r\n" % boundary)
    return b"".join(pieces), f"multipart/form-data; boundary={boundary.decode('ascii')}"


def text(fields: list[Part], name: str) -> str:
    """Return a field's text, "" where there is none. Raises BadRequest where it comes twice, or as a file."""
    found = [field for field in fields if field.name == name]
    if not found:
        return ""
    if len(found) > 1 or found[0].filename is not None or len(found[0].value) > 1024:
        raise BadRequest(f"the form's {name!r} is no one short text")
    try:
        return found[0].value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the form's {name!r} is not UTF-8") from error
