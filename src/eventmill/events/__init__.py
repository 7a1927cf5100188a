"""CloudEvents 1.0.2: checking them, their JSON and HTTP forms, decoders of foreign records, names of files.

Functions of values: no I/O, no clock, no state but bounded memos. Safe to call from any thread.
"""

from eventmill.events.cloudevents import CloudEventsDecoder, CloudEventsJson
from eventmill.events.codec import decode, decode_batch, encode
from eventmill.events.dcache import DcacheDecoder
from eventmill.events.decoders import DecodeError, Decoder, Ignored
from eventmill.events.http import UnsupportedContentType, from_http
from eventmill.events.paths import PathTable
from eventmill.events.plain import JsonDecoder
from eventmill.events.validation import TooLarge, validate

__all__ = [
    "CloudEventsDecoder",
    "CloudEventsJson",
    "DcacheDecoder",
    "DecodeError",
    "Decoder",
    "Ignored",
    "JsonDecoder",
    "PathTable",
    "TooLarge",
    "UnsupportedContentType",
    "decode",
    "decode_batch",
    "encode",
    "from_http",
    "validate",
]
