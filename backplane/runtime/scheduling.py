"""How the kernel schedules the threads that move payload.

A record wakes three processes on its way, and each would at once interrupt the one that is still busy with the record
before: with few cores that is most of what a path loses.  SCHED_BATCH takes that away and nothing else: the thread
keeps its share of the processor, and needs no privilege (sched(7)).
"""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)


def prefer_throughput() -> None:
    """Have the calling thread, and those it starts, not preempt others when they wake up."""
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        # A sandbox may forbid the call; everything works without.
        log.debug("no batch scheduling: %s", error.strerror)
