"""What the proxy calls with every correction: it is redacted and in the log before the answer is sent."""

from bootstrap import Collector, CorrectionStore

submit = Collector(CorrectionStore("postgresql://aligner@database/corrections"), durable=True).submit
