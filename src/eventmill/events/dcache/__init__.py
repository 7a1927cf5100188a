"""dCache's billing records (transfers, removals, tape, …) as events.

`kinds` is the table of what becomes what, `personal` what is taken out, `dates` and `storage` read two difficult
fields, `decoder` puts them together. Functions of values: no I/O, no clock; what is kept is bounded.
"""

from eventmill.events.dcache.decoder import DcacheDecoder

__all__ = ["DcacheDecoder"]
