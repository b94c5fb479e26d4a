"""Benchmark records (schema orthofed-bench/1, bench/support/record.h) and records of a training step
(scripts/bench_step.sh), as report.py and compare.py read them."""
import json
import os

SCHEMA = "orthofed-bench/1"


class BadFile(Exception):
    """A result file that is not one; its text is for the user."""


def load(path):
    """All objects of a file of JSON lines, each with the file's name as `file`."""
    records = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    records.append(dict(json.loads(line), file=os.path.basename(path)))
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise BadFile(f"{path}, line {number}: no JSON object") from error
    return records


def kernels(records):
    return [r for r in records if r.get("schema") == SCHEMA]


def steps(records):
    """Records of a training step that succeeded."""
    return [r for r in records if "step_ms" in r]


def machine(record):
    """The GPU, or the CPU with what decides how fast it is. A step's record names its GPU itself."""
    device, host = record.get("device", "cpu"), record.get("host")
    if device != "cpu":
        return host["gpu"] if host else device
    return f"{host['cpu']}, {host['threads']} of {host['cores']} cores, {host['isa']}"


def key(record):
    """What two records must share to be compared."""
    return (record["device"], record["kernel"], record["dtype"], record["model"],
            tuple(sorted(record["shape"].items())), record["mode"], record["provider"])


def name(record):
    return " ".join((record["kernel"], record["dtype"], record["model"], record["mode"],
                     record["provider"], record["device"]))
