"""PyTorch eager: transformers with its own cache, by our own Python; answers JSON lines on standard input.

    python eager_worker.py MODEL_DIRECTORY - 32|16 THREADS        float32, or bfloat16
"""

from __future__ import annotations

import json
import sys
import time

_DECODED = 8  # tokens: it is slow


def main() -> None:
    """Answer each question {prompts, depths, decoded} with tokens per second, of the first 128 positions alone."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(sys.argv[4]))
    element = torch.float32 if sys.argv[3] == "32" else torch.bfloat16
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=element).eval()
    print(json.dumps({"load seconds": time.perf_counter() - begin}), flush=True)
    for _ in sys.stdin:
        with torch.no_grad():
            start = time.perf_counter()
            cache = model(torch.randint(0, 1000, (1, 128)), use_cache=True).past_key_values
            prefilled = time.perf_counter()
            for _ in range(_DECODED):
                model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
            decoded = time.perf_counter()
        found = {"prefill 128": 128 / (prefilled - start), "decode at 128": _DECODED / (decoded - prefilled)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
