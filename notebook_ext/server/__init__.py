"""The embedded endpoint: the real protocol on this machine, with the user's own functions behind it."""

from notebook_ext.server.embedded import EmbeddedServer
from notebook_ext.server.handlers import progress_update
from notebook_ext.server.job import Handler, JobRecord
from notebook_ext.server.outbound import Upstream
from notebook_ext.server.queue import Dials, Queue

__all__ = ["Dials", "EmbeddedServer", "Handler", "JobRecord", "Queue", "Upstream", "progress_update"]
