"""Prompts and completions: every format, what a row is, and what is refused before anything is trained."""

import copy
import json

import datasets
import numpy as np
import pytest
import torch

from distill.config import DataConfig, TokenizerConfig
from distill.data import encoding, prompted
from distill.data.batches import load_data, training_batch
from distill.data.corpus import TrajectoryCorpus
from distill.data.prompted import PromptedCorpus, load_prompted, with_tail
from distill.data.tokenizers import train_tokenizer
from distill.generation import encoded
from teachers.errors import UserError

LENGTH = 16
PAIRS = [("1+2=", "3"), ("10+20=", "30"), ("naïve?", " sí"), ("", "free")]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MASK = "<|mask|>"


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=LENGTH))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def pairs(tmp_path, rows=PAIRS):
    return write(tmp_path / "c.jsonl", [{"prompt": p, "completion": c} for p, c in rows])


def data(path, format="prompt_completion", **more):
    return DataConfig(**{"path": str(path), "length": LENGTH, "format": format, **more})


def in_order(corpus, mask_id):
    """All rows, as they stand in the data."""
    place = {tuple(row.tolist()): i for i, row in enumerate(corpus.batch(0, range(corpus.rows), mask_id).labels)}
    assert len(place) == corpus.rows
    return place


def row_of(tokenizer, prompt, completion):
    """A row by hand: prompt, completion, end-of-text up to the row's length."""
    ids = encoded(tokenizer, prompt) + encoded(tokenizer, completion)
    return ids + [tokenizer.eos_token_id] * (LENGTH - len(ids))


def saved(tmp_path, kind, columns):
    if kind == "jsonl":
        return write(
            tmp_path / "c.jsonl", [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        )
    table = datasets.Dataset.from_dict({**columns, "other": [0] * len(PAIRS)})
    if kind == "parquet":
        table.to_parquet(str(tmp_path / "c.parquet"))
        return tmp_path / "c.parquet"
    table.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_a_row_is_prompt_completion_and_ends_of_text(kind, tokenizer, tmp_path):
    prompts, completions = zip(*PAIRS, strict=True)
    path = saved(tmp_path, kind, {"question": [*prompts], "answer": [*completions]})
    config = data(path, columns={"prompt": "question", "completion": "answer"})
    batch = training_batch(load_data(config, tokenizer), 0, range(4), LENGTH, tokenizer.mask_token_id, "cpu")
    wanted = {tuple(row_of(tokenizer, p, c)): len(encoded(tokenizer, p)) for p, c in PAIRS}
    for tokens, labels, open_ in zip(batch.canvas.tokens, batch.labels, batch.canvas.open, strict=True):
        given = wanted.pop(tuple(labels.tolist()))
        assert open_.tolist() == [False] * given + [True] * (LENGTH - given)
        assert torch.equal(tokens[~open_], labels[~open_])
        assert (tokens[open_] == tokenizer.mask_token_id).all()
    assert not wanted
    assert batch.canvas.real is None


def test_a_row_depends_on_its_position_alone(tokenizer, tmp_path):
    corpus = load_prompted(data(pairs(tmp_path)), tokenizer)
    whole = corpus.batch(3, range(10), 0)
    for part in (range(3), range(3, 10)):
        some = corpus.batch(3, part, 0)
        assert torch.equal(some.labels, whole.labels[part.start : part.stop])
        assert torch.equal(some.canvas.tokens, whole.canvas.tokens[part.start : part.stop])
    epochs = [sorted(map(tuple, whole.labels[first : first + 4].tolist())) for first in (0, 4)]
    assert epochs[0] == epochs[1]
    assert not torch.equal(whole.labels[:4], corpus.batch(4, range(4), 0).labels)


def test_prompts_alone_have_no_labels(tokenizer, tmp_path):
    corpus = load_prompted(data(pairs(tmp_path), "prompt_only"), tokenizer)
    batch = corpus.batch(0, range(4), tokenizer.mask_token_id)
    assert batch.labels is None
    given = {tuple(row[~open_].tolist()) for row, open_ in zip(batch.canvas.tokens, batch.canvas.open, strict=True)}
    assert given == {tuple(encoded(tokenizer, prompt)) for prompt, _ in PAIRS}


def test_the_last_rows_are_held_out(tokenizer, tmp_path):
    rows = [(f"{i}?", f"{i}!") for i in range(10)]
    train, held = load_prompted(data(pairs(tmp_path, rows)), tokenizer).split(0.2)
    assert (train.rows, held.rows) == (8, 2)
    assert set(in_order(held, 0)) == {tuple(row_of(tokenizer, *row)) for row in rows[8:]}
    assert set(in_order(train, 0)) == {tuple(row_of(tokenizer, *row)) for row in rows[:8]}
    assert train.identity() != held.identity()
    one = load_prompted(data(pairs(tmp_path, rows[:1])), tokenizer)
    with pytest.raises(UserError, match="one row, too few to hold out"):
        one.split(0.2)


def test_a_conversations_last_turn_is_the_completion(tokenizer, tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    corpus = load_prompted(
        data(write(tmp_path / "c.jsonl", [{"messages": messages}]), "messages", length=70), tokenizer
    )
    batch = corpus.batch(0, [0], 0)
    end = tokenizer.eos_token
    prompt = f"<|user|>a\n<|assistant|>b{end}\n<|user|>c\n<|assistant|>"
    given = encoded(tokenizer, prompt)
    assert given.count(tokenizer.eos_token_id) == 1
    assert batch.labels[0].tolist() == given + encoded(tokenizer, "d") + [tokenizer.eos_token_id] * (69 - len(given))
    assert int((~batch.canvas.open).sum()) == len(given)
    # as prompt and completion, the prompt alone, and from Parquet
    both = [{"prompt": messages[:3], "completion": messages[3:]}]
    halves = load_prompted(data(write(tmp_path / "b.jsonl", both), length=70), tokenizer)
    assert torch.equal(halves.batch(0, [0], 0).labels, batch.labels)
    alone = load_prompted(data(tmp_path / "b.jsonl", "prompt_only", length=70), tokenizer)
    assert torch.equal(alone.batch(0, [0], 0).canvas.tokens, batch.canvas.tokens)
    datasets.Dataset.from_dict({"messages": [messages]}).to_parquet(str(tmp_path / "c.parquet"))
    table = load_prompted(data(tmp_path / "c.parquet", "messages", length=70), tokenizer)
    assert torch.equal(table.batch(0, [0], 0).labels, batch.labels)


def test_rows_that_the_teacher_wrote_end_with_their_first_end_of_text():
    tokens, given = np.array([[5, 6, 9, 7, 9], [9, 5, 6, 7, 8]]), np.array([2, 1])
    batch = PromptedCorpus.of(tokens, given, 9).batch(0, range(2), 0)
    both = zip(batch.labels.tolist(), batch.canvas.open.tolist(), strict=True)
    rows = {tuple(labels): tuple(open_) for labels, open_ in both}
    assert rows == {
        (5, 6, 9, 9, 9): (False, False, True, True, True),
        (9, 5, 6, 7, 8): (False, True, True, True, True),
    }


def test_rows_that_the_teacher_wrote_end_with_any_of_its_end_tokens():
    tokens, given = np.array([[5, 8, 7, 6], [8, 5, 9, 8]]), np.array([1, 1])
    batch = PromptedCorpus.of(tokens, given, 9, [9, 8]).batch(0, range(2), 0)
    assert sorted(batch.labels.tolist()) == [[5, 8, 9, 9], [8, 5, 9, 9]]
    written = np.arange(4) >= given[:, None]
    assert with_tail(tokens, written, 9, [9, 8]).tolist() == [[5, 8, 9, 9], [8, 5, 9, 9]]


def test_a_trajectory_is_open_where_it_has_an_order():
    corpus = TrajectoryCorpus(np.array([[5, 6, 7]]), np.array([[-1, 1, 0]]))
    batch = training_batch(corpus, 0, [0], 3, 0, "cpu")
    assert batch.canvas.tokens.tolist() == [[5, 0, 0]]
    assert batch.canvas.open.tolist() == [[False, True, True]]
    assert batch.labels.tolist() == [[5, 6, 7]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("1+2=", "3"), ("x" * 16, "3")], "1 of 2 rows of .* leave no room to write in data.length 16, .*row 2"),
        ([("1+2=", "3"), ("", "3" * 16)], "1 of 2 rows .* completions too long in data.length 16, .*row 2 .*17 tokens"),
        ([("1+2=", "3"), (f"{MASK}+2=", "3")], r"line 2 of .*: the prompt holds the mask token '<\|mask\|>'"),
        ([("1+2=", "3"), ("2+2=", None)], "line 2 of .* has no 'completion': it is null"),
        ([("1+2=", "3"), ("2+2=", 4)], "line 2 of .*: column 'completion' holds int, neither text nor messages"),
        ([("1+2=", "3"), ("2+2=", [])], "line 2 of .*: column 'completion' holds no message"),
        ([("1+2=", "3<|endoftext|>4")], "line 1 of .* goes on after the end-of-text token"),
        ([], "holds no row"),
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused_by_its_number(rows, says, tokenizer, tmp_path):
    with pytest.raises(UserError, match=says) as caught:
        load_prompted(data(pairs(tmp_path, rows)), tokenizer)
    assert "\n" not in str(caught.value)


def test_rows_that_are_too_long_may_be_left_out(tokenizer, tmp_path, capsys):
    rows = [("1+2=", "3"), ("x" * 16, "3"), ("3+4=", "7"), ("", "3" * 16)]
    corpus = load_prompted(data(pairs(tmp_path, rows), too_long="drop"), tokenizer)
    assert set(in_order(corpus, 0)) == {tuple(row_of(tokenizer, *rows[i])) for i in (0, 2)}
    assert "left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="there are no others"):
        load_prompted(data(pairs(tmp_path, rows[1:2]), too_long="drop"), tokenizer)


def test_a_mask_in_a_completion_is_letters(tokenizer, tmp_path):
    corpus = load_prompted(data(pairs(tmp_path, [("a", MASK)])), tokenizer)
    labels = corpus.batch(0, [0], tokenizer.mask_token_id).labels[0]
    assert tokenizer.mask_token_id not in labels
    assert tokenizer.decode(labels[1:9]) == MASK


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "content": "a"}], "line 1 of .*the last of 'messages' has role 'user'"),
        ([{"role": "assistant", "content": "a"}], "line 1 of .*an assistant's turn and nothing before it"),
        ([{"role": "user"}, {"role": "assistant", "content": "b"}], "message 1 of 'messages' is not one with a role"),
        ("a", "line 1 of .*column 'messages' holds str, neither"),
        (None, "line 1 of .* has no 'messages': it is null"),
        (
            [{"role": "fail", "content": "a"}, {"role": "assistant", "content": "b"}],
            "template fails .*no such role",
        ),
        (
            [{"role": "last", "content": "a"}, {"role": "assistant", "content": "b"}],
            "does not write the conversation",
        ),
    ],
)
def test_conversations_that_are_none_are_refused(messages, says, tokenizer, tmp_path):
    path = write(tmp_path / "c.jsonl", [{"messages": messages}])
    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{% if messages[0].role == 'fail' %}{{ raise_exception('no such role') }}{% endif %}"
        "{% if messages[0].role == 'last' %}{{ messages | length }}{% endif %}" + TEMPLATE
    )
    with pytest.raises(UserError, match=says) as caught:
        load_prompted(data(path, "messages", length=64), own)
    assert "\n" not in str(caught.value)


def test_a_prompt_goes_on_with_the_assistants_words(tokenizer, tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is"}]
    path = write(tmp_path / "c.jsonl", [{"prompt": messages, "completion": [{"role": "assistant", "content": " b"}]}])
    alone = load_prompted(data(path, "prompt_only", length=64), tokenizer).batch(0, [0], 0).canvas
    assert tokenizer.decode(alone.tokens[0][~alone.open[0]]) == "<|user|>a\n<|assistant|>It is"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chat_template": None}, "holds messages, but the tokenizer has no chat template"),
        ({"eos_token": None}, "the tokenizer has no end-of-text token, with which completions end"),
    ],
)
def test_what_a_tokenizer_lacks_is_said(change, says, tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    for name, value in change.items():
        setattr(own, name, value)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match=says):
        load_prompted(data(write(tmp_path / "c.jsonl", [{"messages": turns}]), "messages", length=64), own)


def test_files_of_other_shapes_are_refused(tokenizer, tmp_path):
    (tmp_path / "c.txt").write_text("words", "utf-8")
    with pytest.raises(UserError, match=r"is text, but data\.format 'prompt_completion' is made of rows"):
        load_prompted(data(tmp_path / "c.txt"), tokenizer)
    datasets.Dataset.from_dict({"prompt": ["a"], "answer": ["b"]}).to_parquet(str(tmp_path / "c.parquet"))
    with pytest.raises(UserError, match=r"columns\.completion 'completion' is not in .*columns are prompt, answer"):
        load_prompted(data(tmp_path / "c.parquet"), tokenizer)


def test_a_tokenizer_written_in_python_makes_the_same_tokens(tokenizer, tmp_path):
    class Slow(type(tokenizer)):
        def __call__(self, *texts, **how):
            return super().__call__(*texts, **how)

    slow = copy.deepcopy(tokenizer)
    slow.__class__ = Slow
    rows = [*PAIRS, ("a<|endoftext|>b", "c")]
    fast = load_prompted(data(pairs(tmp_path, rows)), tokenizer).batch(0, range(5), 0)
    assert torch.equal(load_prompted(data(tmp_path / "c.jsonl"), slow).batch(0, range(5), 0).labels, fast.labels)
    with pytest.raises(UserError, match=r"row 1 of .* can not be encoded .it holds the mask token"):
        load_prompted(data(pairs(tmp_path, [("a", MASK)])), slow)


def test_tokens_are_made_once_whatever_the_length_of_rows(tokenizer, tmp_path, monkeypatch):
    path = pairs(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    first = load_prompted(data(path), tokenizer)
    monkeypatch.setattr(prompted, "encode_all", None)  # would fail
    again = load_prompted(data(path, length=20), tokenizer)
    assert again.identity()["sha256"] == first.identity()["sha256"]
    for other in ({"columns": {"prompt": "completion", "completion": "prompt"}}, {"format": "prompt_only"}):
        with pytest.raises(TypeError):
            load_prompted(data(path, **other), tokenizer)


def test_many_rows_are_tokenized_by_several_processes_as_by_one(tokenizer, tmp_path, monkeypatch):
    rows = [(f"{number}?", f"{number}!") for number in range(500)]
    one = load_prompted(data(pairs(tmp_path, rows)), tokenizer, processes=1)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoding, "BATCH", 100)
    several = load_prompted(data(tmp_path / "c.jsonl"), tokenizer, processes=2)
    assert several.identity() == one.identity()


def test_a_new_tokenizer_learns_from_prompts_and_completions(tmp_path):
    config = data(pairs(tmp_path, [("seven", "eleven")] * 50))
    merged = train_tokenizer(TokenizerConfig(vocabulary=265), config)
    assert len(merged("seven")["input_ids"]) < 5
    assert len(merged("eleven")["input_ids"]) < 6
