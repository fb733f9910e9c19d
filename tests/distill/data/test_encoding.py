"""Long documents in pieces, and several processes: always the tokens of one call."""

import os
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill.data import encoding
from distill.data.encoders import SlowEncoder, encoder_of, tokenizer_digest
from distill.data.encoding import CannotEncode, Piece, encode_all, pieces
from distill.data.tokenizers import PLAIN_TEXT, load_tokenizer
from teachers.errors import UserError
from teachers.source import BUNDLED

NOVELS = (BUNDLED / "novels.txt").read_text("utf-8")
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+"
)
SPECIAL = ["<|endoftext|>", "<|mask|>", "<|im_start|>"]


def trained(model, trainer, pre_tokenizer=None, normalizer=None):
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator([NOVELS[:60_000], "12345 67 漢字 。"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], mask_token=SPECIAL[1])


def bpe(vocabulary=600, **more):
    return trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), **more,
    )  # fmt: skip


def byte_level(pattern=None):
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


TOKENIZERS = {
    "bundled": lambda: load_tokenizer("bundled:teacher"),
    "gpt-2": lambda: trained(models.BPE(), bpe(), byte_level()),
    "llama-3": lambda: trained(models.BPE(), bpe(), byte_level(LLAMA_3)),
    "prefix space": lambda: trained(models.BPE(), bpe(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace": lambda: trained(models.BPE(), bpe(), pre_tokenizers.Metaspace(prepend_scheme="first")),
    "sentencepiece": lambda: trained(
        models.BPE(unk_token="<|unk|>"),
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<|unk|>", *SPECIAL], show_progress=False, max_token_length=8
        ),
        None,
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "wordpiece": lambda: trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]", *SPECIAL], show_progress=False),
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
    ),
}  # fmt: skip


def texts():
    letters = random.Random(1)
    signs = "漢字東京は晴れ。、 \n\n\n\t  abcé0123456789'sdl.,!?\r🙂\u00a0\u3000"
    return {
        "lines": NOVELS[100_000:103_000],
        "windows": NOVELS[100_000:103_000].replace("\n", "\r\n"),
        "one line": NOVELS[100_000:103_000].replace("\n", " "),
        "blank lines": NOVELS[100_000:103_000].replace("\n", "\n \n\n"),
        "no spaces": "東京は晴れ。漢字、" * 300,
        "numbers": "".join(f"{n} {n * n}\n" for n in range(400)),
        "noise": "x" + "".join(letters.choices(signs, k=3000)),
    }


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_of_a_document_give_the_tokens_of_one_call(name, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 200)
    tokenizer = TOKENIZERS[name]()
    encoder = encoder_of(tokenizer, "text")
    for kind, text in texts().items():
        chunks = [(text[i : i + 170], False) for i in range(0, len(text), 170)]
        parts = list(pieces([*chunks, ("", True)], encoder.cut))
        assert "".join(part.text for part in parts) == text
        ids = [i for _, encoded in encode_all(encoder, parts, 1) for i in encoded.ids.tolist()]
        assert ids == tokenizer(text, **PLAIN_TEXT)["input_ids"], kind
        if kind in ("lines", "windows", "one line"):
            assert len(parts) > 3, kind


def test_documents_are_numbered_and_blank_ones_left_out():
    chunks = [(" \n", False), ("\t", True), ("first", True), ("", True), ("\n", False), ("second", False), (" ", True)]
    assert list(pieces(chunks, lambda *_: None)) == [Piece("", "first", 1, True), Piece("", "\nsecond ", 2, True)]


def test_figures_of_a_text_are_those_of_its_pieces(monkeypatch):
    tokenizer = TOKENIZERS["sentencepiece"]()  # puts a sign in front of every text
    encoder, text = encoder_of(tokenizer, "text"), NOVELS[:5000]
    (whole,) = encoder.encode([Piece("", text, 1, True)])
    monkeypatch.setattr(encoding, "PIECE", 200)
    parts = encoder.encode(list(pieces([(text, True)], encoder.cut)))
    assert len(parts) > 5
    assert sum(part.text_bytes for part in parts) == whole.text_bytes == len(("▁" + text.replace(" ", "▁")).encode())
    assert sum(part.text_tokens for part in parts) == whole.text_tokens == len(whole.ids)


# --- several processes ---------------------------------------------------------------------------------------------


def test_several_processes_give_the_same_in_the_same_order(monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 2000)
    encoder = encoder_of(load_tokenizer("bundled:teacher"), "text")
    parts = [Piece("", NOVELS[i : i + 700], i // 700 + 1, True) for i in range(0, 70_000, 700)]
    started = []
    start = encoding.Worker.__init__
    monkeypatch.setattr(encoding.Worker, "__init__", lambda self, e: (started.append(self), start(self, e))[1])
    one, two = (list(encode_all(encoder, parts, count)) for count in (1, 2))
    assert len(started) == 2
    assert [piece for piece, _ in one] == [piece for piece, _ in two] == parts
    assert [e.ids.tolist() for _, e in one] == [e.ids.tolist() for _, e in two]
    assert all(worker._process.poll() is not None for worker in started), "none is left behind"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_document_that_has_no_tokens_is_named(processes, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 10)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = encoder_of(PreTrainedTokenizerFast(tokenizer_object=words, mask_token="<|mask|>"), "text")
    parts = [Piece("", "a b a b a b" if n != 90 else "a c a b a b", n, True) for n in range(1, 100)]
    with pytest.raises(CannotEncode) as caught:
        list(encode_all(encoder, parts, processes))
    assert caught.value.args[0] == 90


def test_a_lost_process_is_told(monkeypatch):
    encoder = encoder_of(load_tokenizer("bundled:teacher"), "text")
    with encoding.Worker(encoder) as worker:
        worker.submit([Piece("", "text", 1, True)]).result()
        os.kill(worker._process.pid, 9)
        worker._process.wait()
        with pytest.raises(ChildProcessError, match="has gone"):
            worker.submit([Piece("", "text", 1, True)]).result()


# --- special tokens ------------------------------------------------------------------------------------------------

CHAT = "<|im_start|>user\nhello<|endoftext|>\n<|mask|> is no token"


def test_special_tokens_are_text_unless_told(tmp_path):
    tokenizer = trained(models.BPE(), bpe(), byte_level())
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    start, end, mask = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|endoftext|>", "<|mask|>"])
    pieces_ = [Piece("", CHAT, 1, True), Piece("", "no such thing", 2, True)]
    text, tokens = (encoder_of(tokenizer, mode) for mode in ("text", "tokens"))
    as_text, plain = text.encode(pieces_)
    assert as_text.ids.tolist() == tokenizer(CHAT, **PLAIN_TEXT)["input_ids"]
    assert not {start, end, mask} & set(as_text.ids.tolist())
    assert (as_text.spells, plain.spells) == (True, False)
    assert as_text.text_bytes == len(CHAT)
    read, _ = tokens.encode(pieces_)
    assert [i for i in read.ids.tolist() if i in (start, end, mask)] == [start, end]
    assert tokenizer.decode(read.ids) == CHAT
    assert read.spells, "the mask is still letters"
    assert read.text_bytes == len(CHAT) - len("<|im_start|><|endoftext|>")
    assert read.text_tokens == len(read.ids) - 2
    assert tokenizer_digest(tokenizer, text) != tokenizer_digest(tokenizer, tokens)


@pytest.mark.parametrize("special", [True, False])
def test_the_mask_of_a_model_is_letters_whatever_its_tokenizer_calls_it(special):
    """LLaDA's is a special token like others, and SDAR's mask token is none of the special ones."""
    tokenizer = trained(models.BPE(), bpe(), byte_level())
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<|mdm_mask|>", special=special)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    mask = tokenizer.convert_tokens_to_ids("<|mdm_mask|>")
    assert tokenizer.mask_token is None
    for mode in ("text", "tokens"):
        (read,) = encoder_of(tokenizer, mode, mask).encode([Piece("", "a <|mdm_mask|> b", 1, True)])
        assert mask not in read.ids
        (read,) = encoder_of(tokenizer, mode).encode([Piece("", "a <|mdm_mask|> b", 1, True)])
        assert (mask in read.ids) == (mode == "tokens" or not special), "which only the model knows to be its mask"


def test_a_tokenizer_with_a_call_of_its_own_is_called():
    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *args, **more):
            return super()._encode_plus([t.upper() for t in text], *args, **more)

    tokenizer = Own(tokenizer_object=load_tokenizer("bundled:teacher").backend_tokenizer, mask_token="<|mask|>")
    encoder = encoder_of(tokenizer, "text")
    assert isinstance(encoder, SlowEncoder)
    (encoded,) = encoder.encode([Piece("", "abc", 1, True)])
    assert tokenizer.decode(encoded.ids) == "ABC"
    with pytest.raises(UserError, match=r"special_tokens is 'tokens', which Own can not do"):
        encoder_of(tokenizer, "tokens")


def test_the_digest_tells_tokenizers_apart():
    one, two = (trained(models.BPE(), bpe(size), byte_level()) for size in (400, 500))
    digests = [tokenizer_digest(t, encoder_of(t, "text")) for t in (one, two)]
    assert digests[0] != digests[1]
    one("text", truncation=True, max_length=4)  # what it was last called with does not matter
    assert tokenizer_digest(one, encoder_of(one, "text")) == digests[0]
