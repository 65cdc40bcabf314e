"""The media type of a file: by its name, else by its first bytes as browsers do it.

Browsers' rules: https://mimesniff.spec.whatwg.org/, sections 7.1 and 6.
"""

import mimetypes
import re

_SNIFFED_BYTES = 512

_UTF8_TEXT = "text/plain; charset=utf-8"
_BINARY = "application/octet-stream"

# Of the interpreter alone: what an image has in /etc/mime.types must not change answers.
_by_name = mimetypes.MimeTypes(filenames=())
_COMPRESSED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/x-brotli",
    "compress": "application/x-compress",
}

_HTML_TAGS = (
    rb"!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A|STYLE|TITLE|B|BODY|BR|P|!--"
)
_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb"[\t\n\f\r ]*(?i:<(?:" + _HTML_TAGS + rb")[ >])", "text/html; charset=utf-8"),
        (rb"[\t\n\f\r ]*<\?xml", "text/xml; charset=utf-8"),
        (rb"%PDF-", "application/pdf"),
        (rb"%!PS-Adobe-", "application/postscript"),
        (rb"\xfe\xff", "text/plain; charset=utf-16be"),
        (rb"\xff\xfe", "text/plain; charset=utf-16le"),
        (rb"\xef\xbb\xbf", _UTF8_TEXT),
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF....WEBPVP", "image/webp"),
        (rb"BM", "image/bmp"),
        (rb"\x00\x00[\x01\x02]\x00", "image/x-icon"),
        (rb"RIFF....WAVE", "audio/wave"),
        (rb"RIFF....AVI ", "video/avi"),
        (rb"FORM....AIFF", "audio/aiff"),
        (rb"ID3", "audio/mpeg"),
        (rb"OggS\x00", "application/ogg"),
        (rb"MThd\x00\x00\x00\x06", "audio/midi"),
        (rb"....ftyp(?:mp4|iso|avc1|M4V)", "video/mp4"),
        (rb"\x1a\x45\xdf\xa3", "video/webm"),
        (rb"\x00\x01\x00\x00", "font/ttf"),
        (rb"OTTO", "font/otf"),
        (rb"ttcf", "font/collection"),
        (rb"wOFF", "font/woff"),
        (rb"wOF2", "font/woff2"),
        (rb"\x1f\x8b\x08", "application/gzip"),
        (rb"PK\x03\x04", "application/zip"),
        (rb"Rar!\x1a\x07[\x00\x01]", "application/x-rar-compressed"),
        (rb"\x00asm", "application/wasm"),
    )
)
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def guess(name: str, head: bytes) -> str:
    """Content-Type of a file called `name` that begins with `head`."""
    kind, encoding = _by_name.guess_type("/" + name, strict=False)
    if encoding is not None:
        return _COMPRESSED.get(encoding, _BINARY)
    if kind is None:
        return _sniff(head[:_SNIFFED_BYTES])
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _sniff(head: bytes) -> str:
    for pattern, kind in _SIGNATURES:
        if pattern.match(head):
            return kind
    return _BINARY if _NOT_TEXT.search(head) else _UTF8_TEXT
