"""OpenVINO GenAI, run by the peers' Python: converts a model, then answers questions of JSON lines on standard input.

    python openvino_worker.py MODEL_DIRECTORY CONVERTED_DIRECTORY BITS THREADS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def convert(source: Path, output: Path, bits: int) -> None:
    """Weights to `bits` (4: symmetric in groups of 64, embedding and head 8 bits: what optimum calls int4)."""
    if (output / "openvino_model.xml").exists():
        return
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from tokenizer_files import write_tokenizer
    from transformers import AutoTokenizer

    write_tokenizer(source)
    options: dict[str, Any] = {"sym": True, "group_size": 64, "ratio": 1.0} if bits == 4 else {}
    config = OVWeightQuantizationConfig(bits=bits, **options)
    model = OVModelForCausalLM.from_pretrained(source, export=True, quantization_config=config, compile=False)
    model.save_pretrained(output)
    pair = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    for name, part in zip(("openvino_tokenizer.xml", "openvino_detokenizer.xml"), pair, strict=True):
        openvino.save_model(part, output / name)


def serve(directory: Path, threads: int) -> None:
    """Answer each question {prompts, depths, decoded} with tokens per second."""
    import numpy as np
    import openvino
    import openvino_genai

    start = time.perf_counter()
    pipeline = openvino_genai.LLMPipeline(str(directory), "CPU", INFERENCE_NUM_THREADS=threads)
    loaded = time.perf_counter() - start
    numbers = np.random.default_rng(1)

    def generate(prompt: int, count: int) -> Any:
        ids = openvino.Tensor(numbers.integers(3, 1000, (1, prompt)))
        return pipeline.generate(ids, max_new_tokens=count, ignore_eos=True, do_sample=False).perf_metrics

    generate(16, 4)
    print(json.dumps({"load seconds": loaded}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        found = {}
        for length in question["prompts"]:
            found[f"prefill {length}"] = length / (generate(length, 1).get_ttft().mean / 1000)
        for depth in question["depths"]:
            found[f"decode at {depth}"] = 1000 / generate(max(depth, 1), question["decoded"]).get_tpot().mean
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    serve(Path(sys.argv[2]), int(sys.argv[4]))
