"""Corpora: every format, packing, the order of rows, and tokenizers trained here."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import datasets
import numpy as np
import pytest
import torch

from distill.config import DataConfig, TokenizerConfig
from distill.data import corpus as corpora
from distill.data import documents, encoding
from distill.data.corpus import Corpus, TrajectoryCorpus, deal, load_corpus
from distill.data.documents import read_documents
from distill.data.token_files import cache_folder
from distill.data.tokenizers import load_tokenizer, train_tokenizer
from teachers.errors import UserError
from teachers.source import BUNDLED
from tests.forks import ROOT

DOCUMENTS = ["the cat sat on the mat", "a café, naïvely", "third"]
LENGTH = 8


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    # datasets keeps what it converts; the tests must not read an earlier run's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=LENGTH))


def data(path, **more):
    return DataConfig(**{"path": str(path), "length": LENGTH, **more})


def write(folder, kind):
    """The three documents in one of the formats."""
    if kind == "text folder":
        for i, document in enumerate(DOCUMENTS):
            (folder / "deep").mkdir(exist_ok=True)
            (folder / "deep" / f"{i}.txt").write_text(document, "utf-8")
        (folder / "ignored.png").write_bytes(b"\xff")
        return folder
    if kind == "jsonl":
        lines = [json.dumps({"text": d, "n": i}) for i, d in enumerate(DOCUMENTS)]
        (folder / "c.jsonl").write_text("\n".join(lines), "utf-8")
        return folder / "c.jsonl"
    table = datasets.Dataset.from_dict({"text": DOCUMENTS, "n": [0, 1, 2]})
    if kind == "parquet":
        table.to_parquet(folder / "c.parquet")
        return folder / "c.parquet"
    if kind == "saved split":
        datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(folder / "saved")
    else:
        table.save_to_disk(folder / "saved")
    return folder / "saved"


KINDS = ["text folder", "jsonl", "parquet", "saved", "saved split"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_documents(kind, tmp_path):
    assert list(read_documents(data(write(tmp_path, kind)))) == DOCUMENTS


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "c.txt"
    path.write_bytes(b"line one\r\nline two\n")  # line ends are kept as they are
    assert list(read_documents(data(path))) == ["line one\r\nline two\n"]


def test_a_folder_mixes_formats_in_the_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("from text", "utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "from json"}', "utf-8")
    assert list(read_documents(data(tmp_path))) == ["from json", "from text"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_the_column_is_named(kind, tmp_path):
    path = write(tmp_path, kind)
    with pytest.raises(UserError, match=r"'body' .*; its columns are text, n"):
        list(read_documents(data(path, text_column="body")))
    with pytest.raises(UserError, match="holds int, not text"):
        list(read_documents(data(path, text_column="n")))


def test_the_split_is_named(tmp_path):
    path = write(tmp_path, "saved split")
    assert list(read_documents(data(path, split="test"))) == ["third"]
    with pytest.raises(UserError, match=r"'dev' .* it has train, test"):
        list(read_documents(data(path, split="dev")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"text": "whole"}\n{"text": "br', "cannot read"),
        ("c.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("c.parquet", b"PAR1 and no more", "cannot read"),
        ("c.txt", b"ok \xe9 latin-1", r"not UTF-8: byte 0xe9 at offset 3"),
    ],
)
def test_damaged_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(data(tmp_path / name)))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("start", ["", "\ufeff", "\n \n"])
def test_json_may_be_an_array_or_lines(start, tmp_path):
    rows = [{"text": d} for d in DOCUMENTS]
    (tmp_path / "array.json").write_text(start + json.dumps(rows, indent=1), "utf-8")
    (tmp_path / "lines[1]*.jsonl").write_text(start + "\r\n\n".join(map(json.dumps, rows)), "utf-8")
    assert list(read_documents(data(tmp_path / "array.json"))) == DOCUMENTS
    assert list(read_documents(data(tmp_path / "lines[1]*.jsonl"))) == DOCUMENTS, "a name is no pattern"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "whole"}\n["text"]', "holds list in line 2"),
        ('{"text": "whole"}\n{"body": "x"}', "'text' is not in .* its columns are body"),
        ('[{"text": "whole"}, 3]', "holds int in row 2"),
        ('{"text": "\\ud83d"}', r"'\\ud83d', half of a character"),
        ('{"text": null}', "line 1 .* null; remove or fill it"),
        ('{"text":\n"over two lines"}', "line 1: .*one object a line"),
    ],
)
def test_rows_that_are_no_documents(text, message, tmp_path):
    (tmp_path / "c.jsonl").write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        list(read_documents(data(tmp_path / "c.jsonl")))


def test_a_folder_without_a_corpus(tmp_path):
    with pytest.raises(UserError, match="holds no"):
        list(read_documents(data(tmp_path)))


# --- rows ----------------------------------------------------------------------------------------------------------


def test_packing_puts_the_end_of_text_between_documents(tokenizer, tmp_path):
    corpus = load_corpus(data(write(tmp_path, "jsonl")), tokenizer)
    expected = []
    for document in DOCUMENTS:
        expected += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    assert corpus.tokens.tolist() == expected
    assert tokenizer.decode(corpus.tokens) == "".join(f"{d}<|endoftext|>" for d in DOCUMENTS)


def test_blank_documents_are_left_out(tokenizer, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "eight or more"}\n{"text": " \\n"}\n{"text": ""}\n', "utf-8")
    corpus = load_corpus(data(tmp_path / "c.jsonl"), tokenizer)
    assert (corpus.tokens == tokenizer.eos_token_id).sum() == 1


def test_bytes_per_token(tokenizer, tmp_path):
    path = write(tmp_path, "jsonl")
    assert load_corpus(data(path), tokenizer).bytes_per_token == 1.0  # a token a byte, separators not counted
    merged = train_tokenizer(TokenizerConfig(vocabulary=270), data(path))
    corpus = load_corpus(data(path), merged)
    text_bytes = sum(len(d.encode()) for d in DOCUMENTS)
    assert corpus.bytes_per_token == pytest.approx(text_bytes / (len(corpus.tokens) - len(DOCUMENTS)))
    assert corpus.bytes_per_token > 1.05


def test_bytes_per_token_counts_normalised_text(tmp_path):
    # “ is three bytes in the file and one in what the model is asked to predict
    (tmp_path / "c.txt").write_text("“quoted” — text", "utf-8")
    plain = train_tokenizer(TokenizerConfig(vocabulary=259, plain_punctuation=True), data("unused"))
    assert load_corpus(data(tmp_path / "c.txt"), plain).bytes_per_token == 1.0


def test_unpacked_rows_stay_within_documents(tokenizer, tmp_path):
    texts = ["abcdefgh" + "ijklmnop" + "cut", "ABCDEFGH"]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts), "utf-8")
    corpus = load_corpus(data(tmp_path / "c.jsonl", pack=False), tokenizer)
    rows = sorted(tokenizer.decode(row) for row in corpus.batch(0, range(corpus.rows)))
    assert rows == ["ABCDEFGH", "abcdefgh", "ijklmnop"]
    # every epoch has the same rows, never shifted ones
    again = sorted(tokenizer.decode(row) for row in corpus.batch(0, range(corpus.rows, 2 * corpus.rows)))
    assert again == rows


def test_unpacked_documents_that_are_too_short(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"document 3 .* has 5 tokens, fewer than data.length 8"):
        load_corpus(data(write(tmp_path, "jsonl"), pack=False), tokenizer)


def test_too_few_tokens(tokenizer, tmp_path):
    (tmp_path / "c.txt").write_text("abc", "utf-8")
    with pytest.raises(UserError, match=r"has 4 tokens, fewer than data.length 8"):
        load_corpus(data(tmp_path / "c.txt"), tokenizer)


def test_a_heldout_file_is_read_like_the_corpus(tokenizer, tmp_path):
    (tmp_path / "held.txt").write_text("held out text", "utf-8")
    corpus = load_corpus(data(write(tmp_path, "jsonl")), tokenizer, str(tmp_path / "held.txt"))
    assert tokenizer.decode(corpus.tokens) == "held out text<|endoftext|>"


# --- order ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus():
    return Corpus(np.arange(100 * LENGTH + 5), LENGTH, 1.0)


def starts(corpus, seed, positions):
    return corpus.batch(seed, positions)[:, 0].tolist()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_is_a_permutation_of_whole_rows(packed, epoch):
    corpus = Corpus(np.arange(100 * LENGTH + (5 if packed else 0)), LENGTH, 1.0, packed)
    first = epoch * corpus.rows
    batch = corpus.batch(3, range(first, first + corpus.rows))
    assert (batch.diff(dim=1) == 1).all(), "rows are contiguous"
    begin = np.sort(batch[:, 0].numpy())
    assert (np.diff(begin) == LENGTH).all(), "every row once, none overlapping"
    assert starts(corpus, 3, range(first, first + corpus.rows)) != begin.tolist(), "shuffled"
    if not packed:
        assert begin[0] == 0
        assert corpus.rows == 100


def test_epochs_and_seeds_differ(corpus):
    n = corpus.rows
    first, second, other = (starts(corpus, s, r) for s, r in ((0, range(n)), (0, range(n, 2 * n)), (1, range(n))))
    assert first != second
    assert first != other
    offsets = {min(starts(corpus, 0, range(e * n, (e + 1) * n))) for e in range(12)}
    assert len(offsets) > 3, "epochs of a packed corpus cut it at different places"


def test_batches_are_a_pure_function_of_seed_and_position(corpus):
    whole = corpus.batch(5, range(250))  # over two epochs and a half
    for positions in ([0], [249], [98, 99, 100, 101], [200, 3, 150, 3]):
        assert np.array_equal(corpus.batch(5, positions), whole[positions])
    other = Corpus(corpus.tokens, LENGTH, 1.0)
    other.batch(9, range(17))  # history does not matter
    assert np.array_equal(other.batch(5, range(250)), whole)


@pytest.mark.parametrize("tokens", [LENGTH, LENGTH + 1, 2 * LENGTH - 1, 2 * LENGTH, 3 * LENGTH + 2])
def test_small_corpora_never_read_past_their_end(tokens):
    corpus = Corpus(np.arange(tokens), LENGTH, 1.0)
    batch = corpus.batch(0, range(60))
    assert (batch.diff(dim=1) == 1).all()
    assert batch.max() < tokens
    if tokens > LENGTH:
        assert len(set(batch[:, 0].tolist())) > 1


@pytest.mark.parametrize("packed", [True, False])
def test_split_holds_out_the_end_in_whole_rows(packed):
    tokens = np.arange(100 * LENGTH)
    train, held = Corpus(tokens, LENGTH, 2.5, packed).split(0.1)
    assert np.array_equal(np.concatenate([train.tokens, held.tokens]), tokens)
    assert len(held.tokens) == 10 * LENGTH
    for part in (train, held):
        assert (part.length, part.bytes_per_token, part.packed) == (LENGTH, 2.5, packed)
    # at least a row, however small the share
    assert len(Corpus(tokens, LENGTH, 1.0).split(1e-6)[1].tokens) == LENGTH


def test_too_little_to_split():
    with pytest.raises(UserError, match="has 12 tokens, too few"):
        Corpus(np.arange(12), LENGTH, 1.0).split(0.1)


def test_trajectories_are_dealt_as_rows_are():
    tokens = np.arange(30 * LENGTH, dtype=np.int32).reshape(30, LENGTH)
    order = tokens[:, ::-1] % LENGTH
    trajectories, rows = TrajectoryCorpus(tokens, order), Corpus(tokens.reshape(-1), LENGTH, 1.0, packed=False)
    assert trajectories.rows == 30
    for positions in (range(70), [64, 3, 64]):  # over two epochs and a third
        batch = trajectories.batch(5, positions)
        assert batch.dtype == torch.int64
        assert torch.equal(batch[:, 0], rows.batch(5, positions))
        assert torch.equal(batch[:, 1], (batch[:, 0] % LENGTH).flip(1))
    identities = [
        TrajectoryCorpus(*parts).identity() for parts in ((tokens, order), (tokens, order + 1), (order, order))
    ]
    assert len({identity["sha256"] for identity in identities}) == 3
    assert identities[0] == TrajectoryCorpus(tokens.copy(), order.copy()).identity()


def as_before(corpus, seed, position):
    """The order of a corpus of one block, in the words of the commit that runs and references were made with."""
    epoch, index = divmod(position, corpus.rows)
    shuffle = np.random.default_rng([seed, epoch])
    order = shuffle.permutation(corpus.rows)
    spare = len(corpus.tokens) - corpus.rows * corpus.length
    offset = int(shuffle.integers(min(spare, corpus.length) + 1)) if corpus.packed else 0
    return offset + int(order[index]) * corpus.length


@pytest.mark.parametrize("packed", [True, False])
def test_a_corpus_of_one_block_is_dealt_as_it_ever_was(packed):
    corpus = Corpus(np.arange(100 * LENGTH + (5 if packed else 0)), LENGTH, 1.0, packed)
    assert starts(corpus, 7, range(250)) == [as_before(corpus, 7, position) for position in range(250)]


@pytest.mark.parametrize("rows", [33, 47, 48, 49, 64])
def test_of_several_blocks_an_epoch_is_a_permutation_too(rows, monkeypatch):
    monkeypatch.setattr(corpora, "BLOCK", 16)
    for epoch in range(6):
        dealt = list(deal(3, range(epoch * rows, (epoch + 1) * rows), rows, 5))
        order = [row for row, _ in dealt]
        assert sorted(order) == list(range(rows))
        assert len({offset for _, offset in dealt}) == 1
        visited = [row // 16 for row in order]
        assert sum(a != b for a, b in pairwise(visited)) == -(-rows // 16) - 1, "block by block"
        assert order != sorted(order)
    positions = [5 * rows - 1, 0, 3 * rows + 1, 0]
    assert list(deal(3, positions, rows, 5)) == [next(deal(3, [position], rows, 5)) for position in positions]
    firsts = {next(deal(3, [epoch * rows], rows, None))[0] // 16 for epoch in range(30)}
    assert len(firsts) == -(-rows // 16), "any block may come first, the short one too"


def test_the_order_of_a_huge_corpus_takes_little_memory():
    corpora._shuffled.cache_clear()
    rows = 10**11
    assert all(0 <= row < rows for row, _ in deal(0, [0, 1, 5 * rows, 10**15], rows, 3))
    arrays = [corpora._shuffled((0, 0), -(-rows // corpora.BLOCK), 3)[0]]
    assert arrays[0].nbytes < 2**20
    assert corpora._shuffled.cache_info().maxsize * corpora.BLOCK * 8 <= 2**26


# --- the cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def written(cache, monkeypatch):
    """How often a corpus has been tokenized."""
    times = []
    write = corpora._write
    monkeypatch.setattr(corpora, "_write", lambda *arguments: (times.append(1), write(*arguments))[1])
    return times


def test_a_corpus_is_tokenized_once(tokenizer, tmp_path, written):
    path = write(tmp_path, "jsonl")
    first, second = (load_corpus(data(path, length=length), tokenizer) for length in (8, 16))
    assert written == [1]
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.bytes_per_token == second.bytes_per_token
    assert first.tokens.dtype == np.uint16
    assert not first.tokens.flags.writeable
    expected = hashlib.sha256(first.tokens.astype("<u2").tobytes()).hexdigest()[:16]
    assert first.identity() == {"tokens": len(first.tokens), "length": 8, "sha256": expected}


def test_what_shapes_tokens_makes_them_anew(tokenizer, tmp_path, written):
    path = write(tmp_path, "jsonl")
    load_corpus(data(path), tokenizer)
    changes = [{"text_column": "m"}, {"special_tokens": "tokens"}, {"pack": False}, {"pack": False, "length": 3}]
    for number, change in enumerate(changes, 2):
        rows = [json.dumps({"text": 2 * d, "m": d[::-1]}) for d in DOCUMENTS]
        path.write_text("\n".join(rows), "utf-8")
        load_corpus(data(path, **change), tokenizer)
        assert len(written) == number
    load_corpus(data(path), train_tokenizer(TokenizerConfig(vocabulary=270), data(path)))
    assert len(written) == 6
    before = path.stat()
    path.write_text(path.read_text("utf-8").replace("cat", "dog"), "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as large and as old
    corpus = load_corpus(data(path), tokenizer)
    assert len(written) == 7
    assert "dog" in tokenizer.decode(corpus.tokens)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "no figures", "other figures"])
def test_an_entry_that_is_not_whole_is_made_anew(damage, tokenizer, tmp_path, cache, written):
    path = write(tmp_path, "jsonl")
    tokens = load_corpus(data(path), tokenizer).tokens.tolist()
    (entry,) = (p for p in (cache / "corpora").iterdir() if p.is_dir())
    if damage == "no figures":
        (entry / "figures.json").unlink()
    elif damage == "other figures":
        (entry / "figures.json").write_text('{"tokens": 3}', "utf-8")
    else:
        file = entry / "tokens.bin"
        file.write_bytes(file.read_bytes()[: 10 if damage == "truncated" else 0])
    assert load_corpus(data(path), tokenizer).tokens.tolist() == tokens
    assert len(written) == 2


def test_a_mistake_in_a_corpus_leaves_nothing_in_the_cache(tokenizer, tmp_path, cache):
    (tmp_path / "c.jsonl").write_text('{"text": "eight or more"}\n{"text": null}', "utf-8")
    with pytest.raises(UserError, match="line 2"):
        load_corpus(data(tmp_path / "c.jsonl"), tokenizer)
    assert [p.name for p in (cache / "corpora").iterdir() if not p.name.startswith(".lock-")] == []


def test_a_cache_that_cannot_be_written(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", "utf-8")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep tokens in .*file/corpora .*set FEWSTEP_CACHE to a folder"):
        load_corpus(data(write(tmp_path, "jsonl")), tokenizer)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for variables, folder in (
        ({"FEWSTEP_CACHE": "~/own"}, "own/corpora"),
        ({"XDG_CACHE_HOME": str(tmp_path / "xdg")}, "xdg/fewstep/corpora"),
        ({}, ".cache/fewstep/corpora"),
    ):
        for name in ("FEWSTEP_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"HOME": str(tmp_path)} | variables).items():
            monkeypatch.setenv(name, value)
        assert cache_folder() == tmp_path / folder


def test_processes_that_start_together_tokenize_once(tmp_path, cache):
    (tmp_path / "c.txt").write_text("the cat sat on the mat. " * 20_000, "utf-8")
    program = (
        "import sys; from distill.config import DataConfig; from distill.data import corpus;"
        "from distill.data.tokenizers import load_tokenizer; write = corpus._write;"
        "corpus._write = lambda *a: (print('wrote'), write(*a));"
        "c = corpus.load_corpus(DataConfig(path=sys.argv[1], length=8), load_tokenizer('bundled:teacher'));"
        "print(len(c.tokens), c.identity()['sha256'])"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "c.txt")]
    both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in both for line in process.communicate()[0].splitlines()]
    assert lines.count("wrote") == 1
    assert len([line for line in lines if line.startswith("480001 ")]) == 2
    assert len(set(lines)) == 2


def test_memory_does_not_grow_with_the_corpus(tmp_path, cache):
    program = (
        "import resource, sys; from distill.config import DataConfig; from distill.data.corpus import load_corpus;"
        "from distill.data.tokenizers import load_tokenizer; words = load_tokenizer('bundled:teacher');"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "load = lambda p: load_corpus(DataConfig(path=p, length=64), words, processes=1);"
        "load(sys.argv[1]); before = peak(); c = load(sys.argv[2]);"
        "[c.batch(0, range(n, n + 500)) for n in range(0, c.rows, 500)]; c.identity();"
        "print(len(c.tokens), peak() - before)"
    )
    sizes = [1 << 20, 12 << 20]
    for size in sizes:
        (tmp_path / f"{size}.txt").write_text(("the cat sat on the mat.\n" * (size // 24 + 1))[:size], "utf-8")
    words = [sys.executable, "-c", program, *(str(tmp_path / f"{size}.txt") for size in sizes)]
    tokens, megabytes = map(int, subprocess.check_output(words, cwd=ROOT, text=True).split())
    assert tokens == sizes[1] + 1
    assert megabytes < 20, "in one call, 12 MB of text take 3 GB; its tokens are a file of 25 MB"


def test_parts_of_a_corpus_are_told_apart_without_reading_them(tokenizer, tmp_path):
    corpus = load_corpus(data(write(tmp_path, "jsonl")), tokenizer)
    parts = [*corpus.split(0.3), *corpus.split(0.6)]
    assert len({part.identity()["sha256"] for part in (corpus, *parts)}) == 5
    again = load_corpus(data(tmp_path / "c.jsonl"), tokenizer).split(0.3)
    assert [part.identity() for part in again] == [part.identity() for part in parts[:2]]


# --- special tokens in a corpus ------------------------------------------------------------------------------------


def test_documents_that_spell_special_tokens_are_told(tokenizer, tmp_path, capsys):
    path = tmp_path / "c.txt"
    path.write_text("Once there was a boat.\n<|endoftext|>\nOnce there was a pier.\n<|endoftext|>\nThe end", "utf-8")
    for _ in range(2):  # from the cache, too
        corpus = load_corpus(data(path), tokenizer)
        assert (corpus.tokens == tokenizer.eos_token_id).sum() == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"1 document of {path} spells special tokens; they are read as text" in said
    corpus = load_corpus(data(path, special_tokens="tokens"), tokenizer)
    assert (corpus.tokens == tokenizer.eos_token_id).sum() == 3
    assert corpus.bytes_per_token == 1.0
    assert capsys.readouterr().err == ""


def test_the_mask_is_letters_whatever_is_set(tokenizer, tmp_path, capsys):
    (tmp_path / "c.txt").write_text("a <|mask|> and an end<|endoftext|>", "utf-8")
    corpus = load_corpus(data(tmp_path / "c.txt", special_tokens="tokens"), tokenizer)
    assert tokenizer.mask_token_id not in corpus.tokens
    assert (corpus.tokens == tokenizer.eos_token_id).sum() == 1, "a document that ends with one gets no other"
    assert tokenizer.decode(corpus.tokens) == "a <|mask|> and an end<|endoftext|>"
    assert "1 document of" in capsys.readouterr().err


def test_the_tokenizer_of_a_large_text_is_that_of_the_whole(tmp_path, monkeypatch):
    (tmp_path / "c.txt").write_text((BUNDLED / "novels.txt").read_text("utf-8")[:20_000], "utf-8")
    whole = train_tokenizer(TokenizerConfig(vocabulary=400), data(tmp_path / "c.txt"))
    monkeypatch.setattr(encoding, "PIECE", 300)
    monkeypatch.setattr(documents, "AT_ONCE", 700)
    pieces = train_tokenizer(TokenizerConfig(vocabulary=400), data(tmp_path / "c.txt"))
    assert pieces.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()


# --- tokenizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [259, 300])
def test_trained_tokenizers_round_trip_all_text(vocabulary, tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("the cat sat on the mat. the cat sat on the hat. the bat sat on the cat. " * 30, "utf-8")
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=vocabulary), data(path))
    assert len(tokenizer) <= vocabulary
    assert tokenizer.model_max_length == LENGTH
    for text in ("the cat", " lead and trail ", "naïve ☃ 漢字 “quotes”\n\ttabs", "\x00\x7f"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        if vocabulary == 259:
            assert len(ids) == len(text.encode()), "one token a byte"
    if vocabulary == 300:
        assert len(tokenizer) > 259, "it learnt merges"
        assert len(tokenizer("the cat sat")["input_ids"]) < 11


def test_special_tokens_are_single_distinct_ids(tokenizer, tmp_path):
    ids = [tokenizer.eos_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id]
    assert len(set(ids)) == 3
    assert None not in ids
    tokenizer.save_pretrained(tmp_path)
    back = load_tokenizer(str(tmp_path))
    for one in (tokenizer, back):
        assert len(one) == 259
        assert one(f"a{one.mask_token}b")["input_ids"][1] == one.mask_token_id
        assert one.decode([one.mask_token_id]) == "<|mask|>"
        assert one.decode([one.mask_token_id], skip_special_tokens=True) == ""
    assert back.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("plain", [False, True])
def test_plain_punctuation(plain):
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259, plain_punctuation=plain), data("unused"))
    text = "“It’s ‘fine’…” — 1840–1920"
    out = tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False)
    assert out == ("\"It's 'fine'...\" -- 1840-1920" if plain else text)


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(UserError, match="cannot load a tokenizer") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_of_text_token(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="eos_token"):
        load_corpus(data(write(tmp_path, "jsonl")), bare)


def test_unknown_bundled_text():
    with pytest.raises(ValueError, match="no bundled text 'nothing'; bundled texts: bundled:novels"):
        data("bundled:nothing")


def test_text_that_spells_the_mask_token_is_text(tokenizer, tmp_path):
    (tmp_path / "c.txt").write_text("before <|mask|> and <|endoftext|> after", "utf-8")
    tokens = load_corpus(data(tmp_path / "c.txt"), tokenizer).tokens
    assert tokenizer.mask_token_id not in tokens
    assert (tokens == tokenizer.eos_token_id).sum() == 1  # only the boundary that packing adds
    assert tokenizer.decode(tokens[:-1]) == "before <|mask|> and <|endoftext|> after"


def test_a_model_folder_without_a_tokenizer_says_so(tmp_path):
    (tmp_path / "config.json").write_bytes((BUNDLED / "teacher" / "config.json").read_bytes())
    with pytest.raises(UserError, match="holds no tokenizer; give one that does"):
        load_tokenizer(str(tmp_path))
