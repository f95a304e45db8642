"""ONNX Runtime GenAI, run by the peers' Python: converts a model, then answers JSON lines on standard input.

    python onnxruntime_worker.py MODEL_DIRECTORY CONVERTED_DIRECTORY BITS THREADS
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path


def convert(source: Path, output: Path, bits: int) -> None:
    """Weights to int4 in blocks of 32 with the builder that the package brings; activations stay floats."""
    if (output / "genai_config.json").exists():
        return
    if bits != 4:
        raise SystemExit("the builder makes 4-bit models alone")
    from tokenizer_files import write_tokenizer

    write_tokenizer(source)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", output, "-p", "int4",
               "-e", "cpu", "-c", output.parent / "cache", "--extra_options", "int4_accuracy_level=4"]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def serve(directory: Path, threads: int) -> None:
    """Answer each question {prompts, depths, decoded} with tokens per second."""
    import numpy as np
    import onnxruntime_genai as genai

    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=2))
    start = time.perf_counter()
    model = genai.Model(str(directory))
    loaded = time.perf_counter() - start
    numbers = np.random.default_rng(1)

    def measure(prompt: int, count: int) -> tuple[float, float]:
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=prompt + count + 1, min_length=prompt + count + 1, do_sample=False)
        generator = genai.Generator(model, options)
        start = time.perf_counter()
        generator.append_tokens(numbers.integers(3, 1000, (1, prompt)).astype(np.int32))
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        return prompt / (middle - start), count / max(time.perf_counter() - middle, 1e-9)

    measure(16, 4)
    print(json.dumps({"load seconds": loaded}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        found = {f"prefill {length}": measure(length, 0)[0] for length in question["prompts"]}
        found |= {f"decode at {d}": measure(max(d, 1), question["decoded"])[1] for d in question["depths"]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    serve(Path(sys.argv[2]), int(sys.argv[4]))
