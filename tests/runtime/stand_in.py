"""A stand-in model (program.c) as an artifact, and the same arithmetic in Python."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from slmopt.artifact import ArtifactWriter
from slmopt.link import c_compiler, link_library, runtime_directory, runtime_sources, write_development_files

HERE = Path(__file__).parent
VOCAB, CONTEXT, LANES = 300, 96, 16
BOS, EOS = 298, 299
WEIGHTS = bytes(i * i * 37 % 251 for i in range(VOCAB))
_MASK = 2**64 - 1


def write_stand_in(
    path: Path, *, flags: Sequence[str] = (), name: str = "standin", library: Path | None = None
) -> None:
    """Writes the artifact; `library` is taken instead of compiling one."""
    with ArtifactWriter(path) as artifact:
        with artifact.weights() as weights:
            weights.append(WEIGHTS)
        if library is None:
            define = program_flags(weights.hash, weights.size)
            link_library([], HERE / "program.c", artifact.file(f"lib{name}.so"), name, flags=[*define, *flags])
        else:
            artifact.copy(library, f"lib{name}.so")
        write_development_files(artifact.directory, name)
        byte_tokenizer(artifact.file("tokenizer.json"))
        manifest = {
            "name": name,
            "library": f"lib{name}.so",
            "tokenizer": "tokenizer.json",
            "target": "cpu:isa=test",
            "bos_token_id": BOS,
            "eos_token_ids": [EOS],
        }
        artifact.write_json("manifest.json", manifest)


def program_flags(weights_hash: str, weights_size: int) -> list[str]:
    return [f'-DWEIGHTS_HASH="{weights_hash}"', f"-DWEIGHTS_BYTES={weights_size}"]


def build_driver(
    output: Path, weights_hash: str, weights_size: int, flags: Sequence[str], compiler: Sequence[str] | None = None
) -> Path:
    """driver.c, program.c and the runtime's C files as one executable; every warning is an error."""
    sources = [HERE / "driver.c", HERE / "program.c", *runtime_sources()]
    warnings = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
    include = f"-I{runtime_directory()}"
    define = program_flags(weights_hash, weights_size)
    command = [*(compiler or c_compiler()), *warnings, "-g", "-O1", include, *define, *flags, *map(str, sources)]
    subprocess.run([*command, "-lm", "-lpthread", "-o", str(output)], check=True)
    return output


def byte_tokenizer(file: Path) -> None:
    """A byte-level BPE over all 256 bytes with a few merges: 300 tokens, BOS and EOS the last two."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    merges = [(a, b) for a in "thea" for b in "henrstlo "[:8] if a + b not in vocab][:32]
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    while len(vocab) < BOS:
        vocab[f"<unused{len(vocab)}>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.save(str(file))


def _mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


@cache
def lanes_after(ids: tuple[int, ...]) -> tuple[int, ...]:
    if not ids:
        return (0,) * LANES
    old = lanes_after(ids[:-1])
    token = ids[-1] + 1000 * (len(ids) - 1)
    return tuple(_mix(old[i] + 3 * old[(i + 1) % LANES] + token + i & _MASK) for i in range(LANES))


def expected_logits(ids: Sequence[int]) -> list[float]:
    """The logits after the last of `ids`."""
    row = []
    for v in range(VOCAB):
        value = WEIGHTS[v]
        for lane in lanes_after(tuple(ids)):
            value = _mix(value + lane + v & _MASK)
        row.append((value >> 40) * 2.0**-21 - 4.0)
    return row


def expected_greedy(ids: Sequence[int], count: int) -> list[int]:
    made: list[int] = []
    for _ in range(count):
        row = expected_logits([*ids, *made])
        made.append(row.index(max(row)))
    return made
