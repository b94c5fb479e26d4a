"""Converts PyTorch weights (.pth, .pt, .bin) to safetensors, for models that a hub has in no other form.

  scripts/python.sh scripts/pth_to_safetensors.py RETFound_cfp.pth model.safetensors
  scripts/python.sh scripts/pth_to_safetensors.py checkpoint.pth model.safetensors --key teacher --prefix backbone.

A .pth file is a pickle: one from a stranger can run code when it is opened. It is read with
weights_only=True, which admits tensors and plain containers alone; a file that holds more is
refused. --key names the entry that holds the weights ("model", "state_dict", "teacher"...); without
it the only one that holds tensors is taken. --prefix keeps the tensors of that prefix and removes
it from their names. `orthofed inspect` then says what the file is and which tensors do not fit.

Exit status 2: bad input, or torch and safetensors are missing.
"""

import argparse
import os
import pickle
import sys


def fail(message):
    print(f"pth_to_safetensors: {message}", file=sys.stderr)
    sys.exit(2)


try:
    import torch
    from safetensors.torch import save_file
except ImportError as error:
    fail(f"{error}; run it through scripts/python.sh")


def is_weights(value):
    return isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values())


def weights_in(checkpoint, key):
    """The dictionary of tensors in what torch.load returned."""
    if key:
        if not isinstance(checkpoint, dict) or not is_weights(checkpoint.get(key)):
            entries = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else "no entries"
            fail(f"--key: '{key}' holds no tensors; the file has {entries}")
        return checkpoint[key]
    if is_weights(checkpoint):
        return checkpoint
    found = [k for k, v in checkpoint.items() if is_weights(v)] if isinstance(checkpoint, dict) else []
    if len(found) != 1:
        fail(f"several entries hold tensors: {', '.join(found)}; choose with --key" if found
             else "no tensors in this file")
    return checkpoint[found[0]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="FILE.pth")
    parser.add_argument("output", metavar="FILE.safetensors")
    parser.add_argument("--key", help="entry of the checkpoint that holds the weights")
    parser.add_argument("--prefix", default="", help="keep tensors of this prefix alone, without it")
    options = parser.parse_args()
    if not options.output.endswith(".safetensors"):
        fail(f"{options.output}: the output's name must end in .safetensors")
    if os.path.exists(options.output):
        fail(f"{options.output}: is there already; name another file or remove it")
    try:
        # MAE and RETFound keep their arguments beside the weights; a Namespace only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(options.input, map_location="cpu", weights_only=True)
    except OSError as error:
        fail(f"{options.input}: cannot be read: {error.strerror}")
    except pickle.UnpicklingError:
        fail(f"{options.input}: holds more than weights, or is no PyTorch file; weights_only=True refuses it")
    except Exception as error:  # bytes that are no pickle end the reader in any way
        fail(f"{options.input}: not a PyTorch file ({type(error).__name__})")
    weights = weights_in(checkpoint, options.key)
    # Copies: tensors that share memory (tied weights) are written twice.
    tensors = {
        name.removeprefix(options.prefix): value.detach().clone().contiguous()
        for name, value in weights.items()
        if isinstance(value, torch.Tensor) and name.startswith(options.prefix)
    }
    if not tensors:
        fail(f"--prefix: no tensor is called '{options.prefix}...'; the first is '{next(iter(weights))}'")
    temporary = f"{options.output}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, options.output)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    left_out = [str(k) for k in weights if not isinstance(weights[k], torch.Tensor)]
    print(f"{len(tensors)} tensors in {options.output}"
          + (f"; left out, not tensors: {', '.join(left_out)}" if left_out else ""))


if __name__ == "__main__":
    main()
