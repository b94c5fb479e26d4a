#!/usr/bin/env python3
"""Compares two files of benchmark records, before and after a change:

    bench/compare.py before.jsonl after.jsonl
    bench/compare.py before.jsonl after.jsonl --fail-on-slower --provider ''

Every record in both is FASTER, SLOWER or SAME: its medians differ by more than the noise band, or do
not. The band is the larger of --band percent (3) and half the distance between the 20 % and 80 %
quantiles of either file, relative to its median. Exit status: 1 with --fail-on-slower if anything is
SLOWER; 2 if a file cannot be read or nothing is in both."""
import argparse
import sys

import records as rec


def spread(record):
    """Half the distance between the quantiles, relative to the median."""
    time = record["time_us"]
    return (time["p80"] - time["p20"]) / 2 / time["p50"]


def verdict(before, after, least):
    """(verdict, ratio of times, band)"""
    band = max(least, spread(before), spread(after))
    ratio = after["time_us"]["p50"] / before["time_us"]["p50"]
    if ratio > 1 + band:
        return "SLOWER", ratio, band
    if ratio < 1 / (1 + band):
        return "FASTER", ratio, band
    return "SAME", ratio, band


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--band", type=float, default=3, help="the smallest noise band, in percent")
    parser.add_argument("--provider", default="orthofed",
                        help="whose records (default orthofed; '': everybody's)")
    parser.add_argument("--fail-on-slower", action="store_true")
    options = parser.parse_args()
    sides = []
    try:
        for path in (options.before, options.after):
            found = [r for r in rec.kernels(rec.load(path))
                     if options.provider in ("", r["provider"])]
            sides.append({rec.key(r): r for r in found})  # the last one, where one was repeated
    except rec.BadFile as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    before, after = sides
    both = [k for k in before if k in after]
    if not both:
        print("compare: no record is in both files", file=sys.stderr)
        return 2
    machines = {rec.machine(r) for side in sides for r in side.values()}
    if len(machines) > 1:
        print("note: the machines differ: " + "; ".join(sorted(machines)))

    counts = {"FASTER": 0, "SLOWER": 0, "SAME": 0}
    print(f"{'':6} {'before us':>12} {'after us':>12} {'ratio':>6} {'band':>6}  record")
    for k in both:
        what, ratio, band = verdict(before[k], after[k], options.band / 100)
        counts[what] += 1
        print(f"{what:6} {before[k]['time_us']['p50']:12.2f} {after[k]['time_us']['p50']:12.2f} "
              f"{ratio:6.2f} {100 * band:5.1f}%  {rec.name(after[k])}")
    for label, one, other in (("before", before, after), ("after", after, before)):
        for k in one:
            if k not in other:
                print(f"only {label}: {rec.name(one[k])}")
    print(", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if options.fail_on_slower and counts["SLOWER"] else 0


if __name__ == "__main__":
    sys.exit(main())
