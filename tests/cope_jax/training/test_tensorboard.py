"""TensorBoard event files."""

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from cope_jax.training.tensorboard import EventFile


def test_events_are_records_as_tensorboardx_writes_them(tmp_path, read_records):
    """The session start hides later steps of earlier files."""
    EventFile(tmp_path / "events", step=3).add_scalars(4, {"loss": 0.5, "rate": 0.25})
    (path,) = (tmp_path / "events").iterdir()
    records = [*read_records(path)]
    writer = RecordWriter(str(tmp_path / "reference"))
    for record in records:
        writer.write(record)
    writer.close()
    assert path.read_bytes() == (tmp_path / "reference").read_bytes()
    version, start, scalars = map(Event.FromString, records)
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 4)
    assert {value.tag: value.simple_value for value in scalars.summary.value} == {"loss": 0.5, "rate": 0.25}
