"""The pass `heal`: a rewritten model learns from the original what the rewrites cost it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from slmopt.declaration import option
from slmopt.errors import ContractError, InputError, UnsupportedError
from slmopt.ir.graph import Module
from slmopt.memory import keep_freed_memory
from slmopt.passes.heal.losses import LOSSES
from slmopt.pipeline import Context, Contract, Lossy, Pass

if TYPE_CHECKING:
    import torch

    from slmopt.passes.heal.texts import Document, Texts
    from slmopt.passes.heal.training import Healed

__all__ = ["Heal"]


@dataclass(frozen=True)
class Heal(Pass):
    """linear(x, w) -> linear(x, w trained to give the original's predictions); so of every float weight.

    The module (student) is distilled against the module that the pipeline got (teacher): AdamW (Loshchilov, Hutter
    2019) on the divergence of their predictions (Hinton, Vinyals, Dean 2015), on the calibration text and on text that
    the teacher samples. Documents are at most as long as the context. Part of the documents are held out; the weights
    with the least loss on them are kept, so that the result is never worse on them than what was there before.
    Weights that several ops read stay one. Quantized weights, integers and constants stay as they are. Where the
    module predicts what the teacher predicts, nothing is done.

    A module read from a file is its own teacher, unless `teacher` names the model it was made from. A healing that was
    killed goes on where it was (the cache directory keeps its state), to the same weights. Memory: of the student's
    weights seven copies in float32, the teacher as it is stored, and activations of one batch.
    """

    name: ClassVar[str] = "heal"
    contract: ClassVar[Contract] = Lossy()
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})
    ensures: ClassVar[frozenset[str]] = frozenset({"healed"})
    compares: ClassVar[bool] = True
    mends: ClassVar[bool] = True

    tokens: int = option(500_000, minimum=1, help="to train on, repeated ones included")
    loss: str = option("kl", choices=LOSSES, help="kl: KL(teacher || student); reverse-kl: KL(student || teacher); js: "
                                                  "Jensen-Shannon")  # fmt: skip
    temperature: float = option(1.0, minimum=0.01, maximum=100.0, help="by which logits are divided in the loss")
    rate: float = option(1e-3, minimum=1e-9, maximum=1.0, help="the highest learning rate; give less where "
                                                                  "little was lost")  # fmt: skip
    batch: int = option(2048, minimum=2, help="positions per step, padding included; one document at least")
    warm_up: float = option(0.05, minimum=0.0, maximum=1.0, help="the share of steps over which the rate rises")
    clip: float = option(1.0, minimum=1e-6, help="the largest norm of a step's gradient")
    sampled: int | None = option(None, minimum=0, help="tokens of text that the teacher samples; none: a quarter of "
                                                       "`tokens`")  # fmt: skip
    held_out: float = option(0.1, minimum=0.0, maximum=0.9, help="the share of documents that are measured with only, "
                                                                 "one at least")  # fmt: skip
    seed: int = option(0, minimum=0, help="of sampling and of the order of documents")
    teacher: str = option("", help="the path of the model to learn from; default: the module that the pipeline got")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        from slmopt.passes.heal.subjects import check_subjects, same_numbers

        teacher = self._find_teacher(context)
        check_subjects(teacher, module)
        if same_numbers(teacher, module):
            return {}
        return self._heal(teacher, module, context)

    def _find_teacher(self, context: Context) -> Module:
        if self.teacher:
            return context.load(self.teacher)
        if context.original is None:
            raise ContractError("heal learns from the module as it was before it was rewritten: run it in a Pipeline, "
                                "give Context(original=...), or name a model with heal{teacher=...}")  # fmt: skip
        return context.original

    def _heal(self, teacher: Module, module: Module, context: Context) -> dict[str, int]:
        from slmopt.passes.heal.parameters import find_parameters, load_parameters, put_back

        values, parameters = load_parameters(module, find_parameters(module))
        if not values:
            frozen = f" (@{parameters.frozen[0]} and others are frozen)" if parameters.frozen else ""
            raise UnsupportedError(f"heal finds no float weights to train in @{module.name}{frozen}: "
                                   "put it before quantization")  # fmt: skip
        if parameters.frozen:
            named = ", ".join(f"@{key}" for key in parameters.frozen)
            context.report(f"heal: these weights are not trained, they hold integers, codes or masks: {named}", 0.0)
        texts = self._find_texts(teacher, context)
        if not context.permits("heal", next(iter(parameters.trained.values())).users[0]):
            return {}
        healed = self._train(teacher, module, values, texts, context.report)
        context.report(f"healed: {healed.before:.4g} -> {healed.after:.4g} nats on held-out text", 1.0)
        if not healed.values:
            return {}
        return put_back(module, parameters, healed.values, f"healed, step {healed.step}")

    # --- text ------------------------------------------------------------------------------------------------------
    def _find_texts(self, teacher: Module, context: Context) -> Texts:
        """Calibration text, part of which is held out, and sampled text; where there is only that, part of it."""
        from slmopt.passes.heal.texts import Texts, split_documents

        documents = context.calibration.documents if context.calibration is not None else ()
        given = [document for document in documents if len(document) > 1]  # of others no token is predicted
        wanted = max(2, self.tokens // 4) if self.sampled is None else self.sampled
        if not given and not wanted:
            raise InputError("heal{sampled=0} trains on calibration text and none is given: give one with --text")
        sampled = self._sample(teacher, wanted, context) if wanted else ()
        texts = split_documents(given or sampled, self.held_out, self.seed)
        texts = Texts((*texts.training, *sampled), texts.held_out) if given else texts
        if not texts.training:
            raise InputError("heal has no text to train on: it holds one document out and there is no other; give more "
                             "text, or let the original sample some with heal{sampled=...}")  # fmt: skip
        return texts

    def _sample(self, teacher: Module, tokens: int, context: Context) -> tuple[Document, ...]:
        """Text of the teacher; the same text is sampled once, also over runs."""
        from slmopt.cache import keep
        from slmopt.passes.heal.checkpoint import fingerprint
        from slmopt.sampled_text import sample_calibration

        def sample() -> bytes:
            found = sample_calibration(
                teacher, tokens, seed=self.seed, report=lambda what, share: context.report(f"heal: {what}", share)
            )
            return json.dumps(found.documents).encode()

        inputs = json.dumps([fingerprint(teacher), tokens, self.seed]).encode()
        return tuple(map(tuple, json.loads(keep("heal-text", inputs, sample))))

    # --- training --------------------------------------------------------------------------------------------------
    def _train(
        self, teacher: Module, module: Module, values: dict[str, torch.Tensor], texts: Texts,
        report: Callable[[str, float], None],
    ) -> Healed:  # fmt: skip
        from slmopt.passes.heal.checkpoint import Checkpoint, fingerprint
        from slmopt.passes.heal.texts import make_batches
        from slmopt.passes.heal.training import Runner, Schedule, Training

        batches = make_batches(texts.training, self.batch, self.tokens, self.seed)
        held_out = make_batches(texts.held_out, self.batch, 1, self.seed, whole=True)
        schedule = Schedule(self.rate, len(batches), round(self.warm_up * len(batches)))
        training = Training(
            Runner(teacher), Runner(module), values, loss=self.loss, temperature=self.temperature, schedule=schedule,
            clip=self.clip, report=lambda what, share: report(f"heal: {what}", share),
        )  # fmt: skip
        options = {name: value for name, value in asdict(self).items() if name != "teacher"}
        checkpoint = Checkpoint([fingerprint(teacher), fingerprint(module), options, asdict(texts)])
        with keep_freed_memory():
            return training.run(batches, held_out, checkpoint)
