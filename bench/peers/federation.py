"""One whole federation in plain PyTorch (docs/method.md), in one process and in fp32: a check on
orthofed's own numbers while developing. The data is a folder of images with a manifest.csv of the
columns path, site, label, label_id, split; every site is a client.

    scripts/python.sh bench/peers/federation.py --root DIR --weights MODEL.safetensors

The random numbers are PyTorch's and numpy's: compare with orthofed over seeds, not digit by digit.
"""
import argparse
import collections
import copy
import csv
import json
import math
import pathlib
import time

import reference as ref
from reference import F, np, timm, torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file

# Which adapters a method trains, whether the server averages, and the weight of `update`.
METHODS = {"opal": (("general", "personal"), True, 2.0),
           "dual": (("general", "personal"), True, 0.0),
           "fedavg": (("general",), True, 0.0),
           "local": (("personal",), False, 0.0)}
WARMUP, CLIP = 0.03, 1.0


class Site:
    """A client: its images (uint8 [N, size, size, 3]) by split, its model and optimiser."""

    def __init__(self, name, index, rows, root, size):
        self.name, self.index = name, index
        self.images, self.labels = {}, {}
        for split in ("train", "test"):
            chosen = [row for row in rows if row["split"] == split]
            if not chosen:
                ref.fail(f"site {name} has no {split} images in the manifest")
            self.images[split] = torch.stack([decode(root / row["path"], size) for row in chosen])
            self.labels[split] = torch.tensor([int(row["label_id"]) for row in chosen])
        self.count = len(self.labels["train"])

    def join(self, model, options):
        """Starts from the first broadcast with a personal adapter of its own."""
        self.model = copy.deepcopy(model)
        if "personal" in METHODS[options.method][0]:
            seed = 1000003 * (options.seed + 1) + self.index  # another stream at every client
            draw_adapter(self.model, "personal", torch.Generator().manual_seed(seed))
        self.optimizer = ref.adamw(ref.trained(self.model), options.lr)


def decode(path, size):
    """Resized to a square, bicubic with antialias. uint8 [size, size, 3]."""
    try:
        with Image.open(path) as image:
            square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, UnidentifiedImageError) as error:
        ref.fail(f"cannot read {path}: {error}")
    return torch.from_numpy(np.array(square))


def load_sites(root, size):
    manifest = root / "manifest.csv"
    if not manifest.is_file():
        ref.fail(f"no data: {manifest} is missing (--root)")
    with manifest.open() as file:
        rows = list(csv.DictReader(file))
    by_site = collections.defaultdict(list)
    for row in rows:
        by_site[row["site"]].append(row)
    classes = 1 + max(int(row["label_id"]) for row in rows)
    names = sorted(by_site)
    return [Site(name, i, by_site[name], root, size) for i, name in enumerate(names)], classes


def augment(image, rng):
    """Crop, flips, quarter turns, colour jitter. uint8 [H, W, 3] -> [3, H, W] in [0, 1]."""
    x = image.permute(2, 0, 1).float() / 255
    size = x.shape[1]
    side = max(1, round(size * math.sqrt(rng.uniform(0.8, 1.0))))
    top, left = rng.integers(0, size - side + 1, 2)
    x = x[:, top:top + side, left:left + side]
    x = F.interpolate(x[None], (size, size), mode="bilinear", align_corners=False)[0]
    if rng.random() < 0.5:
        x = x.flip(2)
    if rng.random() < 0.5:
        x = x.flip(1)
    x = x.rot90(int(rng.integers(4)), (1, 2))
    brightness, contrast, saturation = rng.uniform(0.9, 1.1, 3)
    stain = torch.from_numpy(rng.uniform(0.95, 1.05, 3)).float()
    x = x * brightness
    x = grey(x).mean() + contrast * (x - grey(x).mean())
    x = grey(x) + saturation * (x - grey(x))
    return (x * stain[:, None, None]).clamp(0, 1)


def grey(x):
    """ITU-R BT.601 luma. [3, H, W] -> [1, H, W]."""
    return 0.299 * x[0:1] + 0.587 * x[1:2] + 0.114 * x[2:3]


def build(options, classes, adapters):
    """The pretrained model with adapters: A ~ N(0, 1/in), B = 0, a fresh head."""
    weights = pathlib.Path(options.weights)
    config = weights.parent / "config.json"
    for path in (weights, config):
        if not path.is_file():
            ref.fail(f"no model: {path} is missing (--weights)")
    model = timm.create_model(json.loads(config.read_text())["architecture"], num_classes=classes)
    stored = {n: t for n, t in load_file(weights).items() if not n.startswith("head.")}
    model.load_state_dict(stored | {n: t for n, t in model.state_dict().items()
                                    if n.startswith("head.")})
    alpha = 2.0 * options.rank  # s = 2
    ref.attach(model, dict.fromkeys(adapters, options.rank), dict.fromkeys(adapters, alpha))
    generator = torch.Generator().manual_seed(options.seed)
    ref.uniform_head(model, generator)
    if "general" in adapters:
        draw_adapter(model, "general", generator)
    return model


def draw_adapter(model, name, generator):
    """A ~ N(0, 1/in), B = 0."""
    with torch.no_grad():
        for _, pair in ref.pairs(model):
            a, b = pair.adapters[name].lora_A.weight, pair.adapters[name].lora_B.weight
            a.normal_(0, a.shape[1] ** -0.5, generator=generator)
            b.zero_()


def train_round(site, options, penalty_weight, t):
    """Local training of round t: learning rate and ramp follow the progress u of the whole run."""
    model, trained = site.model.train(), ref.trained(site.model)
    steps_per_epoch = math.ceil(site.count / options.batch)
    steps = options.steps or options.epochs * steps_per_epoch
    for step in range(steps):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0:
            rng = np.random.default_rng([options.seed, site.index, t, epoch])
            order = rng.permutation(site.count)
        batch = order[position * options.batch:(position + 1) * options.batch]
        pixels = torch.stack([augment(site.images["train"][i], rng) for i in batch])
        u = (t + step / steps) / options.rounds
        for group in site.optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, u / WARMUP)
        loss = F.cross_entropy(model((pixels - 0.5) / 0.5), site.labels["train"][batch])
        if penalty_weight:
            ramp = min(1.0, u * options.rounds)
            loss = loss + ramp * penalty_weight * ref.penalty(model, "update")
        site.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        site.optimizer.step()
    return loss.item()


def shared(model):
    """What crosses the wire: the general adapter and the head."""
    return {n: p for n, p in ref.trained(model).items() if not n.startswith("personal.")}


def average(sites):
    """sum_i n_i / n theta_i in double, rounded once, then sent to every client."""
    total = sum(site.count for site in sites)
    with torch.no_grad():
        for name in shared(sites[0].model):
            mean = sum(site.count / total * shared(site.model)[name].double() for site in sites)
            for site in sites:
                shared(site.model)[name].copy_(mean)


def balanced_accuracy(site, batch=64):
    """Mean recall over the classes present in the test labels."""
    images, labels = site.images["test"], site.labels["test"]
    site.model.eval()
    with torch.inference_mode():
        predicted = torch.cat([site.model(ref.normalise(chunk)).argmax(1)
                               for chunk in images.split(batch)])
    recalls = [(predicted[labels == c] == c).double().mean() for c in labels.unique()]
    return torch.stack(recalls).mean().item()


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with manifest.csv and the images")
    parser.add_argument("--weights", required=True, help="safetensors, config.json beside it")
    parser.add_argument("--method", choices=METHODS, default="opal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=1, help="in a round")
    parser.add_argument("--steps", type=int, default=0, help="in a round, instead of epochs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8, help="of each adapter")
    parser.add_argument("--size", type=int, default=224)
    return parser.parse_args()


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    adapters, federated, penalty_weight = METHODS[options.method]
    start = time.monotonic()
    sites, classes = load_sites(pathlib.Path(options.root), options.size)
    model = build(options, classes, adapters)
    for site in sites:
        site.join(model, options)
    for t in range(options.rounds):
        losses = [train_round(site, options, penalty_weight, t) for site in sites]
        if federated:
            average(sites)
        print(f"round {t + 1}/{options.rounds}, {time.monotonic() - start:.0f} s: last loss "
              + ", ".join(f"{s.name} {loss:.3f}" for s, loss in zip(sites, losses)), flush=True)
    scores = {site.name: round(balanced_accuracy(site), 4) for site in sites}
    print(json.dumps({"method": options.method, "seed": options.seed, "lr": options.lr,
                      "rounds": options.rounds, "balanced_accuracy": scores,
                      "mean": round(sum(scores.values()) / len(scores), 4)}))


if __name__ == "__main__":
    main()
