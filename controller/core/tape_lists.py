"""Parameter lists that read a tape and write no disk: verifications (06h) and copies from tape to tape (03h).

A copy takes whole records, all of them of the record size of the backup, so no residue is left between segments or
lists: what a list has written can be told from the position of the target alone, as in a backup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from backplane.ids import Designator
from backplane.scsi.cscd import stream_cscd
from backplane.scsi.segment import Locate, Segment, StreamToDiscard, StreamToStream
from controller.core import planner
from controller.core.planner import PlannedList, list_bytes

SOURCE: Final = 0
TARGET: Final = 1


def plan_verify(
    runs: Iterable[tuple[int, int]],
    *,
    record_bytes: int,
    data_object: int,
    tape: Designator,
    identifier: int,
) -> PlannedList:
    """Plan the next list of a verify: for each run (first, end) of records locate, then read and discard (06h).

    As many runs as one list has room for; nothing is written anywhere.
    """
    budget = max(1, planner.LIST_BYTES_MAX // record_bytes)
    per_segment = max(1, planner.SEGMENT_BYTES_MAX // record_bytes)
    segments: list[Segment] = []
    records = at = 0
    for first, end in runs:
        if len(segments) + 2 > planner.SEGMENTS_MAX or records == budget:
            break
        at = first
        segments.append(
            Locate(
                destination_cscd_descriptor_id=SOURCE,
                logical_object_identifier=data_object + first,
            )
        )
        while at < end and records < budget and len(segments) < planner.SEGMENTS_MAX:
            count = min(per_segment, end - at, budget - records)
            segments.append(
                StreamToDiscard(
                    cat=False,
                    source_cscd_descriptor_id=SOURCE,
                    stream_device_transfer_length=record_bytes,
                    number_of_bytes=count * record_bytes,
                )
            )
            at += count
            records += count
    assert records
    return PlannedList(
        parameter_list=list_bytes(
            identifier=identifier, cscds=(stream_cscd(tape),), segments=segments
        ),
        data_bytes=records * record_bytes,
        records=records,
        end=at,
    )


def plan_copy(
    *,
    source_object: int,
    records: int,
    record_bytes: int,
    source: Designator,
    target: Designator,
    identifier: int,
) -> PlannedList:
    """Plan the next list of a copy: locate the source, then records from stream to stream (03h)."""
    assert records > 0
    take = min(records, max(1, planner.LIST_BYTES_MAX // record_bytes))
    per_segment = max(1, planner.SEGMENT_BYTES_MAX // record_bytes)
    segments: list[Segment] = [
        Locate(destination_cscd_descriptor_id=SOURCE, logical_object_identifier=source_object)
    ]
    done = 0
    while done < take:
        count = min(per_segment, take - done)
        segments.append(
            StreamToStream(
                cat=False,
                source_cscd_descriptor_id=SOURCE,
                destination_cscd_descriptor_id=TARGET,
                source_stream_device_transfer_length=record_bytes,
                destination_stream_device_transfer_length=record_bytes,
                byte_count=count * record_bytes,
            )
        )
        done += count
    return PlannedList(
        parameter_list=list_bytes(
            identifier=identifier,
            cscds=(stream_cscd(source), stream_cscd(target)),
            segments=segments,
        ),
        data_bytes=take * record_bytes,
        records=take,
        tape_objects=take,
    )
