"""Runners, which write the shards that are not finished yet: a pool of processes on this machine, or Apache Beam."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from data_prep.common.process_pool import process_map
from data_prep.records import shards
from data_prep.records.shards import Shard, ShardReport

# Finishes shards and yields, in any order, the index of each, its report, and whether an earlier run wrote it. An
# error in one stops the others; shards that are written by then are kept.
Runner = Callable[[Sequence[Shard]], Iterator[tuple[int, ShardReport, bool]]]


@contextlib.contextmanager
def local_runner(processes: int | None = None) -> Iterator[Runner]:
    """Opens a runner over a pool of processes; the argument is that of `process_map`."""
    with process_map(processes) as apply:
        yield lambda jobs: ((index, *result) for index, result in apply(shards.finish_shard, jobs))


def beam_runner(options: Sequence[str]) -> Runner:
    """Returns a runner on Apache Beam, whose workers must be able to read and write the same folders.

    Args:
        options: Options of Beam without dashes, as TFDS takes them: runner=FlinkRunner, flink_master=HOST:8081, ….

    Raises:
        ValueError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise ValueError("--beam_pipeline_options needs Apache Beam: pip install -r requirements-beam.txt") from error

    def run(jobs: Sequence[Shard]) -> Iterator[tuple[int, ShardReport, bool]]:
        resumed = [shards.report_path(job.path).exists() for job in jobs]
        with beam.Pipeline(options=PipelineOptions([f"--{option}" for option in options])) as pipeline:
            _ = (
                pipeline
                | beam.Create(jobs)
                | beam.Reshuffle()  # otherwise one worker would get all of them
                | beam.Map(_finish)
            )
        for index, job in enumerate(jobs):
            yield index, shards.read_report(shards.report_path(job.path)), resumed[index]

    return run


def _finish(shard: Shard) -> None:
    """Finishes a shard without returning its report, so that thousands of reports need not pass through Beam."""
    shards.finish_shard(shard)
