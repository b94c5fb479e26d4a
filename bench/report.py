#!/usr/bin/env python3
"""Writes the tables of docs/benchmarks.md, the plots in docs/images and README.md's table of training
steps from files of records:

    bench/report.py                                  # bench/results/*.jsonl
    bench/report.py build/mine.jsonl --page /tmp/mine.md --images /tmp   # README.md stays as it is

Of each machine the newest file with kernel records is taken (file names begin with the date), and of
each training step the newest record. What no record measures is left out, and nothing is computed
from what was not measured."""
import argparse
import glob
import os
import re
import statistics
import sys
import textwrap

import records as rec
import svg

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEGIN, END = "<!-- written by bench/report.py -->", "<!-- end of what bench/report.py writes -->"
SHOWN = "vit_base_16"  # the model of the long table and of the plots
OURS = "orthofed"


def ceilings(records):
    """(GFLOP/s of each dtype, GB/s): as the records say; what they do not say, the fastest matrix
    product and the fastest copy among them."""
    rates, copies = {}, []
    for dtype in sorted({r["dtype"] for r in records}):
        mine = [r for r in records if r["dtype"] == dtype]
        said = [r["ceilings"]["gflops"] for r in mine if r["ceilings"]["gflops"]]
        products = [r["gflops"] for r in mine if r["kernel"].startswith("matmul/")]
        if said or products:
            rates[dtype] = statistics.median(said) if said else max(products)
    said = [r["ceilings"]["gbs"] for r in records if r["ceilings"]["gbs"]]
    copies = [r["gbs"] for r in records if r["provider"] == "memcpy" and r["mode"] == "cold"
              and r["bytes"] > 2e7]  # larger than what a few cores keep
    bandwidth = statistics.median(said) if said else max(copies, default=None)
    return rates, bandwidth


def percent(record, limits):
    """Of the ceiling that is nearer; None where a ceiling is missing."""
    rates, bandwidth = limits
    if record["dtype"] not in rates or not bandwidth:
        return None
    least = max(record["flops"] / (1e3 * rates[record["dtype"]]), record["bytes"] / (1e3 * bandwidth))
    return 100 * least / record["time_us"]["p50"]


def cell(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def microseconds(value):
    return cell(value, 1 if value < 100 else 0)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def short(machine):
    """Without the cores."""
    return re.sub(r", \d+ of \d+ cores", "", machine)


class Machine:
    """The records of one machine, from one file."""

    def __init__(self, name, records):
        self.name, self.records = name, records
        self.limits = ceilings(records)
        self.slug = re.sub(r"[^a-z0-9]+", "_", short(name).lower()).strip("_")
        self.by_key = {rec.key(r): r for r in records}

    def find(self, record, **changes):
        return self.by_key.get(rec.key(dict(record, **changes)))

    def peers(self, record):
        """The others of the same case, fastest first."""
        same = [r for r in self.records if r["provider"] != OURS and
                rec.key(dict(r, provider=OURS)) == rec.key(record)]
        return sorted(same, key=lambda r: r["time_us"]["p50"])

    def ours(self, mode="cold", model=None):
        return [r for r in self.records if r["provider"] == OURS and r["mode"] == mode and
                model in (None, r["model"])]

    def heading(self):
        first, host = self.records[0], self.records[0]["host"]
        loads = [r["host"]["load"] for r in self.records if r["host"]["load"] is not None]
        rates, bandwidth = self.limits
        limits = [f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items()]
        limits += [f"{bandwidth:,.1f} GB/s"] if bandwidth else []
        out = [f"## {self.name}", "",
               f"Commit {first['commit'] or 'unknown'}, {first['time'][:10]}, `bench/results/{first['file']}`"
               f"; load average {min(loads):.1f} to {max(loads):.1f}." if loads else
               f"Commit {first['commit'] or 'unknown'}, {first['time'][:10]}."]
        if limits:
            measured = any(r["ceilings"]["gbs"] for r in self.records)
            out.append("Ceilings, " + ("measured before: " if measured else
                       "the fastest product and the fastest copy of this run: ") + ", ".join(limits) + ".")
        if host["gpu"] and first["device"] == "cuda":
            out.append(f"Host: {host['cpu']}.")
        return out + [""]

    def long_table(self):
        rows = []
        for r in self.ours(model=SHOWN):
            time, hot = r["time_us"], self.find(r, mode="hot")
            peers = [f"{p['provider']} {p['time_us']['p50'] / time['p50']:.2f}" for p in self.peers(r)
                     if not p["provider"].startswith("version ")]
            rows.append([r["kernel"], r["dtype"], microseconds(time["p50"]),
                         f"{microseconds(time['p20'])} to {microseconds(time['p80'])}",
                         microseconds(hot["time_us"]["p50"]) if hot else "", cell(r["gflops"], 1),
                         cell(r["gbs"], 1), cell(percent(r, self.limits)), ", ".join(peers)])
        head = ["kernel", "dtype", "µs", "20 to 80 %", "hot µs", "GFLOP/s", "GB/s", "% of ceiling",
                "peers' time / ours"]
        return table(head, rows) if rows else []

    def models_table(self):
        models = list(dict.fromkeys(r["model"] for r in self.ours()))
        cases = {}
        for r in self.ours():
            cases.setdefault((r["kernel"], r["dtype"]), {})[r["model"]] = r["time_us"]["p50"]
        rows = [[kernel, dtype] + [microseconds(at[m]) if m in at else "" for m in models]
                for (kernel, dtype), at in cases.items()]
        return table(["kernel", "dtype"] + models, rows)

    def roofline(self):
        rates, bandwidth = self.limits
        dots = [r for r in self.ours(model=SHOWN) if r["flops"] > 0]
        if not (dots and bandwidth and rates):
            return None
        low_x, high_x, ticks_x = svg.powers_of_ten(min(r["flops"] / r["bytes"] for r in dots),
                                                   max(r["flops"] / r["bytes"] for r in dots))
        low_y, high_y, ticks_y = svg.powers_of_ten(min(r["gflops"] for r in dots),
                                                   max(max(rates.values()), 1))
        chart = svg.Chart(f"Roofline, {SHOWN}, batch 16: {self.name}", 700, 420, right=30)
        to_x, to_y = chart.log(low_x, high_x), chart.log(low_y, high_y)
        chart.axis_x("flops a byte", [(to_x(t), svg.short(t)) for t in ticks_x])
        chart.axis_y("GFLOP/s", [(to_y(t), svg.short(t)) for t in ticks_y])
        for rate in sorted(set(rates.values())):
            ridge = min(max(rate / bandwidth, low_x), high_x)
            start = max(low_x, low_y / bandwidth)  # where the slope enters the plot
            chart.line(chart.x(to_x(start)), chart.y(to_y(start * bandwidth)), chart.x(to_x(ridge)),
                       chart.y(to_y(ridge * bandwidth)), svg.TEXT, 1.5)
            chart.line(chart.x(to_x(ridge)), chart.y(to_y(rate)), chart.x(1), chart.y(to_y(rate)),
                       svg.TEXT, 1.5)
        dtypes = sorted({r["dtype"] for r in dots}, reverse=True)
        colours = dict(zip(dtypes, svg.COLOURS))
        chart.legend([(d, colours[d]) for d in dtypes])
        for r in dots:
            x, y = chart.x(to_x(r["flops"] / r["bytes"])), chart.y(to_y(r["gflops"]))
            chart.dot(x, y, colours[r["dtype"]],
                      f"{r['kernel']} {r['dtype']}: {r['gflops']:.1f} GFLOP/s, {r['gbs']:.1f} GB/s")
            if r["dtype"] == dtypes[0] and r["kernel"] in ("matmul/fc1", "attention/forward",
                                                           "layer_norm/forward", "residual/forward"):
                chart.text(x + 7, y + 4, r["kernel"], 11)
        return chart.render()

    def bars(self):
        shown = [(r, percent(r, self.limits)) for r in self.ours(model=SHOWN)]
        shown = [(r, p) for r, p in shown if p is not None]
        if not shown:
            return None
        peers = sorted({p["provider"] for r, _ in shown for p in self.peers(r)
                        if not p["provider"].startswith("version ")})
        colours = dict(zip(peers, svg.COLOURS[1:]))
        full = max([110] + [10 * (int(p / 10) + 1) for _, p in shown])
        chart = svg.Chart(f"% of the ceiling, {SHOWN}, cold", 520, 17 * len(shown), left=220, top=60)
        chart.legend([])
        x = chart.left
        for name, colour in [(OURS, svg.COLOURS[0])] + list(colours.items()):
            chart.bar(x, 36, 9, 9, colour)
            chart.text(x + 13, 45, name)
            x += 30 + 7 * len(name)
        scale = chart.linear(0, full)
        chart.axis_x("% of the ceiling that is nearer", [(scale(t), t) for t in range(0, full + 1, 20)])
        for i, (r, share) in enumerate(shown):
            y = chart.top + 17 * i
            chart.text(chart.left - 6, y + 12, f"{r['kernel']} {r['dtype']}", 11, "end")
            chart.bar(chart.left, y + 3, chart.width * scale(share), 11, svg.COLOURS[0], f"{share:.0f} %")
            for p in self.peers(r):
                at = percent(p, self.limits)
                if p["provider"] in colours and at <= full:
                    chart.dot(chart.x(scale(at)), y + 8.5, colours[p["provider"]],
                              f"{p['provider']}: {at:.0f} %")
        return chart.render()

    def ladders(self):
        """Each version of a kernel as a share of the fastest."""
        steps = [r for r in self.records if r["provider"].startswith("version ") and
                 r["model"] == SHOWN and r["mode"] == "cold"]
        if not steps:
            return None
        cases = {}
        for r in steps:
            cases.setdefault(f"{r['kernel']} {r['dtype']}", []).append(r)
        chart = svg.Chart(f"Versions, {SHOWN}, cold", 520, 17 * (len(steps) + len(cases)), left=330)
        chart.axis_x("% of the fastest version", [(t / 100, t) for t in range(0, 101, 20)])
        y = chart.top
        for case, versions in cases.items():
            chart.text(10, y + 12, case, 12)
            best = min(r["time_us"]["p50"] for r in versions)
            for r in versions:
                y += 17
                share = best / r["time_us"]["p50"]
                chart.text(chart.left - 6, y + 12, r["provider"].removeprefix("version "), 11, "end")
                chart.bar(chart.left, y + 3, chart.width * share, 11, svg.COLOURS[0], f"{100 * share:.0f} %")
            y += 17
        return chart.render()


def provider_of(step):
    return OURS if step.get("provider") == OURS else step.get("peer", "?")


def step_cases(steps):
    """{machine: {(model, batch): its records, by mode}}, each mode's newest; only what we and a peer
    have measured, models by size."""
    cases = {}
    for r in sorted(steps, key=lambda r: r["file"]):
        case = cases.setdefault(rec.machine(r), {}).setdefault((r["model"], r["batch"]), {})
        case[provider_of(r), r["mode"]] = r
    both = {}
    for machine, found in sorted(cases.items()):
        kept = {key: list(case.values()) for key, case in found.items()
                if 0 < sum(name == OURS for name, _ in case) < len(case)}
        if kept:
            both[machine] = dict(sorted(kept.items(), key=lambda c: fastest(c[1], True)["step_ms"]))
    return both


def fastest(case, ours):
    return min((r for r in case if (provider_of(r) == OURS) == ours), key=lambda r: r["step_ms"])


def step_section(steps):
    cases = step_cases(steps)
    if not cases:
        return []
    lines = ["## The training step beside PyTorch's", "",
             "One LoRA step as `bench/peers/README.md` describes it, and inference with both adapters; ratio: the step of "
             "PyTorch's fastest mode / ours.", ""]
    for machine, found in cases.items():
        rows = []
        for (model, batch), case in found.items():
            best = fastest(case, False)
            for r in sorted(case, key=lambda r: (provider_of(r) != OURS, r["step_ms"])):
                ours = provider_of(r) == OURS
                rows.append([model, str(batch), f"{provider_of(r)} {r['mode']}", f"{r['step_ms']:,.0f}",
                             f"{best['step_ms'] / r['step_ms']:.2f}" if ours else "",
                             f"{r['inference_images_per_second']:,.1f}", f"{r['peak_rss_mb']:,.0f}",
                             f"{r['load_average']:.1f}"])
        lines += [f"**{machine}**", "", *table(["model", "batch", "", "ms", "ratio", "predictions/s",
                                                "peak memory, MiB", "load average"], rows), ""]
    return lines


def step_lines(steps):
    """README's short form: batch 16."""
    rows = []
    for machine, found in step_cases(steps).items():
        for (model, batch), case in found.items():
            if batch == 16:
                ours, peer = fastest(case, True), fastest(case, False)
                rows.append([machine, model, f"{ours['step_ms']:,.0f} ({ours['mode']})",
                             f"{peer['step_ms']:,.0f} ({peer['mode']})",
                             f"{peer['step_ms'] / ours['step_ms']:.2f}",
                             f"{ours['peak_rss_mb']:,.0f} against {peer['peak_rss_mb']:,.0f}"])
    return table(["machine", "model", "orthofed, ms", "PyTorch + PEFT, ms", "ratio", "peak memory, MiB"], rows)


def replaced(path, lines):
    """The file's text with `lines` between the two marks; None where it lacks them."""
    with open(path, encoding="utf-8") as page:
        text = page.read()
    if BEGIN not in text or END not in text:
        return None
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return before + BEGIN + "\n\n" + "\n".join(lines) + "\n" + END + after


# What the kernels of a step are for, by the beginnings of their names; the rest is "other".
GROUPS = {"matrix products": ("packed_matmul", "matmul", "quantize_rows"), "attention": ("attention",),
          "LoRA": ("lora",), "GELU": ("gelu",),
          "norm, residual": ("layer_norm", "residual", "patch_embed", "bias"),
          "between kernels": ("between kernels",)}


def waterfall(record):
    """(group, ms, least ms) of a profiled step, in GROUPS' order."""
    sums = {}
    for part in record["parts"]:
        group = next((g for g, names in GROUPS.items() if part["kernel"].startswith(names)), "other")
        ms, least = sums.get(group, (0, 0))
        sums[group] = (ms + part["ms"], least + min(part["ms"], part["least_ms"]))
    return [(g, *sums[g]) for g in [*GROUPS, "other"] if g in sums]


def profiled(steps):
    """{machine: its newest profiled step of each model at batch 16, the fastest mode, by size}"""
    found = {}
    for r in steps:
        if r.get("parts") and r["batch"] == 16:
            at = found.setdefault(rec.machine(r), {})
            old = at.get(r["model"])
            if not old or (r["file"], -r["step_ms"]) > (old["file"], -old["step_ms"]):
                at[r["model"]] = r
    return {machine: sorted(at.values(), key=lambda r: r["step_ms"]) for machine, at in sorted(found.items())}


def waterfall_section(steps):
    lines = []
    for machine, shown in profiled(steps).items():
        groups = [g for g, *_ in waterfall(shown[0])]
        rows = []
        for group in groups:
            row = [group]
            for r in shown:
                row += [f"{ms:,.0f} ({least:,.0f})" if least else f"{ms:,.1f}"
                        for g, ms, least in waterfall(r) if g == group] or [""]
            rows.append(row)
        total = ["**step**"]
        for r in shown:
            ms, least = (sum(part[i] for part in waterfall(r)) for i in (1, 2))
            total.append(f"**{ms:,.0f}** ({least:,.0f}, {100 * least / ms:.0f} %)")
        lines += [f"**{machine}**, with "
                  + "; ".join(f"{r['ceilings']['gflops']:,.0f} GFLOP/s and {r['ceilings']['gbs']:.1f} GB/s for {r['model']}"
                              for r in shown) + ":", "",
                  *table(["", *(f"{r['model']} {r['mode']}" for r in shown)], rows + [total]), ""]
    if not lines:
        return []
    return ["## Where a step's time goes", "",
            "ms of one step at batch 16, `lora_step_bench --profile`; in brackets what the ceilings allow the same "
            "work, the sum over calls of max(flops / ceiling, bytes / ceiling), never more than was measured (caches "
            "may keep what a contract counts).", ""] + lines


def waterfall_plot(steps):
    shown = [r for at in profiled(steps).values() for r in at]
    if not shown:
        return None
    chart = svg.Chart("Where a step's time goes", 640, 40 * len(shown), left=200, top=70)
    colours = dict(zip([*GROUPS, "other"], svg.COLOURS))
    x = chart.left
    for name in [g for g, *_ in waterfall(shown[0])]:
        chart.bar(x, 38, 9, 9, colours[name])
        chart.text(x + 13, 47, name, 11)
        x += 26 + 6 * len(name)
    scale = chart.linear(0, 100)
    chart.axis_x("% of the step", [(scale(t), t) for t in range(0, 101, 20)])
    for i, r in enumerate(shown):
        y, at, parts = chart.top + 40 * i, 0.0, waterfall(r)
        whole = sum(ms for _, ms, _ in parts)
        chart.text(chart.left - 6, y + 18, f"{r['model']} {r['mode']}", 11, "end")
        chart.text(chart.left - 6, y + 31, short(rec.machine(r)), 9, "end")
        for name, ms, least in parts:
            width = chart.width * ms / whole
            chart.bar(chart.left + at, y + 8, width, 24, colours[name],
                      f"{name}: {ms:,.1f} ms, {100 * ms / whole:.1f} %; {least:,.1f} ms at the ceilings")
            at += width
    return chart.render()


def step_plot(steps):
    cases = [(machine, *key, case) for machine, found in step_cases(steps).items() for key, case in found.items()]
    if not cases:
        return None
    chart = svg.Chart("One LoRA training step, images a second", 620, 46 * len(cases), left=240)
    chart.legend([(OURS, svg.COLOURS[0]), ("PyTorch + PEFT", svg.COLOURS[1])])
    top = max(r["images_per_second"] for *_, case in cases for r in case)
    scale = chart.linear(0, top * 1.12)
    chart.axis_x("images a second", [(scale(top * t / 4), f"{top * t / 4:,.1f}") for t in range(5)])
    for i, (machine, model, batch, case) in enumerate(cases):
        y = chart.top + 46 * i
        chart.text(chart.left - 6, y + 20, f"{model}, batch {batch}", 11, "end")
        chart.text(chart.left - 6, y + 33, short(machine), 9, "end")
        for k, r in enumerate((fastest(case, True), fastest(case, False))):
            speed = r["images_per_second"]
            chart.bar(chart.left, y + 5 + 18 * k, chart.width * scale(speed), 15, svg.COLOURS[k])
            chart.text(chart.x(scale(speed)) + 5, y + 17 + 18 * k, f"{speed:.1f} {r['mode']}", 11)
    return chart.render()


def batch_plot(steps):
    """Images a second against the batch, of models and providers that were measured at several."""
    lines = {}
    for r in steps:
        line = (r["model"], provider_of(r), r["mode"], short(rec.machine(r)))
        lines.setdefault(line, {})[r["batch"]] = r["images_per_second"]
    lines = {k: sorted(v.items()) for k, v in lines.items() if len(v) > 1}
    if not lines:
        return None
    points = [p for line in lines.values() for p in line]
    batches = sorted({b for b, _ in points})
    chart = svg.Chart("Images a second against the batch", 560, 360, right=380)
    to_x = chart.log(batches[0], batches[-1])
    to_y = chart.linear(0, 1.1 * max(s for _, s in points))
    chart.axis_x("batch", [(to_x(b), b) for b in batches])
    top = max(s for _, s in points)
    chart.axis_y("images a second", [(to_y(top * t / 4), f"{top * t / 4:,.0f}") for t in range(5)])
    for i, (name, line) in enumerate(sorted(lines.items())):
        colour = svg.COLOURS[i % len(svg.COLOURS)]
        at = [(chart.x(to_x(b)), chart.y(to_y(s))) for b, s in line]
        for (x1, y1), (x2, y2) in zip(at, at[1:]):
            chart.line(x1, y1, x2, y2, colour, 2)
        for (x, y), (b, s) in zip(at, line):
            chart.dot(x, y, colour, f"batch {b}: {s:,.1f}")
        chart.text(at[-1][0] + 8, at[-1][1] + 4, " ".join(name), 11, colour=colour)
    return chart.render()


def machines_of(records):
    """Of each machine, the records of its newest file."""
    found = {}
    for r in rec.kernels(records):
        found.setdefault(rec.machine(r), {}).setdefault(r["file"], []).append(r)
    return [Machine(name, files[max(files)]) for name, files in sorted(found.items())]


def write(path, text):
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)


def wrapped(line):
    """A paragraph in lines of at most 120 columns; tables, headings and pictures as they are."""
    if not line or line[0] in "|!#":
        return [line]
    return textwrap.wrap(line, 120, break_long_words=False, break_on_hyphens=False)


def report(records, images, link):
    """The lines of the page; writes the plots."""
    lines = []

    def plot(name, alt, picture):
        if picture:
            write(os.path.join(images, name), picture)
            lines.extend([f"![{alt}]({link}/{name})", ""])

    for m in machines_of(records):
        lines += m.heading()
        plot(f"bench_{m.slug}_roofline.svg", "Roofline: a dot a kernel", m.roofline())
        plot(f"bench_{m.slug}_percent.svg", "Share of the ceiling, each kernel and its peers", m.bars())
        plot(f"bench_{m.slug}_versions.svg", "Versions of the kernels that teach", m.ladders())
        lines += [f"**{SHOWN}**, batch 16:", "", *m.long_table(), ""] if m.long_table() else []
        lines += ["**Every shape**, µs, cold:", "", *m.models_table(), ""]
    steps = rec.steps(records)
    lines += step_section(steps)
    plot("bench_step.svg", "Images a second, orthofed and PyTorch", step_plot(steps))
    lines += waterfall_section(steps)
    plot("bench_waterfall.svg", "Where a step's time goes, by kind of kernel", waterfall_plot(steps))
    plot("bench_batch.svg", "Images a second against the batch", batch_plot(steps))
    return [piece for line in lines for piece in wrapped(line)]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="default: bench/results/*.jsonl")
    parser.add_argument("--page", default=os.path.join(ROOT, "docs/benchmarks.md"))
    parser.add_argument("--images", default=os.path.join(ROOT, "docs/images"))
    options = parser.parse_args()
    files = options.files or sorted(glob.glob(os.path.join(ROOT, "bench/results/**/*.jsonl"),
                                              recursive=True))
    link = os.path.relpath(options.images, os.path.dirname(os.path.abspath(options.page)))
    readme = os.path.join(ROOT, "README.md")
    try:
        records = [r for path in files for r in rec.load(path)]
        pages = {options.page: None}
        if options.page == parser.get_default("page"):
            pages[readme] = step_lines(rec.steps(records)) + [""]
        for page in pages:
            if replaced(page, []) is None:
                print(f"report: {page} lacks the lines '{BEGIN}' and '{END}'", file=sys.stderr)
                return 2
        os.makedirs(options.images, exist_ok=True)
        pages[options.page] = report(records, options.images, link)
        for page, lines in pages.items():
            write(page, replaced(page, lines))
    except (rec.BadFile, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"report: {len(records)} records of {len(files)} files; {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
