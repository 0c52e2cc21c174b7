"""A local page on which people accept, reject or edit corrections: the cheapest source of verified pairs.

`queue` knows what is to be reviewed and writes what people decide, `showing` makes markup of a record, `page` holds the
widgets (Gradio, extra `review`), and `server` serves it to this machine alone.
"""

from __future__ import annotations

from bootstrap.review.queue import Progress, ReviewQueue, Sitting

__all__ = ["Progress", "ReviewQueue", "Sitting"]
