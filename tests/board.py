"""Reads what TensorBoard would."""

import struct


def events(directory):
    """Every event of every file."""
    from tensorboardX.proto.event_pb2 import Event

    for path in directory.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record is its length, a checksum of that, the event and a checksum of it
            (size,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16


def scalars(directory):
    """``{(step, name): value}``."""
    return {(e.step, value.tag): value.simple_value for e in events(directory) for value in e.summary.value}
