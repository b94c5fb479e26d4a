"""The method (docs/method.md) in plain PyTorch, on a timm vision transformer.

Written for reading and for comparing with, not for speed: every penalty is computed from the dense
updates. The fixtures in tests/fixtures and federation.py are made with it.
"""
import math
import os
import sys

try:
    import numpy as np
    import peft
    import PIL
    import safetensors
    import timm
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as missing:
    print(f"{os.path.basename(sys.argv[0])}: {missing.name} is not installed; "
          f"scripts/python.sh makes an environment that has it", file=sys.stderr)
    sys.exit(2)

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def fail(message):
    """One line for the user's mistake, exit status 2."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(2)


def versions():
    return {m.__name__: m.__version__ for m in (torch, timm, peft, safetensors, np, PIL)}


class Adapter(nn.Module):
    """s B A x with s = alpha / rank; A [rank, in], B [out, rank]. No effect until B is set."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.scale = alpha / rank
        self.active = True

    def forward(self, x):
        return self.scale * self.lora_B(self.lora_A(x))

    def delta(self):
        """DeltaW = B A, without s."""
        return self.lora_B.weight @ self.lora_A.weight


class LoraPair(nn.Module):
    """y = W0 x + b + s_g B_g A_g x + s_p B_p A_p x over a frozen linear layer."""

    def __init__(self, base, ranks, alphas):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict({n: Adapter(base, ranks[n], alphas[n]) for n in ranks})

    def forward(self, x):
        y = self.base(x)
        for adapter in self.adapters.values():
            if adapter.active:
                y = y + adapter(x)
        return y


def attach(model, ranks, alphas):
    """Freezes a timm ViT but for its head and puts adapters (name -> rank) on every target."""
    model.requires_grad_(False)
    for block in model.blocks:
        for target in TARGETS:
            parent, name = target.split(".")
            module = getattr(block, parent)
            setattr(module, name, LoraPair(getattr(module, name), ranks, alphas))
    model.head.requires_grad_(True)
    return model


def pairs(model):
    """(layer name, LoraPair) in the model's order."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoraPair)]


def trained(model):
    """Name -> parameter of all that is trained: both adapters and the head."""
    parameters = {}
    for layer, pair in pairs(model):
        for name, adapter in pair.adapters.items():
            parameters[f"{name}.{layer}.lora_A.weight"] = adapter.lora_A.weight
            parameters[f"{name}.{layer}.lora_B.weight"] = adapter.lora_B.weight
    parameters["head.weight"] = model.head.weight
    parameters["head.bias"] = model.head.bias
    return parameters


def adamw(parameters, lr):
    """The method's optimiser: weight decay on everything but the head's bias."""
    decayed = [p for name, p in parameters.items() if name != "head.bias"]
    groups = [{"params": decayed, "weight_decay": 0.01},
              {"params": [parameters["head.bias"]], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)


def cosine2(x, y):
    """c(X, Y) = <X, Y>_F^2 / (|X|_F^2 |Y|_F^2); 0 where the denominator is."""
    norms = x.square().sum() * y.square().sum()
    return (x * y).sum().square() / norms if norms > 1e-30 else x.new_zeros(())


def update(pair):
    return cosine2(pair.adapters["general"].delta(), pair.adapters["personal"].delta())


def base(pair):
    return sum(cosine2(pair.base.weight, a.delta()) for a in pair.adapters.values()) / 2


def subspace(pair):
    a_g, a_p = (pair.adapters[n].lora_A.weight for n in ("general", "personal"))
    cosines = F.normalize(a_g, dim=1, eps=0) @ F.normalize(a_p, dim=1, eps=0).T  # [r_g, r_p]
    return cosines.square().sum() / min(cosines.shape)


PENALTIES = {"update": update, "base": base, "subspace": subspace}


def penalty(model, kind):
    """The mean over layers."""
    return torch.stack([PENALTIES[kind](pair) for _, pair in pairs(model)]).mean()


def cross_entropy(logits, labels, weights):
    """The weighted mean: a sample of weight 0 contributes exactly nothing."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (weights * losses).sum() / weights.sum()


def normalise(images):
    """uint8 [N, H, W, 3] -> [N, 3, H, W] in [-1, 1], in the default floating type."""
    pixels = images.permute(0, 3, 1, 2).to(torch.get_default_dtype()) / 255
    return (pixels - 0.5) / 0.5


def patches(pixels, size):
    """[N, 3, H, W] -> [N * patches, 3 * size * size]: channel, then row, then column."""
    columns = F.unfold(pixels, size, stride=size)  # [N, 3 * size * size, patches]
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def uniform_head(model, generator):
    """W ~ U(+-1/sqrt(D)), b = 0."""
    bound = 1 / math.sqrt(model.head.in_features)
    with torch.no_grad():
        model.head.weight.uniform_(-bound, bound, generator=generator)
        model.head.bias.zero_()
