"""Shows that PEFT and orthofed read each other's adapters: a small federation on generated images,
its adapters exported, loaded by PEFT on a timm model, trained for a step there, and imported again.

  scripts/python.sh scripts/peft_roundtrip.py --orthofed build/release/bin/orthofed

Checked for fused qkv and for separate q, k, v, with s_g != s_p and a head in two parts: the logits
of two named adapters, of one concatenated adapter and of merged weights in PyTorch against those of
`orthofed predict`, and after a training step in PEFT the other way round; each within 1e-4 relative.
Exit status 0: all agree; 1: some do not; 2: torch, timm or peft are missing (it is no part of the
tests), or a command failed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile


def fail(message):
    print(f"peft_roundtrip: {message}", file=sys.stderr)
    sys.exit(2)


try:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import numpy
    import peft
    import timm
    import torch
    from safetensors.torch import load_file, save_file
except ImportError as error:
    fail(f"{error}; run it through scripts/python.sh (OF_VENV names the environment)")

CLASSES, SIZE, TOLERANCE = 5, 32, 1e-4
GEOMETRY = dict(img_size=SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2)

RUN = """
method = "dual"
rounds = 1
threads = 2
precision = "f32"
device = "cpu"
[model]
weights = "base/model.safetensors"
head = "both"
[lora]
rank = 2
personal_rank = 3
alpha = 4
personal_alpha = 2.5
targets = {targets}
[train]
lr = 3e-2
batch_size = 8
[data]
format = "synthetic"
[data.synthetic]
clients = 2
train = 24
test = 10
size = 32
[federation]
clients = ["site_a", "site_b"]
"""


def timm_model(classes):
    return timm.models.VisionTransformer(num_classes=classes, **GEOMETRY).eval()


class Roundtrip:
    def __init__(self, orthofed, folder):
        self.orthofed, self.folder, self.agree = orthofed, folder, True
        torch.manual_seed(0)
        os.makedirs(folder / "base")
        base = {k: 3 * v if k.endswith("weight") and v.ndim > 1 else v  # so that every layer matters
                for k, v in timm_model(0).state_dict().items()}
        save_file(base, folder / "base/model.safetensors")
        self.base = base
        (folder / "base/config.json").write_text(json.dumps(
            {"architecture": "vit_small_test", "num_heads": 3, "norm_eps": 1e-6, "num_classes": 0}))
        self.pixels = numpy.random.default_rng(1).integers(0, 256, (6, SIZE, SIZE, 3), dtype=numpy.uint8)
        numpy.savez(folder / "images.npz", images=self.pixels)
        # timm's preprocessing with mean and deviation .5, which the configuration leaves as they are.
        self.images = torch.from_numpy(self.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def run(self, *words):
        done = subprocess.run([self.orthofed, *map(str, words), "--quiet"], cwd=self.folder,
                              capture_output=True, text=True)
        if done.returncode != 0:
            fail(f"orthofed {' '.join(map(str, words))}: {done.stderr.strip()}")

    def predicted(self, weights, *adapters):
        out = self.folder / "out.safetensors"
        self.run("predict", "--weights", weights, "--input", "images.npz", "--output", out, "--precision",
                 "f32", *[w for a in adapters for w in ("--adapter", a)])
        return load_file(out)["logits"]

    def fresh(self):
        """The timm model that a user has: the base's weights and a head of its own."""
        model = timm_model(CLASSES)
        missing, unexpected = model.load_state_dict(self.base, strict=False)
        assert not unexpected and set(missing) == {"head.weight", "head.bias"}
        return model

    def with_head(self, adapter):
        """The bare base under an adapter's classifier."""
        model, tensors = self.fresh(), load_file(self.folder / adapter)
        model.head.load_state_dict({k: tensors[f"head.{k}"] for k in ("weight", "bias")})
        return model

    def logits(self, model):
        with torch.no_grad():
            return model.eval()(self.images)

    def compare(self, what, got, expected):
        error = float((got - expected).norm() / expected.norm())
        fine = error <= TOLERANCE  # false for NaN
        self.agree &= fine
        print(f"  {what:62} {error:.1e}  {'ok' if fine else 'DIFFERS'}")

    def trained_a_step(self, model):
        """One step of SGD on everything PEFT marks as trainable."""
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = torch.nn.functional.cross_entropy(model(self.images), torch.arange(len(self.images)) % CLASSES)
        loss.backward()
        torch.optim.SGD(parameters, lr=0.1).step()
        return model.eval()

    def one_case(self, targets):
        name = "".join(targets)
        print(f"lora.targets = {', '.join(targets)}")
        (self.folder / f"{name}.toml").write_text(RUN.format(targets=json.dumps(targets)))
        run, weights = f"run-{name}", "base/model.safetensors"
        self.run("run", f"{name}.toml", "--out", run, "--in-process")
        general = f"{run}/general_adapter.safetensors"
        personal = f"{run}/clients/site_a/personal_adapter.safetensors"
        both, alone = self.predicted(weights, general, personal), self.predicted(weights, general)
        bare = self.logits(self.with_head(general))
        for what, logits, before in (("general adapter", alone, bare), ("personal part", both, alone)):
            print(f"  the {what} moves the logits by {float((logits - before).norm() / both.norm()):.1e}")

        def export(out, *words):
            self.run("export", run, "--client", "site_a", *words, "--out", out)
            return str(self.folder / out)

        folder = export(f"{name}-general", "--format", "peft", "--adapter", "general")
        model = peft.PeftModel.from_pretrained(self.fresh(), folder)
        self.compare("PEFT, general adapter", self.logits(model), alone)

        folder = export(f"{name}-pair", "--format", "peft", "--adapter", "both")
        pair = peft.PeftModel.from_pretrained(self.fresh(), folder + "/general", adapter_name="general")
        pair.load_adapter(folder + "/personal", adapter_name="personal")
        pair.base_model.set_adapter(["general", "personal"])
        self.compare("PEFT, two named adapters", self.logits(pair), both)

        folder = export(f"{name}-one", "--format", "peft", "--adapter", "both", "--concatenate")
        model = peft.PeftModel.from_pretrained(self.fresh(), folder, is_trainable=True)
        self.compare("PEFT, one concatenated adapter", self.logits(model), both)
        self.compare("PEFT, concatenated against two named", self.logits(model), self.logits(pair))

        self.run("import", folder, "--weights", weights, "--out", f"{name}-back.safetensors")
        self.compare("orthofed, imported as it was exported",
                     self.predicted(weights, f"{name}-back.safetensors"), both)

        self.trained_a_step(model)
        model.save_pretrained(str(self.folder / f"{name}-trained"))
        moved = float((self.logits(model) - both).norm() / both.norm())
        print(f"  a step of training in PEFT moves the logits by {moved:.1e}")
        self.run("import", f"{name}-trained", "--weights", weights, "--out", f"{name}-trained.safetensors")
        self.compare("orthofed, imported after PEFT trained and saved it",
                     self.predicted(weights, f"{name}-trained.safetensors"), self.logits(model))

        folder = export(f"{name}-merged", "--format", "merged", "--adapter", "both")
        merged = timm_model(CLASSES)
        merged.load_state_dict(load_file(folder + "/model.safetensors"))
        self.compare("timm, merged weights", self.logits(merged), both)
        self.compare("orthofed, merged weights", self.predicted(f"{name}-merged"), both)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orthofed", default="build/release/bin/orthofed", metavar="PROGRAM")
    options = parser.parse_args()
    program = pathlib.Path(options.orthofed).resolve()
    if not program.exists():
        fail(f"{options.orthofed}: is not there; build it, or name it with --orthofed")
    print(f"peft {peft.__version__}, timm {timm.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        check = Roundtrip(str(program), pathlib.Path(folder))
        check.one_case(["qkv", "proj", "fc1", "fc2"])
        check.one_case(["q", "k", "v", "fc1"])
        check.one_case(["q", "v"])
    print("all agree" if check.agree else "some differ")
    sys.exit(0 if check.agree else 1)


if __name__ == "__main__":
    main()
