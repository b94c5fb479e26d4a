"""bench/report.py and bench/compare.py on planted records: a table, plots and verdicts that are known
beforehand. Python's standard library alone; ctest runs it where python3 is."""
import copy
import json
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml

BENCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench")
BEGIN, END = "<!-- written by bench/report.py -->", "<!-- end of what bench/report.py writes -->"


def record(kernel="gelu/forward", provider="orthofed", us=100.0, mode="cold", **changes):
    r = {"schema": "orthofed-bench/1", "time": "2026-01-02T03:04:05Z", "commit": "c0ffee",
         "host": {"cpu": "Planted CPU", "cores": 4, "threads": 2, "isa": "x86-64-v3", "load": 0.5,
                  "gpu": None},
         "ceilings": {"gflops": 100.0, "gbs": 10.0}, "device": "cpu", "kernel": kernel,
         "provider": provider, "model": "vit_base_16", "shape": {"rows": 5, "cols": 7}, "dtype": "f32",
         "mode": mode, "flops": 1e6, "bytes": 5e5,
         "time_us": {"p20": us * 0.99, "p50": us, "p80": us * 1.01, "n": 9},
         "gflops": 1e3 / us, "gbs": 5e2 / us, "bound": "memory", "ceiling_percent": 50.0,
         "check": {"worst": 0.1, "elements": 64}}
    r.update(copy.deepcopy(changes))
    return r


def step(provider, ms, batch=16, mode="f32", isa="x86-64-v3"):
    r = {"host": {"cpu": "Planted CPU", "cores": 4, "threads": 2, "isa": isa}, "model": "vit_tiny",
         "mode": mode, "batch": batch, "threads": 2, "step_ms": ms, "peak_rss_mb": ms,
         "images_per_second": 1e3 * batch / ms, "inference_images_per_second": 3e3 * batch / ms,
         "load_average": 0.1}
    r["provider" if provider == "orthofed" else "peer"] = provider
    return r


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def plant(self, name, records):
        with open(self.path(name), "w", encoding="utf-8") as out:
            out.writelines(json.dumps(r) + "\n" for r in records)
        return self.path(name)

    def run_script(self, script, *arguments):
        done = subprocess.run([sys.executable, "-B", os.path.join(BENCH, script), *arguments],
                              capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def compare(self, before, after, *options):
        return self.run_script("compare.py", self.plant("a.jsonl", before),
                               self.plant("b.jsonl", after), *options)

    def page(self, files, text=f"By hand\n{BEGIN}\nstale\n{END}\nafter\n"):
        with open(self.path("page.md"), "w", encoding="utf-8") as out:
            out.write(text)
        status, output = self.run_script("report.py", *files, "--page", self.path("page.md"),
                                         "--images", self.path("images"))
        return status, output, self.read("page.md")

    # --- compare.py

    def test_verdicts(self):
        before = [record("a"), record("b"), record("c"), record("gone")]
        after = [record("a", us=120), record("b", us=80), record("c", us=102), record("new")]
        status, output = self.compare(before, after)
        self.assertEqual(status, 0, output)
        lines = output.splitlines()
        self.assertTrue(any(l.startswith("SLOWER") and " a f32" in l for l in lines), output)
        self.assertTrue(any(l.startswith("FASTER") and " b f32" in l for l in lines), output)
        self.assertTrue(any(l.startswith("SAME") and " c f32" in l for l in lines), output)
        self.assertIn("only before: gone f32", output)
        self.assertIn("only after: new f32", output)
        self.assertEqual(lines[-1], "1 FASTER, 1 SLOWER, 1 SAME")
        self.assertEqual(self.compare(before, after, "--fail-on-slower")[0], 1)
        self.assertEqual(self.compare(after[2:], before[2:], "--fail-on-slower")[0], 0)

    def test_noise_widens_the_band(self):
        noisy = record("a", us=110, time_us={"p20": 90, "p50": 110, "p80": 130, "n": 9})
        status, output = self.compare([record("a")], [noisy], "--fail-on-slower")
        self.assertEqual((status, output.splitlines()[-1]), (0, "0 FASTER, 0 SLOWER, 1 SAME"))

    def test_other_shapes_modes_and_providers_are_not_the_same_record(self):
        for other in ({"mode": "hot"}, {"shape": {"rows": 6, "cols": 7}}, {"dtype": "bf16"},
                      {"model": "odd"}):
            status, output = self.compare([record("a")], [record("a", **other)])
            self.assertEqual(status, 2, output)
            self.assertIn("no record is in both", output)
        peers = [record("a", provider="oneDNN")], [record("a", provider="oneDNN", us=300)]
        self.assertEqual(self.compare(*peers)[0], 2)
        self.assertEqual(self.compare(*peers, "--provider", "", "--fail-on-slower")[0], 1)

    def test_a_broken_file_is_named_in_one_line(self):
        bad = self.path("bad.jsonl")
        with open(bad, "w", encoding="utf-8") as out:
            out.write('{"schema": 1}\nnot json\n')
        for script in ("compare.py", "report.py"):
            status, output = self.run_script(script, bad, *([bad] if script == "compare.py" else []))
            self.assertEqual(status, 2)
            self.assertIn("bad.jsonl, line 2", output)
            self.assertEqual(output.count("\n"), 1, output)

    # --- report.py

    def test_tables_and_plots(self):
        records = [record("gelu/forward"), record("gelu/forward", provider="oneDNN", us=150),
                   record("gelu/forward", mode="hot", us=40),
                   record("gelu/forward", model="odd", us=7),
                   record("matmul/fc1", us=20000, flops=1e9, gflops=50)]
        file = self.plant("2026-01-02-planted.jsonl", records)
        status, output, page = self.page([file])
        self.assertEqual(status, 0, output)
        self.assertTrue(page.startswith("By hand\n") and page.endswith("after\n"))
        self.assertNotIn("stale", page)
        # 500 kB at 10 GB/s are 50 us, half of the 100 that it took.
        self.assertIn("| gelu/forward | f32 | 100 | 99.0 to 101 | 40.0 | 10.0 | 5.0 | 50 | oneDNN 1.50 |",
                      page)
        self.assertIn("| matmul/fc1 | f32 | 20,000 | 19,800 to 20,200 |  | 50.0 | 0.0 | 50 |  |", page)
        self.assertIn("| gelu/forward | f32 | 100 | 7.0 |", page)  # of every shape
        self.assertIn("Commit c0ffee, 2026-01-02", page)
        self.assertIn("100 GFLOP/s in f32, 10.0 GB/s", page)
        drawn = sorted(os.listdir(self.path("images")))
        self.assertEqual(drawn, ["bench_planted_cpu_x86_64_v3_percent.svg",
                                 "bench_planted_cpu_x86_64_v3_roofline.svg"])
        for name in drawn:
            picture = self.read("images/" + name)
            self.assertTrue(xml.fromstring(picture).tag.endswith("svg"))
            self.assertIn(f"(images/{name})", page)
            self.assertNotIn("nan", picture)
        self.assertEqual(self.page([file], page)[2], page)  # written again, it is the same

    def test_paragraphs_have_lines_of_120_columns(self):
        name = "2026-01-02-" + 9 * "planted-" + "kernels.jsonl"
        _, _, page = self.page([self.plant(name, [record("gelu/forward")])])
        self.assertIn(name, page)
        self.assertIn("Commit", page)
        for line in page.splitlines():
            self.assertTrue(len(line) <= 120 or line[0] in "|!", line)

    def test_nothing_comes_of_what_was_not_measured(self):
        bare = record(ceilings={"gflops": None, "gbs": None}, ceiling_percent=None)
        _, _, page = self.page([self.plant("x.jsonl", [bare])])
        self.assertNotIn("Ceilings", page)
        self.assertNotIn("svg", page)
        self.assertIn("| gelu/forward | f32 | 100 | 99.0 to 101 |  | 10.0 | 5.0 |  |  |", page)

    def test_the_newest_file_of_a_machine_counts(self):
        old = self.plant("2026-01-01-x.jsonl", [record("old/kernel")])
        new = self.plant("2026-01-02-x.jsonl", [record("new/kernel")])
        _, _, page = self.page([new, old])
        self.assertIn("new/kernel", page)
        self.assertNotIn("old/kernel", page)

    def test_versions(self):
        records = [record(provider="version 1, naive", us=400), record(provider="version 2, tiles"),
                   record()]
        _, _, page = self.page([self.plant("x.jsonl", records)])
        self.assertIn("bench_planted_cpu_x86_64_v3_versions.svg", page)
        picture = self.read("images/bench_planted_cpu_x86_64_v3_versions.svg")
        self.assertIn("1, naive", picture)
        self.assertIn("25 %", picture)

    def test_the_training_step(self):
        steps = [step("orthofed", 500), step("pytorch", 1000), step("pytorch", 900, mode="compile"),
                 step("pytorch", 100, batch=8),  # ours was not measured at that batch
                 step("orthofed", 50, isa="x86-64-v4"), step("pytorch", 200, isa="x86-64-v4")]
        _, _, page = self.page([self.plant("step.jsonl", steps)])
        self.assertIn("**Planted CPU, 2 of 4 cores, x86-64-v3**", page)
        self.assertIn("| vit_tiny | 16 | orthofed f32 | 500 | 1.80 | 96.0 | 500 | 0.1 |", page)
        self.assertIn("| vit_tiny | 16 | pytorch compile | 900 |  | 53.3 | 900 | 0.1 |", page)
        self.assertIn("| vit_tiny | 16 | orthofed f32 | 50 | 4.00 |", page)  # of the other machine
        self.assertEqual(page.count("| vit_tiny |"), 5)
        self.assertIn("bench_step.svg", page)
        self.assertIn("bench_batch.svg", page)  # PyTorch's, of two batches

    def test_a_newer_file_replaces_a_step(self):
        old = self.plant("2026-01-01-x.jsonl", [step("orthofed", 500), step("pytorch", 900)])
        new = self.plant("2026-01-02-x.jsonl", [step("orthofed", 600)])
        _, _, page = self.page([new, old])
        self.assertIn("| vit_tiny | 16 | orthofed f32 | 600 | 1.50 |", page)
        self.assertEqual(page.count("orthofed f32"), 1)

    def test_where_a_steps_time_goes(self):
        ours = step("orthofed", 100)
        ours.update(ceilings={"gflops": 50.0, "gbs": 10.0}, parts=[
            {"kernel": "packed_matmul", "in": "forward mlp.fc1", "ms": 40.0, "least_ms": 30.0},
            {"kernel": "matmul", "in": "backward", "ms": 20.0, "least_ms": 25.0},  # a cache helped
            {"kernel": "gelu_forward", "in": "forward", "ms": 30.0, "least_ms": 6.0},
            {"kernel": "zero", "in": "forward", "ms": 10.0, "least_ms": 0.0}])
        _, _, page = self.page([self.plant("step.jsonl", [ours])])
        self.assertIn("| matrix products | 60 (50) |", page)
        self.assertIn("| GELU | 30 (6) |", page)
        self.assertIn("| other | 10.0 |", page)
        self.assertIn("| **step** | **100** (56, 56 %) |", page)
        self.assertIn("50 GFLOP/s and 10.0 GB/s for vit_tiny", page)
        self.assertIn("matrix products: 60.0 ms, 60.0 %", self.read("images/bench_waterfall.svg"))
        _, _, page = self.page([self.plant("step.jsonl", [step("orthofed", 100)])])
        self.assertNotIn("waterfall", page)  # nobody profiled it

    def test_a_page_without_markers_stays(self):
        file = self.plant("x.jsonl", [record()])
        status, output, page = self.page([file], "no markers\n")
        self.assertEqual((status, page), (2, "no markers\n"))
        self.assertEqual(output.count("\n"), 1, output)


if __name__ == "__main__":
    unittest.main()
