"""Train, export and measure the bundled model: a small Llama that reads and writes Python.

    python slmopt/models/pycode/train.py --minutes 60     # train (resumes from --work), export beside this file
    python slmopt/models/pycode/train.py --evaluate       # write heldout.json
    python slmopt/models/pycode/train.py --sample "def "  # greedy completion

The text is the standard library of the running interpreter, so nothing is downloaded. Needs torch, transformers,
tokenizers and safetensors. The learning rate is a function of the share of the budget that is spent, be the budget
minutes or steps: a run always ends fully decayed, whatever the machine.
"""

import argparse
import csv
import gzip
import hashlib
import json
import lzma
import math
import os
import platform
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<|begin|>", "<|end|>"
EXCLUDED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
HELD_OUT_ONE_IN = 25


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, together with the text and the number of steps."""

    seed: int = 1991
    vocabulary: int = 2048
    hidden: int = 192
    inner: int = 512
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    context: int = 512
    tokens_per_step: int = 4096
    first_context: int = 256  # the training context until `lengthen` of the budget is spent; then `context`
    lengthen: float = 0.6
    matrix_rate: float = 5e-3  # Muon, scaled to the update size of AdamW
    vector_rate: float = 8e-3  # AdamW: embedding and norms
    weight_decay: float = 0.1
    warmup: float = 0.02  # share of the budget


# ---------------------------------------------------------------- text


def is_code(text: str) -> bool:
    """False for empty files and for tables: more than a tenth of the visible characters is digits and backslashes."""
    visible = "".join(text.split())
    return bool(visible) and sum(c.isdigit() or c == "\\" for c in visible) <= len(visible) / 10


def is_held_out(name: str) -> bool:
    """Decided by the file's name alone, so the split is the same for every version of Python."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def read_corpus() -> tuple[dict[str, str], dict[str, str]]:
    """(training, held-out) texts by file name relative to the standard library, in sorted order."""
    root = Path(sysconfig.get_path("stdlib"))
    training: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if EXCLUDED_FOLDERS.intersection(relative.parts) or path.name.startswith("_sysconfigdata"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        if is_code(text):
            name = relative.as_posix()
            (held_out if is_held_out(name) else training)[name] = text
    return training, held_out


def train_tokenizer(texts: list[str], size: int) -> Any:
    """Byte-level BPE: no text is out of vocabulary. Encoding puts BEGIN in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[BEGIN, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


class Windows:
    """Training windows: BEGIN, then a run of tokens that starts half the time at a line without indentation.

    A window depends on the seed and the step alone, so a resumed run sees what an uninterrupted one would.
    """

    def __init__(self, texts: list[str], tokenizer: Any, seed: int) -> None:
        import numpy

        self.seed = seed
        self.begin = tokenizer.token_to_id(BEGIN)
        end = tokenizer.token_to_id(END)
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        self.stream = numpy.concatenate([[*item.ids, end] for item in encoded]).astype(numpy.int64)
        ends_line = [tokenizer.decode([i]).endswith("\n") or i == end for i in range(tokenizer.get_vocab_size())]
        self.line_starts = numpy.flatnonzero(numpy.array(ends_line)[self.stream]) + 1

    def draw(self, step: int, count: int, context: int) -> Any:
        """int64[count, context + 1]"""
        import numpy

        generator = numpy.random.default_rng([self.seed, step])
        last = len(self.stream) - context
        starts = generator.integers(0, last, count)
        at_line = self.line_starts[generator.integers(0, len(self.line_starts), count)]
        use_line = (generator.random(count) < 0.5) & (at_line < last)
        starts = numpy.where(use_line, at_line, starts)
        rows = self.stream[starts[:, None] + numpy.arange(context)]
        return numpy.concatenate([numpy.full((count, 1), self.begin), rows], axis=1)


# ---------------------------------------------------------------- training


def new_model(recipe: Recipe) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        use_cache=False,  # while training; the exported config says True
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:  # residual branches start silent
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def new_optimizers(model: Any, recipe: Recipe) -> list[Any]:
    """Muon for the matrices inside the blocks, AdamW for the (tied) embedding and the norms."""
    import torch

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    vectors = [p for n, p in model.named_parameters() if p.ndim != 2]
    embedding = [model.get_input_embeddings().weight]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        [{"params": embedding, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.vector_rate,
        betas=(0.9, 0.95),
    )
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def rate_at(progress: float, warmup: float) -> float:
    """Linear warm-up to 1, then a cosine to 0, over the share of the budget that is spent."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def loss_of(model: Any, batch: Any, bf16: bool) -> Any:
    import torch

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(input_ids=batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@dataclass
class Run:
    """A training run: what a checkpoint holds, so that a run that was cut off goes on where it was."""

    model: Any
    optimizers: list[Any]
    folder: Path
    step: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)  # step, seconds, training loss, held-out loss (nats a token)

    def save(self) -> None:
        import torch

        state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        part = self.folder / "checkpoint.part"
        torch.save({**state, "step": self.step, "spent": self.seconds, "losses": self.curve}, part)
        os.replace(part, self.folder / "checkpoint.pt")

    def restore(self) -> bool:
        import torch

        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.curve = state["step"], state["spent"], state["losses"]
        return True

    def advance(self, batch: Any, rate: float, bf16: bool) -> float:
        """One step at `rate` times the peak learning rates; the loss before it, in nats a token."""
        loss = loss_of(self.model, batch, bf16)
        loss.backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss)


def new_run(folder: Path, recipe: Recipe) -> Run:
    model = new_model(recipe)
    return Run(model, new_optimizers(model, recipe), folder)


def train(options: argparse.Namespace, recipe: Recipe) -> None:
    import torch

    options.work.mkdir(parents=True, exist_ok=True)
    training, held_out = read_corpus()
    tokenizer = train_tokenizer(list(training.values()), recipe.vocabulary)
    windows = Windows(list(training.values()), tokenizer, recipe.seed)
    probe = torch.from_numpy(Windows(list(held_out.values()), tokenizer, 0).draw(0, 32, recipe.first_context))
    run = new_run(options.work, recipe)
    run.restore()
    progress, saved_at, losses = 0.0, time.perf_counter(), list[float]()
    while progress < 1:
        start = time.perf_counter()
        progress = (run.step + 1) / options.steps if options.steps else run.seconds / (60 * options.minutes)
        context = recipe.context if progress >= recipe.lengthen else recipe.first_context
        batch = torch.from_numpy(windows.draw(run.step, recipe.tokens_per_step // context, context))
        losses.append(run.advance(batch, rate_at(progress, recipe.warmup), options.bf16))
        run.seconds += time.perf_counter() - start
        if run.step % 50 == 0 or progress >= 1:
            with torch.no_grad():
                probed = float(loss_of(run.model, probe, False))
            run.curve.append([run.step, round(run.seconds, 1), round(sum(losses) / len(losses), 4), round(probed, 4)])
            losses.clear()
            print("step {:.0f}  {:.0f} s  training {:.4f}  held out {:.4f}".format(*run.curve[-1]), flush=True)
        if time.perf_counter() - saved_at > 120 or progress >= 1:
            saved_at = time.perf_counter()
            run.save()


def export(options: argparse.Namespace, recipe: Recipe) -> None:
    """Write the checkpoint as a Hugging Face directory in float16, with its loss curve and record."""
    import torch
    from transformers import PreTrainedTokenizerFast

    run = new_run(options.work, recipe)
    if not run.restore():
        raise SystemExit(f"no checkpoint.pt in {options.work}: train first, or name the folder with --work")
    training, _ = read_corpus()
    tokenizer = train_tokenizer(list(training.values()), recipe.vocabulary)
    run.model.config.use_cache = run.model.generation_config.use_cache = True
    run.model.to(torch.float16).save_pretrained(options.output)
    (options.output / "model.safetensors").chmod(0o644)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(options.output)
    with (options.output / "loss.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["step", "tokens_seen", "training_nats_per_token", "held_out_nats_per_token"])
        rows.writerows([int(s), int(s) * recipe.tokens_per_step, loss, probed] for s, _, loss, probed in run.curve)
    record = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.step,
        "tokens_seen": run.step * recipe.tokens_per_step,
        "minutes": round(run.seconds / 60, 1),
        "training_files": len(training),
        "training_bytes": sum(len(t.encode()) for t in training.values()),
        "training_sha256": digest_of(training),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    write_json(options.output / "training.json", record)


# ---------------------------------------------------------------- evaluation


def digest_of(texts: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name}\0{text}\0" for name, text in texts.items()).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer): the stored float16 weights, computed in float32 by eager transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def bits_of(model: Any, tokenizer: Any, text: str) -> float:
    """Bits the model needs for `text`: every token is predicted from BEGIN and, past the first half
    window, from at least half a context of the text before it."""
    import torch

    context = model.config.max_position_embeddings
    ids = tokenizer(text, add_special_tokens=False).input_ids
    stride, nats, scored = context // 2, 0.0, 0
    while scored < len(ids):
        first = max(0, scored + stride - context + 1) if scored else 0
        last = min(len(ids), first + context - 1)
        row = torch.tensor([[tokenizer.bos_token_id, *ids[first:last]]])
        with torch.no_grad():
            logits = model(input_ids=row[:, :-1]).logits[0].double()
        chosen = torch.log_softmax(logits, -1).gather(1, row[0, 1:, None])[:, 0]
        nats -= float(chosen[scored - first :].sum())
        scored = last
    return nats / math.log(2)


def long_lines(texts: Iterable[str]) -> list[str]:
    """Lines of more than 25 characters, without indentation: those that say something."""
    return [line.strip() for text in texts for line in text.splitlines() if len(line.strip()) > 25]


def share(texts: Iterable[str], seen: set[str]) -> float:
    """The share of the texts' long lines that were seen."""
    lines = long_lines(texts)
    return sum(line in seen for line in lines) / max(1, len(lines))


def evaluate(options: argparse.Namespace) -> None:
    """Write heldout.json: bits per byte of the model, of gzip and of xz on the held-out files."""
    model, tokenizer = load(options.output)
    training, held_out = read_corpus()
    seen = set(long_lines(training.values()))
    sizes = {name: len(text.encode()) for name, text in held_out.items()}
    bits = {}
    for name, text in held_out.items():
        bits[name] = bits_of(model, tokenizer, text)
        print(f"{name}: {bits[name] / sizes[name]:.4f} bits per byte", flush=True)
    total, everything = sum(sizes.values()), "".join(held_out.values()).encode()
    packed = {
        "gzip -9": gzip.compress(everything, 9, mtime=0),
        "xz -9e": lzma.compress(everything, preset=9 | lzma.PRESET_EXTREME),
    }
    result = {
        "bits_per_byte": {
            "model": round(sum(bits.values()) / total, 4),
            **{name: round(8 * len(data) / total, 4) for name, data in packed.items()},
        },
        "held_out_bytes": total,
        "lines_in_training": round(share(held_out.values(), seen), 4),
        "held_out_sha256": digest_of(held_out),
        "weights_sha256": hashlib.sha256((options.output / "model.safetensors").read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "files": {
            name: {
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "bytes": sizes[name],
                "lines_in_training": round(share([text], seen), 4),
                "bits_per_byte": round(bits[name] / sizes[name], 4),
            }
            for name, text in held_out.items()
        },
    }
    write_json(options.output / "heldout.json", result)
    print(json.dumps(result["bits_per_byte"]))


def complete(folder: Path, prompt: str, tokens: int, temperature: float = 0.0, seed: int = 0) -> str:
    """The prompt and its continuation; greedy at temperature 0."""
    import torch

    model, tokenizer = load(folder)
    torch.manual_seed(seed)
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    row = torch.tensor([tokenizer(prompt).input_ids])
    return str(tokenizer.decode(model.generate(row, max_new_tokens=tokens, **choice)[0], skip_special_tokens=True))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--export", action="store_true", help="write the model of the last checkpoint, without training"
    )
    action.add_argument("--evaluate", action="store_true", help="measure the model in --output and write heldout.json")
    action.add_argument("--sample", metavar="PROMPT", help="print a completion by the model in --output")
    parser.add_argument("--output", type=Path, default=HERE, help="the model's directory (default: beside this file)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/pycode"), help="checkpoint folder; training resumes from it"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="budget in minutes of training")
    parser.add_argument("--steps", type=int, help="budget in steps, instead of minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast: faster where the processor has it")
    parser.add_argument("--tokens", type=int, default=80, help="length of the sample")
    parser.add_argument("--temperature", type=float, default=0.0)
    return parser.parse_args()


def main() -> None:
    options, recipe = parse_options(), Recipe()
    import torch

    torch.set_num_threads(options.threads)
    if options.sample is not None:
        print(complete(options.output, options.sample, options.tokens, options.temperature))
    elif options.evaluate:
        evaluate(options)
    else:
        if not options.export:
            train(options, recipe)
        export(options, recipe)


if __name__ == "__main__":
    main()
