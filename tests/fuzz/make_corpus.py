"""Writes corpus/: small safetensors files, sound ones and one for each way of being wrong. The
fuzzer starts from them; tests/engine/io/safetensors_corpus_test.cc reads them and mutations."""

import json
import pathlib
import struct

FOLDER = pathlib.Path(__file__).parent / "corpus"


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def container(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = struct.pack("<6f", 1, -2, 0.5, 3, float("nan"), float("inf"))
SOUND = {
    "one": container({"a": tensor("F32", [2, 3], 0, 24)}, F32),
    "empty": container({}),
    "metadata": container({"__metadata__": {"format": "pt"}, "a": tensor("U8", [3], 0, 3)}, b"abc"),
    "every_dtype": container(
        {
            "d": tensor("F64", [1], 0, 8), "l": tensor("I64", [2], 8, 24), "f": tensor("F32", [1], 24, 28),
            "i": tensor("I32", [1], 28, 32), "b": tensor("BF16", [1], 32, 34), "h": tensor("F16", [1], 34, 36),
            "u": tensor("U8", [1], 36, 37),
        },
        struct.pack("<dqqfiHHB", 0.5, -3, 2**40, 1.5, -7, 0x3F80, 0x3C00, 255)),
    "scalars_and_zeros": container({"s": tensor("F32", [], 0, 4), "z": tensor("F32", [0, 3], 4, 4)}, F32[:4]),
    "misaligned": container({"u": tensor("U8", [1], 0, 1), "f": tensor("F32", [2], 1, 9)}, b"x" + F32[:8]),
    "padded_header": container(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}       ', b"x"),
}
WRONG = {
    "overlap": container({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 2, 6)}, b"abcdef"),
    "gap": container({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 4, 6)}, b"abcdef"),
    "out_of_range": container({"a": tensor("F32", [2], 0, 8)}, b"1234"),
    "backwards": container({"a": tensor("F32", [1], 4, 0)}, b"1234"),
    "trailing": container({"a": tensor("U8", [1], 0, 1)}, b"abc"),
    "duplicate": container(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                           b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"ab"),
    "duplicate_field": container(b'{"a":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,1]}}', b"a"),
    "huge_header": container({}, length=2**63),
    "header_beyond_the_file": container({}, length=1000),
    "overflowing_shape": container({"a": tensor("F32", [2**32, 2**32], 0, 4)}, b"1234"),
    "hidden_overflow": container({"a": tensor("F32", [0, 2**63 - 1, 2], 0, 0)}),
    "six_dimensions": container({"a": tensor("U8", [1] * 6, 0, 1)}, b"a"),
    "unknown_dtype": container({"a": tensor("F8_E4M3", [1], 0, 1)}, b"a"),
    "wrong_dtype": container({"a": tensor("F64", [1], 0, 4)}, b"1234"),
    "dtype_is_a_number": container({"a": tensor(3, [1], 0, 1)}, b"a"),
    "fractional_shape": container({"a": tensor("U8", [1.5], 0, 1)}, b"a"),
    "negative_offset": container({"a": tensor("U8", [1], -1, 0)}, b"a"),
    "deep": container(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"),
    "metadata_is_a_list": container({"__metadata__": ["pt"]}),
    "not_utf8": container(b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a"),
    "nul_in_header": container(b"{}\0\0"),
    "short": b"\x02\0\0",
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for prefix, files in (("sound", SOUND), ("wrong", WRONG)):
        for name, content in files.items():
            (FOLDER / f"{prefix}_{name}").write_bytes(content)
