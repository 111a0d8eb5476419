"""Event records as TensorBoard writes them, for tests/metrics.rs; and a reader for the event files of a run.

Versions: Python 3.11, tensorboard 2.19.0, protobuf 7.36.2.

    python tests/golden/events.py              writes tests/golden/events.json
    python tests/golden/events.py --read DIR   prints the scalars that TensorBoard finds in a run's folder, and compares
                                                    them with metrics.jsonl beside them
"""

import io
import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

CASES = [
    (1763726400.25, 0, {"reward": 0.0}),
    (1763726401.5, 1, {"reward": 0.4375, "rewards/accuracy": 0.5, "kl": -1e-7}),
    (1763726402.0, 127, {"grad_norm": 3.4e38}),
    (1763726403.125, 128, {"sampler/entropy": math.inf, "loss": -math.inf}),
    (1763726404.0, 4_000_000_000, {"a" * 200: 1 / 3, "größe": 2.5}),
    (0.5, 300, {f"values/{n:03}": n / 7 for n in range(100)}),
]


def record(event):
    out = io.BytesIO()
    RecordWriter(out).write(event.SerializeToString())
    return out.getvalue().hex()


def write():
    header = Event(wall_time=1763726400.25, file_version="brain.Event:2")
    cases = []
    for time, step, values in CASES:
        summary = Summary(value=[Summary.Value(tag=k, simple_value=values[k]) for k in sorted(values)])
        words = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        event = Event(wall_time=time, step=step, summary=summary)
        cases.append({"time": time, "step": step, "values": words, "hex": record(event)})
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"header": {"time": 1763726400.25, "hex": record(header)}, "cases": cases}, indent=1) + "\n")


def read(folder):
    found = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    wanted = {}
    for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        del values["time"]
        for tag, value in values.items():
            wanted.setdefault(tag, []).append((step, float(value)))
    assert scalars.keys() == wanted.keys(), (scalars.keys(), wanted.keys())
    for tag, points in wanted.items():
        assert [s for s, _ in points] == [s for s, _ in scalars[tag]], tag
        for (_, want), (_, got) in zip(points, scalars[tag]):
            assert want == got or (want != want and got != got) or abs(want - got) <= 1e-6 * abs(want), (tag, want, got)
        print(f"{tag}: {len(points)} points, last {scalars[tag][-1]}")


if __name__ == "__main__":
    read(sys.argv[2]) if sys.argv[1:2] == ["--read"] else write()
