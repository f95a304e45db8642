"""Text as it comes: whole characters, stop strings, and nothing lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from slmopt.runtime.detokenize import Detokenizer, cut_at_stop

from .stand_in import BOS, EOS, VOCAB, byte_tokenizer


@pytest.fixture(scope="module")
def bytes_bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_tokenizer(file)
    return Tokenizer.from_file(str(file))


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """As Llama 2's: words begin with a mark, what is not in the vocabulary goes byte by byte."""
    words = ["▁", "▁the", "▁cat", "s", "a", "t", "h", "e", "c", ".", "é"]
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for word in words:
        vocab[word] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a"), ("ca", "t"), ("▁", "cat")]
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], prompt: int = 0) -> list[str]:
    detokenizer = Detokenizer(tokenizer, ids[:prompt])
    return [*(detokenizer.push(id) for id in ids[prompt:]), detokenizer.flush()]


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, VOCAB - 1), max_size=30))
def test_any_bytes_come_out_as_if_decoded_at_once(bytes_bpe: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces(bytes_bpe, ids)) == bytes_bpe.decode(ids)


TEXTS = st.text(st.sampled_from("the cats. é😀€\n\U0001f1e9"), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, data=st.data())
def test_text_comes_out_whole_after_any_prompt(
    bytes_bpe: Tokenizer, byte_fallback: Tokenizer, text: str, data: st.DataObject
) -> None:
    for tokenizer in (bytes_bpe, byte_fallback):
        ids = tokenizer.encode(text).ids
        cut = data.draw(st.integers(0, len(ids)))
        found = pieces(tokenizer, ids, cut)
        before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert before + "".join(found) == (tokenizer.decode(ids) if cut < len(ids) else before)
        assert "\ufffd" not in "".join(found)


def test_characters_wait_until_they_are_whole(bytes_bpe: Tokenizer) -> None:
    ids = bytes_bpe.encode("a😀b").ids
    assert pieces(bytes_bpe, ids) == ["a", "", "", "", "😀", "b", ""]
    assert pieces(bytes_bpe, ids[:3]) == ["a", "", "", "\ufffd"]


def test_special_tokens_are_silent(bytes_bpe: Tokenizer) -> None:
    ids = [BOS, *bytes_bpe.encode("a").ids, EOS, *bytes_bpe.encode("b").ids]
    assert pieces(bytes_bpe, ids, prompt=1) == ["a", "", "b", ""]


def test_a_space_before_the_first_word_after_a_prompt_stays(byte_fallback: Tokenizer) -> None:
    ids = byte_fallback.encode("the cat").ids
    assert pieces(byte_fallback, ids) == ["the", " cat", ""]
    assert pieces(byte_fallback, ids, prompt=1) == [" cat", ""]


SHORT = st.text("ab.", max_size=12)


@settings(max_examples=300)
@given(text=SHORT, stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3), data=st.data())
def test_stop_strings_do_not_depend_on_the_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = list(cut_at_stop(parts, stops))
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected = text
    if ends:
        longest = max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))
        expected = text[: ends[0] - longest]
    assert "".join(found) == expected
    assert all(found)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    assert list(cut_at_stop(["ab", "c", "a", "bd", "x"], ["abd"])) == ["abc", "x"][:1]
    assert list(cut_at_stop(["one\n", "\n", "two"], ["\n\n"])) == ["one"]
    assert list(cut_at_stop(["one\n", "two\n"], ["\n\n"])) == ["one", "\ntwo", "\n"]


SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the shared test models are not beside the repository")
def test_stories_come_out_as_they_are() -> None:
    tokenizer = Tokenizer.from_file(str(SHARED / "models" / "stories260K" / "tokenizer.json"))
    stories = (SHARED / "text" / "tinystories_clean.txt").read_text().split("<|endoftext|>")
    for story in stories[:5]:
        ids = tokenizer.encode(story.strip()).ids
        assert "".join(pieces(tokenizer, ids, prompt=1)) == story.strip()
