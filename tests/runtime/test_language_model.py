"""The binding: opening, generation, sessions, logits and perplexity, against the stand-in's arithmetic."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmopt.errors import ArtifactError, InputError, SlmError
from slmopt.runtime import LanguageModel, Sampling, SamplingOptions, open

from .stand_in import BOS, CONTEXT, EOS, VOCAB, expected_greedy, expected_logits, write_stand_in


def test_what_a_model_says_of_itself(model: LanguageModel) -> None:
    assert (model.name, model.vocab, model.context) == ("standin", VOCAB, CONTEXT)
    assert (model.bos, model.eos) == (BOS, frozenset({EOS}))
    assert "cpu:isa=test" in repr(model)


def test_logits_equal_the_arithmetic_of_the_stand_in(model: LanguageModel) -> None:
    ids = [BOS, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    expected = [expected_logits(ids[: i + 1]) for i in range(len(ids))]
    found = model.logits(ids)
    assert found.dtype == np.float32 and found.shape == (len(ids), VOCAB)
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    np.testing.assert_array_equal(model.logits(np.array(ids)), found)  # numpy integers, and a session used before


def test_generation_follows_the_greedy_path(model: LanguageModel) -> None:
    prompt = model.encode("the")
    expected = expected_greedy(prompt, 20)
    stop = expected.index(EOS) if EOS in expected else 20
    assert list(model.generate_ids(prompt, 20)) == expected[:stop]
    text = model.tokenizer.decode([*prompt, *expected[:stop]])[len(model.tokenizer.decode(prompt)) :]
    assert model.generate(prompt, 20) == text
    assert "".join(model.generate(prompt, 20, stream=True)) == text
    assert "".join(model.stream(prompt, 20)) == text


def test_text_prompts_get_one_bos(model: LanguageModel) -> None:
    ids = model.encode("the hat")
    assert ids[0] == BOS and model.tokenizer.decode(ids) == "the hat"
    assert model.encode("<s>the hat") == ids
    assert model.generate("the hat", 15) == model.generate(ids, 15)
    assert model.encode("") == [BOS]


def test_generation_ends(model: LanguageModel) -> None:
    prompt = [BOS, 1, 2]
    ids = list(model.generate_ids(prompt, 30))
    assert list(model.generate_ids(prompt, 4)) == ids[:4]
    assert list(model.generate_ids(prompt, 0)) == []
    model.eos = frozenset({ids[5]})
    assert list(model.generate_ids(prompt, 30)) == ids[: ids.index(ids[5])]
    model.eos = frozenset()
    assert len(list(model.generate_ids(prompt, 1000))) == CONTEXT - len(prompt) + 1


def test_stop_strings_cut_the_text(model: LanguageModel) -> None:
    model.eos = frozenset()
    whole = model.generate([BOS], 40)
    stop = whole[9:11]
    assert model.generate([BOS], 40, stop=stop) == whole[: whole.index(stop)]
    assert model.generate([BOS], 40, stop=["never\nthere", stop]) == whole[: whole.index(stop)]
    with pytest.raises(TypeError, match="typical_p"):
        model.generate([BOS], 40, typical_p=0.9)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="stop strings"):
        model.generate([BOS], 40, stop=[""])


def test_a_seed_gives_the_same_text(model: LanguageModel) -> None:
    options: SamplingOptions = {
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 1,
    }
    other: SamplingOptions = {**options, "seed": 2}
    assert model.generate([BOS], 30, **options) == model.generate([BOS], 30, **options)
    assert model.generate([BOS], 30, **options) != model.generate([BOS], 30, **other)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (list(range(CONTEXT + 1)), {}, f"{CONTEXT + 1} tokens do not fit: the context has {CONTEXT} positions"),
        ([1, VOCAB], {}, f"token {VOCAB} at index 1 is out of range: the vocabulary has {VOCAB} tokens"),
        ([-1], {}, "token -1 at index 0"),
        ([2**40], {}, "token 1099511627776 at index 0"),
        ([], {}, "the prompt is empty"),
        ([1], {"max_tokens": -1}, "max_tokens is -1"),
        ([1], {"temperature": -2.0}, "temperature is -2"),
        ([1], {"top_p": 0.0}, "top_p is 0"),
    ],
)
def test_bad_input_shows_at_the_call(
    model: LanguageModel, prompt: list[int], options: dict[str, Any], message: str
) -> None:
    before = model.generate([BOS], 8)
    with pytest.raises(InputError, match=message):
        model.stream(prompt, **options)  # before anything is asked of the iterator
    assert model.generate([BOS], 8) == before


def test_sessions_keep_their_own_state(model: LanguageModel) -> None:
    with model.session(threads=1) as first, model.session(threads=3) as second:
        assert (first.threads, second.threads) == (1, 3)
        first.prefill([1, 2])
        second.prefill([5])
        first.decode(3)
        second.prefill([6, 7, 8])
        np.testing.assert_array_equal(first.last_logits(), np.array(expected_logits([1, 2, 3]), np.float32))
        np.testing.assert_array_equal(second.last_logits(), np.array(expected_logits([5, 6, 7, 8]), np.float32))
        assert (first.position, second.position) == (3, 4)
        first.reset()
        with pytest.raises(InputError, match="nothing to sample"):
            first.sample()
        rows = second.logits([9, 10])
        np.testing.assert_array_equal(rows[1], np.array(expected_logits([5, 6, 7, 8, 9, 10]), np.float32))
        assert second.sample() == int(np.argmax(rows[1]))
    with pytest.raises(InputError, match="the session is closed"):
        first.prefill([1])
    first.close()
    with pytest.raises(InputError, match="-2 threads"):
        model.session(threads=-2)


def test_many_threads_at_once_give_what_one_gives(model: LanguageModel) -> None:
    prompts = [[BOS, i, 2 * i] for i in range(6)]
    expected = [model.generate(prompt, 40, temperature=1.0, seed=3) for prompt in prompts]
    found: dict[int, str] = {}

    def work(index: int) -> None:
        found[index] = model.generate(prompts[index], 40, temperature=1.0, seed=3)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(6)] == expected


def test_one_session_serves_several_threads_in_turn(model: LanguageModel) -> None:
    with model.session(threads=2) as session:

        def work() -> None:
            for _ in range(20):
                session.decode(1)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.position == 60


def test_an_abandoned_stream_gives_its_session_back(model: LanguageModel) -> None:
    stream = model.stream([BOS], 50)
    next(stream)
    del stream
    gc.collect()
    assert model._idle is not None
    interleaved = [model.generate_ids([BOS], 12), model.generate_ids([BOS, 1], 12)]
    together = list(zip(*interleaved, strict=True))
    assert [pair[0] for pair in together] == expected_greedy([BOS], 12)


def test_a_model_works_on_after_a_fork(model: LanguageModel) -> None:
    expected = list(model.generate_ids([BOS], 10))
    child = os.fork()
    if child == 0:
        os._exit(0 if list(model.generate_ids([BOS], 10)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(model.generate_ids([BOS], 10)) == expected


def test_an_artifact_that_was_compiled_again_is_the_new_one(tmp_path: Path) -> None:
    """The loader of libraries knows the old one under the same path."""
    write_stand_in(tmp_path / "model")
    with LanguageModel(tmp_path / "model") as old:
        write_stand_in(tmp_path / "model", flags=["-DCONTEXT=64"])
        with LanguageModel(tmp_path / "model") as new, LanguageModel(tmp_path / "model") as again:
            assert (old.context, new.context, again.context) == (96, 64, 64)


def test_sessions_outlive_the_model(stand_in: Path) -> None:
    model = open(stand_in)
    session = model.session()
    model.close()
    model.close()
    session.prefill([1])
    session.close()
    with pytest.raises(InputError, match="the model is closed"):
        model.session()


def oracle_nats(ids: list[int]) -> float:
    nats = 0.0
    for i in range(len(ids) - 1):
        row = expected_logits(ids[: i + 1])
        nats += math.log(math.fsum(math.exp(value) for value in row)) - row[ids[i + 1]]
    return nats


def test_perplexity_is_that_of_the_convention(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stories = ["the hat", "  an ant\n", " \n", "x", "the " * 60]
    documents = [[BOS, *model.tokenizer.encode(story.strip()).ids][:CONTEXT] for story in stories if story.strip()]
    expected = sum(oracle_nats(ids) for ids in documents)
    result = model.perplexity("<|endoftext|>".join(stories))
    assert result.tokens == sum(len(ids) - 1 for ids in documents)
    assert result.nats == pytest.approx(expected, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(expected / result.tokens), rel=1e-12)
    assert model.perplexity(stories) == model.perplexity(documents) == result
    monkeypatch.setattr("slmopt.runtime.language_model._LOGITS_AT_ONCE", 5 * VOCAB)  # several parts a document
    assert model.perplexity(documents).nats == pytest.approx(expected, rel=1e-12)


def test_perplexity_refuses_what_it_cannot_score(model: LanguageModel) -> None:
    with pytest.raises(InputError, match="no token to predict"):
        model.perplexity(["", "  "])
    with pytest.raises(InputError, match=f"token {VOCAB} at index 2"):
        model.perplexity([[1, 2, VOCAB]])
    with pytest.raises(InputError, match="token -1 at index 0"):
        model.perplexity([[-1, 2, 3]])


@pytest.fixture
def copy(stand_in: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(stand_in, tmp_path / "copy")
    yield tmp_path / "copy"


def change_manifest(artifact: Path, **changes: object) -> None:
    file = artifact / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def expect(error: type[SlmError], message: str, path: Path) -> SlmError:
    with pytest.raises(error, match=message) as caught:
        open(path)
    return caught.value


def test_what_is_no_artifact_is_refused(copy: Path, tmp_path: Path) -> None:
    expect(InputError, "nothing is there", tmp_path / "absent")
    expect(InputError, "a file is there", copy / "slm.h")
    expect(InputError, "is not an artifact: it has no manifest.json", tmp_path)
    (copy / "manifest.json").write_text('{"name": ')
    expect(ArtifactError, "cannot be read", copy)
    (copy / "manifest.json").write_text("[]")
    expect(ArtifactError, "a JSON object was expected", copy)


def test_a_missing_or_foreign_library_is_refused(copy: Path) -> None:
    change_manifest(copy, library="../elsewhere.so")
    expect(ArtifactError, "not a file of the artifact", copy)
    change_manifest(copy, library=None)
    expect(ArtifactError, "has no library", copy)
    change_manifest(copy, library="libabsent.so")
    expect(ArtifactError, r"libabsent.so is missing", copy)
    library = copy / "libforeign.so"
    content = bytearray((copy / "libstandin.so").read_bytes())
    content[18:20] = (243).to_bytes(2, "little")  # e_machine: RISC-V
    library.write_bytes(content)
    change_manifest(copy, library="libforeign.so")
    error = expect(ArtifactError, "compiled for another machine", copy)
    assert isinstance(error.__cause__, OSError)
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", str(copy / "libempty.so")], check=True)
    change_manifest(copy, library="libempty.so")
    expect(ArtifactError, "is not a library of slmopt", copy)


def test_the_librarys_own_refusals_come_through(copy: Path) -> None:
    (copy / "weights.bin").write_bytes((copy / "weights.bin").read_bytes()[:-1])
    expect(ArtifactError, "weights.bin is damaged", copy)
    (copy / "weights.bin").unlink()
    expect(ArtifactError, "cannot open .*weights.bin: No such file", copy)


@pytest.mark.skipif(sys.platform != "linux" or not Path("/proc/cpuinfo").exists(), reason="asks /proc for the CPU")
def test_an_artifact_of_another_cpu_is_refused_at_open(tmp_path: Path) -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    absent = next(name for name in ("xop", "fma4", "sse4a") if name not in flags)
    write_stand_in(tmp_path / "other", flags=[f'-DFEATURES=(const char*[]){{"{absent}",0}}'])
    expect(ArtifactError, f"this CPU lacks '{absent}'", tmp_path / "other")


def test_text_without_a_tokenizer(copy: Path) -> None:
    change_manifest(copy, tokenizer=None)
    with open(copy) as model:
        assert list(model.generate_ids([BOS], 5)) == expected_greedy([BOS], 5)
        with pytest.raises(InputError, match="has no tokenizer: give token ids"):
            model.generate("the")
    change_manifest(copy, tokenizer="tokenizer.json")
    (copy / "tokenizer.json").write_text("{}")
    with open(copy) as model, pytest.raises(ArtifactError, match="cannot be read as a tokenizer"):
        model.generate("the")


def test_an_unseen_prompt_without_bos_is_refused(copy: Path) -> None:
    change_manifest(copy, bos_token_id=None)
    with open(copy) as model:
        assert model.encode("the")[0] != BOS
        with pytest.raises(InputError, match="no BOS token to begin with"):
            model.generate("")


def test_opening_imports_nothing_heavy(stand_in: Path) -> None:
    code = (
        "import sys, slmopt.runtime\n"
        f"model = slmopt.runtime.open({str(stand_in)!r})\n"
        f"print(list(model.generate_ids([{BOS}], 3)))\n"
        "print(sorted({'numpy', 'torch', 'tvm', 'transformers', 'tokenizers'} & set(sys.modules)))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == [str(expected_greedy([BOS], 3)), "[]"]


def test_sampling_defaults_are_those_of_c(model: LanguageModel) -> None:
    assert Sampling() == Sampling(0.0, 0, 1.0, 0.0, 1.0, 0)
    with model.session() as session:
        session.prefill([BOS])
        assert session.sample() == session.sample(Sampling()) == expected_greedy([BOS], 1)[0]
