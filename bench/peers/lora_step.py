"""The LoRA training step in PyTorch, as its users write it: a timm ViT at 224 px, PEFT with a
general and a personal adapter (rank 8 each, both active, on qkv, proj, fc1, fc2), a trained head,
AdamW, norm clip 1. Random data. One JSON line for each model and mode:

    scripts/python.sh bench/peers/lora_step.py --threads 2 --models tiny,small,base

A mode is a precision, fp32 or bf16 (autocast; by default only where the CPU multiplies it natively,
elsewhere it is a hundred times slower than fp32), and what it is joined to by hyphens: compile
(torch.compile), or the one attention backend that PyTorch may choose (math, flash, efficient,
cudnn). --compile adds the compiled modes, --attention each backend of the device in turn.
--device cuda measures on the GPU instead. Each runs in a process of its own, so that its peak
memory is its own.

--job DIR also leaves each model with its adapters and its data under DIR, for orthofed to do the
same work: lora_step_bench --job DIR/MODEL. Loss and gradient norm of the first step must agree.
"""
import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time

MODELS = {name: f"vit_{name}_patch16_224" for name in ("tiny", "small", "base", "large")}
ATTENTION = {"math": "MATH", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION",
             "cudnn": "CUDNN_ATTENTION"}
ATTENTION_OF = {"cpu": ["math", "flash"], "cuda": list(ATTENTION)}
CLASSES = 5


def peak_rss_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def has_bf16():
    """Whether the CPU multiplies bf16 natively: avx512_bf16, amx_bf16, or arm's bf16."""
    with open("/proc/cpuinfo") as file:
        words = set(file.read().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def build(name, rank):
    """timm's model with PEFT's adapters; the base frozen, the head trained. B is not 0, as it is
    after some steps, so that A has a gradient as well."""
    from reference import peft, timm, torch

    def config():
        return peft.LoraConfig(r=rank, lora_alpha=2 * rank,
                               target_modules=r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))")

    model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    model = peft.get_peft_model(model, config(), adapter_name="general")
    model.add_adapter("personal", config())
    model.base_model.set_adapter(["general", "personal"])
    for parameter_name, p in model.named_parameters():
        if "lora_" in parameter_name or ".head." in parameter_name:
            p.requires_grad_(True)
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(p, std=0.02)
    return model


def make(options, name):
    """Model, images and labels, the same in every process."""
    from reference import torch

    torch.manual_seed(0)
    model = build(name, options.rank)
    images = torch.randn(options.batch, 3, 224, 224)
    labels = torch.randint(0, CLASSES, (options.batch,))
    return model, images, labels


def save_job(options, name):
    """weights.safetensors with timm's names and config.json, as a user would bring them, and
    step.safetensors: adapters, head, patches, labels."""
    import reference as ref
    from safetensors.torch import save_file

    model, images, labels = make(options, name)
    weights, step = {}, {}
    for key, tensor in model.base_model.model.state_dict().items():
        tensor = tensor.contiguous()
        if ".lora_" in key:  # blocks.0.attn.qkv.lora_A.general.weight
            layer, matrix, adapter, _ = key.rsplit(".", 3)
            step[f"{adapter}.{layer}.{matrix}.weight"] = tensor
        else:
            weights[key.replace(".base_layer.", ".")] = tensor
    step["general.head.weight"], step["general.head.bias"] = weights["head.weight"], weights["head.bias"]
    size = model.base_model.model.patch_embed.patch_size[0]
    step |= {"patches": ref.patches(images, size).contiguous(), "labels": labels.int()}
    vit = model.base_model.model
    config = {"architecture": name, "img_size": 224, "patch_size": size, "embed_dim": vit.embed_dim,
              "depth": len(vit.blocks), "num_heads": vit.blocks[0].attn.num_heads,
              "num_classes": CLASSES}
    os.makedirs(options.job, exist_ok=True)
    save_file(weights, os.path.join(options.job, "weights.safetensors"))
    save_file({k: v.clone() for k, v in step.items()}, os.path.join(options.job, "step.safetensors"))
    with open(os.path.join(options.job, "config.json"), "w") as file:
        json.dump(config, file)
    return {}


def attention(backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel(getattr(SDPBackend, ATTENTION[backend])) if backend else contextlib.nullcontext()


def measure(options, name, mode):
    """Times one model in one mode, in this process."""
    import reference as ref
    from reference import F, torch

    precision, *extras = mode.split("-")
    torch.set_num_threads(options.threads)
    imports_mb = peak_rss_mb()
    model, images, labels = (x.to(options.device) for x in make(options, name))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    forward = torch.compile(model) if "compile" in extras else model
    backend = next((x for x in extras if x in ATTENTION), None)

    def predict():
        with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16"), attention(backend):
            return forward(images)

    def step():
        loss = F.cross_entropy(predict().float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item(), norm.item()

    def seconds(f, warmup):
        times = []
        for i in range(warmup + options.steps):
            start = time.perf_counter()
            f()
            if options.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return times[warmup:]

    model.train()
    loss, norm = step()
    training = seconds(step, options.warmup - 1)
    training_mb = peak_rss_mb()
    model.eval()
    with torch.inference_mode():
        inference = seconds(predict, options.warmup)
    gpu = {"device": torch.cuda.get_device_name(),
           "peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20)
           } if options.device == "cuda" else {}
    return {"step_ms": round(1000 * statistics.median(training), 2),
            "step_ms_min": round(1000 * min(training), 2),
            "step_ms_max": round(1000 * max(training), 2),
            "images_per_second": round(options.batch / statistics.median(training), 2),
            "inference_images_per_second": round(options.batch / statistics.median(inference), 2),
            "peak_rss_mb": round(training_mb), "imports_rss_mb": round(imports_mb),
            "first_loss": loss, "first_gradient_norm": norm,
            "load_average": round(os.getloadavg()[0], 2),
            "trained_parameters": sum(p.numel() for p in trained),
            "versions": ref.versions()} | gpu


def in_child(options, model, mode):
    """The child's figures, or what went wrong with it."""
    # OMP_NUM_THREADS holds for the libraries that torch.set_num_threads does not reach.
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--child", model, mode]
    try:
        child = subprocess.run(command, env=environment, timeout=options.timeout,
                               capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {options.timeout} s (--timeout)"}
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit status {child.returncode}"}
    return json.loads(child.stdout.splitlines()[-1])


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", default="tiny", help=f"comma separated: {', '.join(MODELS)}")
    parser.add_argument("--modes", help="default: fp32, and bf16 where it is native")
    parser.add_argument("--compile", action="store_true", help="add the torch.compile modes")
    parser.add_argument("--attention", action="store_true", help="add a mode for each attention backend")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--rank", type=positive, default=8, help="of each of the two adapters")
    parser.add_argument("--steps", type=positive, default=5, help="timed, after the warm-up")
    parser.add_argument("--warmup", type=positive, default=2)
    parser.add_argument("--timeout", type=positive, default=1800, help="seconds for a mode")
    parser.add_argument("--job", metavar="DIR", help="where to leave each model's work for orthofed")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.modes:
        native = options.device == "cuda" or has_bf16()
        options.modes = "fp32,bf16" if native else "fp32"
    options.models, options.modes = options.models.split(","), options.modes.split(",")
    extras = ["compile"] * options.compile + ATTENTION_OF[options.device] * options.attention
    options.modes += [f"{mode}-{extra}" for extra in extras for mode in options.modes]
    for model in options.models:
        if model not in MODELS:
            parser.error(f"unknown model {model}; known: {', '.join(MODELS)}")
    for mode in options.modes:
        precision, *rest = mode.split("-")
        if precision not in ("fp32", "bf16") or any(x not in ("compile", *ATTENTION) for x in rest):
            parser.error(f"unknown mode {mode}; known: fp32, bf16, each also with -compile, "
                         f"-{', -'.join(ATTENTION)}")
    return options


def main():
    options = parse()
    if options.child:
        model, mode = options.child
        if options.job:
            options.job = os.path.join(options.job, model)
        result = save_job(options, MODELS[model]) if mode == "save" else measure(options, MODELS[model], mode)
        print(json.dumps(result))
        return
    import reference  # says what is missing before any child is started
    if options.device == "cuda" and not reference.torch.cuda.is_available():
        reference.fail("no GPU that PyTorch can use is here")
    failed = False
    for model in options.models:
        if options.job:
            saved = in_child(options, model, "save")
            if "error" in saved:
                reference.fail(f"{options.job}: {saved['error']}")
        for mode in options.modes:
            result = in_child(options, model, mode)
            failed |= "error" in result
            print(json.dumps({"peer": "pytorch", "model": MODELS[model], "mode": mode,
                              "threads": options.threads, "batch": options.batch,
                              "rank": options.rank} | result), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
