"""Finishes shards on Apache Beam, for those with a cluster: Dataflow, Flink, Spark. Its workers see our folders."""

from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.records import shards
from data_prep.records.local_pool import Runner
from data_prep.records.shards import Shard, ShardReport


def beam_runner(options: Sequence[str]) -> Runner:
    """Returns a runner that has Beam finish shards.

    Args:
      options: Beam's, without dashes, as TFDS takes them: runner=FlinkRunner, flink_master=HOST:8081, ….
    """

    def run(orders: Sequence[Shard]) -> Iterator[tuple[int, ShardReport, bool]]:
        done = {index for index, shard in enumerate(orders) if shards.report_path(shard.path).exists()}
        with beam.Pipeline(options=PipelineOptions([f"--{option}" for option in options])) as pipeline:
            _ = (
                pipeline
                | beam.Create(orders)
                | beam.Reshuffle()  # else one worker would get them all
                | beam.Map(_finish)
            )
        for index, shard in enumerate(orders):
            yield index, shards.read_report(shards.report_path(shard.path)), index in done

    return run


def _finish(shard: Shard) -> None:
    # The report stays where the shard is: thousands of them need not go through Beam.
    shards.finish_shard(shard)
