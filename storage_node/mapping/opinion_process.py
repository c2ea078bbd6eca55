"""The process of the second opinion: a parser that asks the library instead of our readers.

    python -m storage_node.mapping.opinion_process PREFIX  and the arguments of a parser

It is started by a builder and gives up what every parser gives up (parser_process.py), once the library is loaded: the
library is C that reads what anybody may have written.  Where its file system is, it is told by our own probe, which
runs here as well; the prefix picks one.  The allocated runs are not its business: all of the volume is said to be.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Final

from storage_node.mapping.opinion_library import LibraryReader
from storage_node.mapping.parser_process import run
from storage_node.mapping.probe import probe
from storage_node.mapping.reader import DamagedError, Source
from storage_node.mapping.stream import Say, Teller
from storage_node.mapping.windows import translate_row

MODULE: Final = "storage_node.mapping.opinion_process"


def opine(prefix: str, source: Source, teller: Teller) -> None:
    """Tell what the library says of one file system, in paths and bytes of the volume."""
    found = [mapped for mapped in probe(source).file_systems if mapped.prefix == prefix]
    if not found:
        raise DamagedError(f"no file system {prefix!r}")
    (mapped,) = found
    reader = LibraryReader(mapped.window, mapped.facts.kind)
    path = prefix.encode()
    teller.rows(translate_row(row, mapped.window, path) for row in reader.rows())
    teller.runs([(0, source.size_bytes)])
    teller.facts([mapped.facts], [])
    for problem in reader.problems:
        teller.say(Say.REASONS, problem)


if __name__ == "__main__":
    run(partial(opine, sys.argv[1]), sys.argv[2:])
