#!/usr/bin/env python3
"""Do two builds of orthofed compute and write the same, bit for bit?

Runs the demo, every method over configurations that differ, predictions, exports and the listings of
both programs, and compares everything they leave behind. What must differ (times, the folder's own
name) is set aside; nothing else is. A change that moves code, and no numbers, passes.

    scripts/same_bits.py OLD/build/release/bin/orthofed build/release/bin/orthofed
    scripts/same_bits.py OLD NEW --data DIR --weights FILE    # and a round of configs/wbc_sites.toml
    scripts/same_bits.py DIR/old NEW                          # with what --keep DIR has left of OLD

Ends with exit code 0 if all is the same, 1 and a list of what is not otherwise, 2 on bad usage.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOLATILE = {"seconds", "wall_seconds", "time", "time_by_round", "train_images_per_second",
            # Frames hold times, whose digits count.
            "bytes_sent", "bytes_received", "seconds_per_step", "seconds_per_round"}
METHODS = ["opal", "dual", "fedavg", "fedavg_ft", "local", "pooled"]
SMALL = ["rounds=2", "data.synthetic.train=24", "data.synthetic.test=20", "train.steps=3"]
# Each is run with the first method, which has everything.
VARIANTS = {
    "head_personal": ["model.head=personal"],
    "head_both": ["model.head=both"],
    "merged": ["lora.strategy=merged"],
    "extended": ["lora.strategy=extended"],
    "fp8": ["train.frozen_precision=fp8", "precision=bf16"],
    "alternate": ["train.alternation=alternate"],
    "penalties": ["penalty.update=1", "penalty.base=5", "penalty.subspace=1", "penalty.subspace_l1=1",
                  "penalty.features=0.5", "penalty.base_subspace=1", "penalty.base_subspace_k=4"],
    "detach": ["penalty.update=1", "penalty.detach=general", "penalty.form=abs_cosine"],
    "raw2": ["penalty.update=1", "penalty.base=1", "penalty.form=raw2"],
    "split_qkv": ["lora.targets=q,v,fc1", "lora.rank=3", "lora.personal_rank=5"],
    "orthogonal": ["lora.init=peft", "lora.init_orthogonal=true", "lora.layers=0,2"],
    "dropout": ["train.personal_dropout=0.5", "train.accumulate=2", "train.batch_size=8"],
    "sgd": ["train.optimizer=sgd", "train.schedule=cosine", "train.state=reset", "train.clip=0"],
    "weights": ["train.class_weights=inverse", "train.label_smoothing=0.1", "federation.weights=uniform"],
    "adjust": ["train.class_weights=logit_adjust", "train.focal=2", "train.state=keep_personal"],
    "scalars": ["federation.share_metrics=scalars", "data.validation=0.2"],
    "silent": ["federation.share_metrics=none"],
}
# The emulated GPU is slow: one small run of two ways.
SIMT = {
    "unmerged": ["device=simt"],
    "extended_graph": ["device=simt", "lora.strategy=extended", "precision=bf16", "train.graph=on"],
}
TINY = ["rounds=1", "train.steps=2", "train.batch_size=4", "data.synthetic.train=8",
        "data.synthetic.test=4", "data.synthetic.clients=2", "federation.clients=site_a,site_b"]


def settings(pairs):
    return [word for pair in pairs for word in ("--set", pair)]


class Program:
    """One of the two programs, and the folder in which it works."""

    def __init__(self, path, folder):
        self.path = pathlib.Path(path).resolve()
        self.folder = folder
        self.folder.mkdir()
        shutil.copytree(ROOT / "configs", self.folder / "configs")

    def run(self, name, *words):
        """Keeps stdout as NAME.stdout and the exit status with it."""
        environment = dict(os.environ, OMP_WAIT_POLICY="passive")
        done = subprocess.run([str(self.path), *map(str, words)], cwd=self.folder, env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        text = f"exit status {done.returncode}\n".encode() + done.stdout
        (self.folder / f"{name}.stdout").write_bytes(text)
        if done.returncode != 0:
            (self.folder / f"{name}.stderr").write_bytes(done.stderr)

    def everything(self, options):
        self.run("config", "config", "--markdown")
        self.run("config_json", "config", "--json")
        self.run("demo", "demo", "configs/demo.toml", "--out", "demo", "--quiet",
                 *[w for m in METHODS for w in ("--method", m)], *settings(SMALL))
        base = "demo/base/model.safetensors"
        model = settings([f"model.weights={base}"])
        for method in METHODS:
            for precision in ["f32", "bf16"]:
                for place in [[], ["--in-process"]]:
                    name = f"run_{method}_{precision}{'_threads' if place else ''}"
                    self.run(name, "run", "configs/demo.toml", "--out", name, "--quiet", *place, *model,
                             *settings(SMALL + [f"method={method}", f"precision={precision}"]))
        for name, pairs in VARIANTS.items():
            self.run(name, "run", "configs/demo.toml", "--out", name, "--quiet", "--in-process", *model,
                     *settings(SMALL + pairs))
        for name, pairs in SIMT.items():
            if options.simt:
                self.run(f"simt_{name}", "run", "configs/demo.toml", "--out", f"simt_{name}", "--quiet",
                         "--in-process", *model, *settings(TINY + pairs))
        general = "run_opal_f32/general_adapter.safetensors"
        personal = "run_opal_f32/clients/site_a/personal_adapter.safetensors"
        for precision in ["f32", "bf16"]:
            self.run(f"predict_{precision}", "predict", "--weights", base, "--input", "demo/cells.png",
                     "--output", f"predict_{precision}.safetensors", "--csv", f"predict_{precision}.csv",
                     "--adapter", general, "--adapter", personal, "--precision", precision, "--quiet")
        self.run("peft", "export", "run_opal_f32", "--format", "peft", "--adapter", "both", "--client",
                 "site_a", "--weights", base, "--out", "peft", "--quiet")
        self.run("concatenated", "export", "run_opal_f32", "--format", "peft", "--adapter", "both",
                 "--concatenate", "--client", "site_b", "--weights", base, "--out", "concatenated", "--quiet")
        self.run("merged_file", "export", general, "--format", "merged", "--weights", base, "--out",
                 "merged_file", "--quiet")
        self.run("bundle", "export", "run_opal_f32", "--bundle", "bundle", "--weights", base, "--quiet")
        self.run("import", "import", "concatenated", "--weights", base, "--out", "imported.safetensors",
                 "--quiet")
        for what in [base, general, personal]:
            self.run(f"inspect_{pathlib.Path(what).stem}", "inspect", what, "--json")
        self.run("eval", "eval", "configs/demo.toml", "--client", "site_a", "--adapter", general,
                 "--adapter", personal, "--json", *model, *settings(SMALL))
        self.run("check", "check", "configs/demo.toml", "--json", *model, *settings(SMALL))
        if options.data:
            for method in METHODS:
                for precision in ["f32", "bf16"]:
                    for place in [[], ["--in-process"]]:
                        if method == "pooled" and place:
                            continue
                        name = f"wbc_{method}_{precision}{'_threads' if place else ''}"
                        self.run(name, "run", "configs/wbc_sites.toml", "--out", name, "--quiet", *place,
                                 *settings([f"data.root={options.data}", f"model.weights={options.weights}",
                                            f"method={method}", f"precision={precision}", "rounds=1",
                                            "train.steps=2", "train.fine_tune_epochs=1",
                                            *options.set]))


def steady(value):
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE}
    return [steady(v) for v in value] if isinstance(value, list) else value


def comparable(path, folder):
    data = path.read_bytes().replace(str(folder).encode(), b"@")
    if path.suffix in (".json", ".jsonl", ".stdout"):
        lines = []
        text = data.decode()
        try:
            lines = [json.dumps(steady(json.loads(text)))]
        except ValueError:
            for line in text.splitlines():
                try:
                    line = json.dumps(steady(json.loads(line)))
                except ValueError:
                    pass
                lines.append(line)
        # One line per client and round, in the order in which they answered.
        data = "\n".join(sorted(lines) if path.name == "metrics.jsonl" else lines).encode()
    return re.sub(rb"base model [^\n]*everything in[^\n]*", b"", data)


def files_below(folder):
    return {p.relative_to(folder) for p in folder.rglob("*")
            if p.is_file() and p.name != "log.txt" and not p.name.endswith(".stderr")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     epilog="\n".join(__doc__.split("\n")[6:9]),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a program of the build to compare with, or what it has left")
    parser.add_argument("new", help="a program of the other build")
    parser.add_argument("--data", help="folder of the blood-cell images, for configs/wbc_sites.toml")
    parser.add_argument("--weights", help="the pretrained ViT-Tiny for them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="for the runs on --data, as `orthofed run` takes it")
    parser.add_argument("--no-simt", dest="simt", action="store_false", help="without the emulated GPU")
    parser.add_argument("--keep", metavar="DIR", help="where to work and leave everything; default: nowhere")
    options = parser.parse_args()
    if bool(options.data) != bool(options.weights):
        parser.error("--data and --weights go together")
    for program in (options.old, options.new):
        if not os.access(program, os.X_OK) or (program == options.new and os.path.isdir(program)):
            parser.error(f"{program}: no program")
    for name in ("data", "weights"):
        if getattr(options, name):
            setattr(options, name, os.path.abspath(getattr(options, name)))

    work = pathlib.Path(options.keep or tempfile.mkdtemp(prefix="same_bits_")).resolve()
    work.mkdir(exist_ok=True)
    folders = {}
    try:
        for side in ("old", "new"):
            path = getattr(options, side)
            if os.path.isdir(path):
                folders[side] = pathlib.Path(path).resolve()
                continue
            print(f"running {side}: {path}", flush=True)
            folders[side] = work / side
            Program(path, folders[side]).everything(options)
        old, new = folders["old"], folders["new"]
        known, found = files_below(old), files_below(new)
        problems = [f"only old has {p}" for p in sorted(known - found)]
        problems += [f"only new has {p}" for p in sorted(found - known)]
        for path in sorted(known & found):
            if comparable(old / path, old) != comparable(new / path, new):
                problems.append(f"differs: {path}")
        failed = [p for p in known if p.suffix == ".stdout"
                  and not (old / p).read_bytes().startswith(b"exit status 0\n")]
        for path in sorted(failed):
            error = (old / path.with_suffix(".stderr")).read_text().strip().splitlines()[-1:]
            print(f"note: fails in old: {path.stem}: {' '.join(error)}")
        for problem in problems:
            print(problem)
        print(f"{len(known & found)} files compared, {len(problems)} differences, "
              f"{len(failed)} commands that fail in both")
        return 1 if problems else 0
    finally:
        if not options.keep:
            shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
