"""Sessions that IREE runs behave as those of a library: what they refuse, what a refusal leaves, how they choose."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slmopt
from slmopt.errors import ArtifactError, InputError
from slmopt.runtime import LanguageModel, Sampling, Session
from slmopt.runtime.library_program import LibraryConversation
from slmopt.runtime.sampler import Sampler
from tests.runtime.stand_in import VOCAB
from tests.toy_model import toy_model

CONTEXT = 20
IDS = [(7 * i * i + 3) % 40 for i in range(15)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = f"cpu:via=mlir,context={CONTEXT},chunk=4"
    return slmopt.compile(toy_model(), target, tmp_path_factory.mktemp("iree") / "toy", verify=False)


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[LanguageModel]:
    with slmopt.open(artifact) as model:
        yield model


@pytest.fixture
def session(model: LanguageModel) -> Iterator[Session]:
    with model.session(threads=1) as session:
        yield session


def test_parts_and_threads_change_nothing(model: LanguageModel, session: Session) -> None:
    whole = session.logits(IDS)
    for threads, splits in ((1, [15]), (1, [1] * 15), (2, [6, 1, 8]), (3, [3, 12])):
        with model.session(threads) as other:
            assert other.threads == threads
            parts, start = [], 0
            for length in splits:
                parts.append(other.logits(IDS[start : start + length]))
                start += length
            assert other.position == 15
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_prefill_and_decode_leave_the_last_logits(session: Session) -> None:
    whole = session.logits(IDS)
    assert (session.last_logits() == whole[-1]).all()
    session.reset()
    session.prefill(IDS[:-1])
    session.decode(IDS[-1])
    np.testing.assert_allclose(session.last_logits(), whole[-1], rtol=0, atol=1e-5 * np.abs(whole).max())
    kept = session.last_logits()
    session.last_logits()[:] = 0  # a copy
    assert (session.last_logits() == kept).all() and session.sample() == int(kept.argmax())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no tokens"),
        ([1, 40], "token 40 at index 1 is out of range: the vocabulary has 40 tokens, 0 to 39"),
        ([-1], "token -1 at index 0 is out of range"),
        ([2**40], "is out of range"),
        ([1] * (CONTEXT + 1), f"{CONTEXT + 1} tokens do not fit: the context has {CONTEXT} positions and 0 are taken"),
        ("text", "token ids were expected, not text"),
    ],
    ids=["none", "beyond", "negative", "huge", "long", "text"],
)
def test_bad_tokens_are_refused_and_change_nothing(session: Session, ids: Any, message: str) -> None:
    for call in (session.prefill, session.logits):
        with pytest.raises(InputError, match=message):
            call(ids)
    assert session.position == 0
    expected = session.logits(IDS)[-1]
    with pytest.raises(InputError):
        session.prefill(ids)
    assert session.position == 15 and (session.last_logits() == expected).all()


def test_a_full_context_takes_no_more_until_it_is_reset(session: Session) -> None:
    first = session.logits(IDS)
    session.prefill([1] * (CONTEXT - 15))
    with pytest.raises(InputError, match=f"1 tokens do not fit: .* {CONTEXT} are taken"):
        session.decode(1)
    session.reset()
    assert session.position == 0 and (session.logits(IDS) == first).all()


def test_nothing_is_sampled_before_a_token_is_taken(session: Session) -> None:
    for call in (session.sample, session.last_logits):
        with pytest.raises(InputError, match="prefill the session with at least one token first"):
            call()
    session.prefill([1])
    session.reset()
    with pytest.raises(InputError, match="nothing to sample from"):
        session.sample()


def test_closed_sessions_and_models_say_so(artifact: Path) -> None:
    model = slmopt.open(artifact)
    session = model.session()
    model.close()
    model.close()
    session.prefill([1, 2])  # outlives its model
    session.close()
    session.close()
    with pytest.raises(InputError, match="the session is closed"):
        session.prefill([1])
    with pytest.raises(InputError, match="the model is closed"):
        model.session()


@pytest.mark.parametrize("threads", [-1, 257])
def test_impossible_numbers_of_threads_are_refused(model: LanguageModel, threads: int) -> None:
    with pytest.raises(InputError, match=f"{threads} threads; give 1 to 256"):
        model.session(threads)


def test_sessions_in_threads_do_not_disturb_each_other(model: LanguageModel, session: Session) -> None:
    expected = session.logits(IDS)
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        with model.session(threads=1) as own:
            for _ in range(5):
                own.reset()
                found[number] = own.logits(IDS)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 3 and all((logits == expected).all() for logits in found.values())


def test_tokens_are_chosen_as_a_library_chooses_them(stand_in: object) -> None:
    """The same draws for the same seed, with every filter and with what was taken before."""
    drawn = np.random.default_rng(5)
    with LanguageModel(str(stand_in)) as model, model.session(threads=1) as session:
        library, sampler = session._conversation, Sampler(VOCAB)
        assert isinstance(library, LibraryConversation)
        for sampling in (Sampling(), Sampling(1.0, seed=7), Sampling(0.7, 20, 0.9, 0.02, 1.3, 11), Sampling(0.0, 5),
                         Sampling(repetition_penalty=1.5)):  # fmt: skip
            session.reset()
            sampler.reset()
            for _ in range(8):
                taken = drawn.integers(0, VOCAB, 3).tolist()
                session.prefill(taken)
                sampler.take(taken)
                assert sampler.choose(session.last_logits(), sampling) == session.sample(sampling)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-1), "temperature is -1"),
        (Sampling(top_p=0), "top_p is 0"),
        (Sampling(top_k=-1), "top_k is -1"),
        (Sampling(seed=-1), "seed is -1"),
        (Sampling(repetition_penalty=0), "repetition_penalty is 0"),
    ],
)
def test_bad_sampling_is_refused(session: Session, sampling: Sampling, message: str) -> None:
    session.prefill([1])
    with pytest.raises(InputError, match=message):
        session.sample(sampling)


@pytest.mark.parametrize("logits", [[0.0, float("nan"), 1.0], [-np.inf] * 3, [0.0, np.inf, 0.0]])
def test_bad_logits_are_refused(logits: list[float]) -> None:
    with pytest.raises(InputError, match=r"is not a number|the largest logit is"):
        Sampler(3).choose(np.array(logits, np.float32), Sampling())


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(lambda m: m.update(runtime="abacus")), "is run by 'abacus', which no plugin here offers"),
        (damage(lambda m: m.pop("states")), "the manifest of .* is damaged"),
        (damage(lambda m: m.update(program="../x")), "not a file of the artifact"),
        (damage(lambda m: m.update(flags=["avx9"])), "compiled for another processor: this one lacks avx9"),
        (damage(lambda m: m.update(steps={"1": "nothing"})), "cannot be loaded|lacks a function"),
        (damage(lambda m: m["parameters"].pop("norm")), "cannot be loaded"),
        (damage(lambda m: m["parameters"].update(norm=[0, 10**9])), "damaged|cannot be loaded"),
        (damage(lambda m: m["hashes"].update({"weights.bin": "0"})), "belongs to another compilation"),
        (lambda path: (path / "program.vmfb").unlink(), "is missing"),
        (lambda path: (path / "program.vmfb").write_bytes(b"nothing"), "cannot be loaded"),
        (lambda path: (path / "weights.bin").unlink(), "cannot be read"),
        (lambda path: (path / "weights.bin").write_bytes(b"SLMW" + bytes(5000)), "format version 0"),
    ],
)
def test_damaged_artifacts_are_refused(
    artifact: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    change(copy)
    with pytest.raises(ArtifactError, match=message):
        slmopt.open(copy)


def test_another_version_of_iree_is_named(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    damage(lambda m: m["versions"].update({"iree-base-compiler": "1.0"}))(tmp_path / "copy")
    (tmp_path / "copy" / "program.vmfb").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"compiled by IREE 1\.0, and .* is here"):
        slmopt.open(tmp_path / "copy")


def test_without_the_package_its_name_is_said(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iree.runtime", None)
    with pytest.raises(InputError, match=r"needs the package iree-base-runtime: pip install 'slmopt\[mlir\]'"):
        slmopt.open(artifact)
