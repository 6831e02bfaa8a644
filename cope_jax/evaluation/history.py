"""How a run's training went, from its logs."""

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from cope_jax.domains import DOMAINS

SIDES = (*DOMAINS, "page_text", "page_vision")

# The fields of TensorBoard's event.proto and summary.proto that are read here. tensorboardX has all, but importing that
# imports torch wherever it is installed: seconds that nothing else needs.
EVENT_PROTO = """
name: "cope_event.proto" package: "cope"
message_type { name: "Event"
  field { name: "wall_time" number: 1 type: TYPE_DOUBLE }
  field { name: "step" number: 2 type: TYPE_INT64 }
  field { name: "summary" number: 5 type: TYPE_MESSAGE type_name: ".cope.Summary" } }
message_type { name: "Summary"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".cope.Value" } }
message_type { name: "Value" field { name: "tag" number: 1 type: TYPE_STRING } }
"""

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # name → steps and values, f64[n] each


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` up to one that is cut off; none where there is no such file."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(history: list[dict[str, Any]]) -> Curves:
    """The whole loss, and where it has several terms each of them, without its weight."""
    terms = sorted({name for line in history for name in line if name.endswith("/loss")})
    names = ["loss", *(terms if len(terms) > 1 else [])]
    return {name.removesuffix("/loss"): _curve(history, [name]) for name in names}


def accuracies(history: list[dict[str, Any]]) -> dict[str, Curves]:
    """How often the nearest of the batch was right, by term of the loss.

    Of a pair of sides, the mean over both directions: "page_video" and "video_page" make "page – video".
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for line in history for name in line if "/accuracy/" in name}):
        term, _, what = name.partition("/accuracy/")
        found.setdefault(term, {}).setdefault(pair_name(what), []).append(name)
    return {
        term: {pair: _curve(history, names) for pair, names in sorted(pairs.items())} for term, pairs in found.items()
    }


def pair_name(metric: str) -> str:
    """ "live_page_text" → "page text – live": sides in the domains' order, fused ones first."""
    for a in SIDES:
        if metric.startswith(f"{a}_") and (b := metric.removeprefix(f"{a}_")) in SIDES:
            order = sorted((a, b), key=lambda side: (DOMAINS.index(side.split("_")[0]), side))
            return " – ".join(side.replace("_", " ") for side in order)
    return metric


def throughput(workdir: Path, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Products a second between two reports, from the times in the TensorBoard events: f64[n] steps and speeds.

    What passed between the end of one process and the start of the next is no part of it. Of a step that was done
    twice the last time counts.
    """
    speeds = {}
    for path in sorted((workdir / "tensorboard").glob("events.*")):
        for (before, begun), (step, ended) in pairwise(report_times(path)):
            if step > before and ended > begun:
                speeds[step] = (step - before) * batch_size / (ended - begun)
    steps = sorted(speeds)
    return np.array(steps, float), np.array([speeds[step] for step in steps])


def report_times(path: Path) -> Iterator[tuple[int, float]]:
    """Step and time of each report of the loss in a file of TensorBoard events, up to one that is cut off."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(EVENT_PROTO, descriptor_pb2.FileDescriptorProto()))
    Event = message_factory.GetMessageClass(pool.FindMessageTypeByName("cope.Event"))
    data, place = path.read_bytes(), 0
    while place + 12 <= len(data):  # a record: length u64, its checksum u32, content, its checksum u32
        (length,) = struct.unpack_from("<Q", data, place)
        content = data[place + 12 : place + 12 + length]
        place += 12 + length + 4
        if place > len(data):
            return
        event = Event.FromString(content)
        if any(value.tag == "loss" for value in event.summary.value):
            yield event.step, event.wall_time


def _curve(history: list[dict[str, Any]], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of some metrics over the steps that have all of them; values that are no number are left out."""
    lines = [line for line in history if all(line.get(name) is not None for name in names)]
    steps = np.array([line["step"] for line in lines], float)
    return steps, np.array([np.mean([line[name] for name in names]) for line in lines])
