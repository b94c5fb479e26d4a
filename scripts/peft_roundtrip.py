"""Shows that PEFT and orthofed read each other's adapters: a small federation on generated images,
its adapters exported, loaded by PEFT on a model of timm or transformers, trained for a step there,
and imported again; and that these libraries load our merged weights strictly.

  scripts/python.sh --with transformers scripts/peft_roundtrip.py --orthofed build/release/bin/orthofed

Checked on timm for fused qkv and for separate q, k, v, on transformers (left out where it is not
installed) for every family; with s_g != s_p and a head in two parts: the logits
of two named adapters, of one concatenated adapter and of merged weights in PyTorch against those of
`orthofed predict`, and after a training step in PEFT the other way round; each within 1e-4 relative.
Exit status 0: all agree; 1: some do not; 2: torch, timm or peft are missing (it is no part of the
tests), or a command failed.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings


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

try:
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
except ImportError:
    transformers = None

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


def spread(model):
    """Larger weights, so that every layer matters."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("weight") and p.ndim > 1:
                p.mul_(3)
    return model


class TimmBase:
    """A base without a classifier as timm stores it; models of it have one."""
    name, options = "timm", ()

    def save(self, folder):
        self.tensors = spread(timm_model(0)).state_dict()
        save_file(self.tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(
            {"architecture": "vit_small_test", "num_heads": 3, "norm_eps": 1e-6, "num_classes": 0}))

    def fresh(self):
        model = timm_model(CLASSES)
        missing, unexpected = model.load_state_dict(self.tensors, strict=False)
        assert not unexpected and set(missing) == {"head.weight", "head.bias"}
        return model

    def classifier(self, model):
        return model.head

    def logits(self, model, images):
        return model(images)

    def merged(self, folder):
        model = timm_model(CLASSES)
        model.load_state_dict(load_file(folder + "/model.safetensors"))  # strict
        return model


class HuggingFaceBase:
    """A base of transformers. `features`: where the library has no classifier that reads what ours
    reads, how what ours reads comes out of the model; head.safetensors is then the classifier."""

    def __init__(self, name, model_class, config, features=None):
        major = transformers.__version__.split(".")[0]
        self.name, self.model_class, self.config = name, model_class, config
        self.features, self.options = features, ("--transformers", major)

    def save(self, folder):
        # The bare model, as hubs have it; with a classifier only the library's own class has one.
        bare = transformers.AutoModel.from_config(self.config) if self.features is None \
            else self.model_class(self.config)
        spread(bare).save_pretrained(folder)
        self.folder = folder

    def load(self, folder):
        model, report = self.model_class.from_pretrained(folder, output_loading_info=True)
        return model.eval(), report

    def fresh(self):
        if self.features is None:
            model = self.model_class.from_pretrained(self.folder, num_labels=CLASSES)
        else:
            model = self.load(self.folder)[0]
            model.own_head = torch.nn.Linear(self.width(), CLASSES)
        return model.eval()

    def width(self):
        return self.config.hidden_size

    def classifier(self, model):
        return model.classifier if self.features is None else model.own_head

    def logits(self, model, images):
        if self.features is None:
            return model(pixel_values=images).logits
        inner = model.base_model.model if isinstance(model, peft.PeftModel) else model
        return inner.own_head(self.features(model(pixel_values=images)))

    def merged(self, folder):
        model, report = self.load(folder)
        assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        if self.features is not None:
            model.own_head = torch.nn.Linear(self.width(), CLASSES)
            model.own_head.load_state_dict(load_file(folder + "/head.safetensors"))
        return model.eval()


def hugging_face_bases():
    t = transformers
    common = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=SIZE,
                  patch_size=8)
    wide = common | dict(intermediate_size=48)
    dino = common | dict(mlp_ratio=2)
    pooled = lambda output: output.pooler_output
    yield HuggingFaceBase("vit", t.ViTForImageClassification, t.ViTConfig(**wide))
    yield HuggingFaceBase("dinov2", t.Dinov2Model, t.Dinov2Config(**dino), pooled)
    yield HuggingFaceBase("dinov2, SwiGLU", t.Dinov2Model,
                          t.Dinov2Config(**dino, use_swiglu_ffn=True), pooled)
    yield HuggingFaceBase("dinov2_with_registers", t.Dinov2WithRegistersModel,
                          t.Dinov2WithRegistersConfig(**dino), pooled)
    yield HuggingFaceBase("dinov3_vit", t.DINOv3ViTModel,
                          t.DINOv3ViTConfig(**wide, num_register_tokens=4), pooled)
    yield HuggingFaceBase("dinov3_vit, gated", t.DINOv3ViTModel,
                          t.DINOv3ViTConfig(**wide, num_register_tokens=4, use_gated_mlp=True,
                                            hidden_act="silu"), pooled)
    yield HuggingFaceBase("clip_vision_model", t.CLIPVisionModel, t.CLIPVisionConfig(**wide), pooled)
    yield HuggingFaceBase("siglip_vision_model", t.SiglipVisionModel, t.SiglipVisionConfig(**wide),
                          pooled)


class Roundtrip:
    def __init__(self, orthofed, folder, base):
        self.orthofed, self.folder, self.base, self.agree = orthofed, folder, base, True
        torch.manual_seed(0)
        os.makedirs(folder / "base")
        base.save(folder / "base")
        # The same preparation for all: mean and deviation .5, in the form that each library has.
        if isinstance(base, HuggingFaceBase):
            (folder / "base/preprocessor_config.json").write_text(json.dumps(
                {"image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                 "size": {"height": SIZE, "width": SIZE}}))
        self.pixels = numpy.random.default_rng(1).integers(0, 256, (6, SIZE, SIZE, 3), dtype=numpy.uint8)
        numpy.savez(folder / "images.npz", images=self.pixels)
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

    def with_head(self, adapter):
        """The bare base under an adapter's classifier."""
        model, tensors = self.base.fresh(), load_file(self.folder / adapter)
        self.base.classifier(model).load_state_dict(
            {k: tensors[f"head.{k}"] for k in ("weight", "bias")})
        return model

    def adapted(self, folder, model=None, **options):
        """PEFT's model of an exported folder, with the classifier that lies beside it if one does."""
        model = peft.PeftModel.from_pretrained(model or self.base.fresh(), folder, **options)
        own = pathlib.Path(folder) / "head.safetensors"
        if own.exists():
            model.base_model.model.own_head.load_state_dict(load_file(own))
        return model

    def logits(self, model):
        with torch.no_grad():
            return self.base.logits(model.eval(), self.images)

    def compare(self, what, got, expected):
        error = float((got - expected).norm() / expected.norm())
        fine = error <= TOLERANCE  # false for NaN
        self.agree &= fine
        print(f"  {what:62} {error:.1e}  {'ok' if fine else 'DIFFERS'}")

    def trained_a_step(self, model):
        """One step of SGD on everything PEFT marks as trainable."""
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = torch.nn.functional.cross_entropy(self.base.logits(model, self.images),
                                                 torch.arange(len(self.images)) % CLASSES)
        loss.backward()
        torch.optim.SGD(parameters, lr=0.1).step()
        return model.eval()

    def one_case(self, targets):
        name = "".join(targets)
        print(f"{self.base.name}, lora.targets = {', '.join(targets)}")
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
            self.run("export", run, "--client", "site_a", *words, *self.base.options, "--out", out)
            return str(self.folder / out)

        folder = export(f"{name}-general", "--format", "peft", "--adapter", "general")
        model = self.adapted(folder)
        self.compare("PEFT, general adapter", self.logits(model), alone)

        folder = export(f"{name}-pair", "--format", "peft", "--adapter", "both")
        pair = self.adapted(folder + "/general", adapter_name="general")
        pair.load_adapter(folder + "/personal", adapter_name="personal")
        if (own := pathlib.Path(folder) / "personal/head.safetensors").exists():
            pair.base_model.model.own_head.load_state_dict(load_file(own))
        pair.base_model.set_adapter(["general", "personal"])
        self.compare("PEFT, two named adapters", self.logits(pair), both)

        folder = export(f"{name}-one", "--format", "peft", "--adapter", "both", "--concatenate")
        model = self.adapted(folder, is_trainable=True)
        self.compare("PEFT, one concatenated adapter", self.logits(model), both)
        self.compare("PEFT, concatenated against two named", self.logits(model), self.logits(pair))

        self.run("import", folder, "--weights", weights, "--out", f"{name}-back.safetensors")
        self.compare("orthofed, imported as it was exported",
                     self.predicted(weights, f"{name}-back.safetensors"), both)

        self.trained_a_step(model)
        model.save_pretrained(str(self.folder / f"{name}-trained"))
        if hasattr(model.base_model.model, "own_head"):  # PEFT knows nothing of it
            shutil.copy(folder + "/head.safetensors", self.folder / f"{name}-trained")
        moved = float((self.logits(model) - both).norm() / both.norm())
        print(f"  a step of training in PEFT moves the logits by {moved:.1e}")
        self.run("import", f"{name}-trained", "--weights", weights, "--out", f"{name}-trained.safetensors")
        self.compare("orthofed, imported after PEFT trained and saved it",
                     self.predicted(weights, f"{name}-trained.safetensors"), self.logits(model))

        folder = export(f"{name}-merged", "--format", "merged", "--adapter", "both")
        self.compare("the library, merged weights, strictly loaded",
                     self.logits(self.base.merged(folder)), both)
        self.compare("orthofed, merged weights", self.predicted(f"{name}-merged"), both)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orthofed", default="build/release/bin/orthofed", metavar="PROGRAM")
    options = parser.parse_args()
    program = pathlib.Path(options.orthofed).resolve()
    if not program.exists():
        fail(f"{options.orthofed}: is not there; build it, or name it with --orthofed")
    print(f"peft {peft.__version__}, timm {timm.__version__}, torch {torch.__version__}, transformers "
          + (transformers.__version__ if transformers else "not installed"))
    all_targets = [["qkv", "proj", "fc1", "fc2"], ["q", "k", "v", "fc1"], ["q", "v"]]
    cases = [(TimmBase(), all_targets)]
    if transformers:
        cases += [(base, all_targets[:1] if base.features else all_targets)
                  for base in hugging_face_bases()]
    agree = True
    for base, targets in cases:
        with tempfile.TemporaryDirectory() as folder:
            check = Roundtrip(str(program), pathlib.Path(folder), base)
            for case in targets:
                check.one_case(case)
            agree &= check.agree
    print("all agree" if agree else "some differ")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
