"""Reads what TensorBoard would."""

import struct


def scalars(directory):
    """Of every event file: ``{(step, name): value}``."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in directory.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record is its length, a checksum of that, the event and a checksum of it
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            at += size + 16
    return found
