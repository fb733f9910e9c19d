"""What is read as a corpus is decided by content and layout, and what is not is refused by name."""

import json

import pytest

from distill.config import DataConfig
from distill.data import documents
from distill.data.documents import corpus_digest, read_chunks, read_documents
from teachers.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
BOOK = "Chapter One\r\nIt was late.\n"


def data(path, **more):
    return DataConfig(**{"path": str(path), "length": 8, **more})


def texts(path, **more):
    return list(read_documents(data(path, **more)))


def refused(path, *parts, **more):
    with pytest.raises(UserError) as caught:
        texts(path, **more)
    assert str(caught.value).isprintable()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def parquet(path, rows, column="text"):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({column: rows}), path)
    return path


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["book.txt", "BOOK.TXT", "book.md", "book", "book.rst"])
def test_a_byte_order_mark_is_dropped(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + BOOK.encode())
    assert texts(tmp_path / name) == [BOOK]


def test_a_byte_order_mark_in_front_of_every_document_is_dropped(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(BOOK, "utf-8-sig")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "\ufeffrow, and \ufeff within"}), "utf-8-sig")
    # line ends are those that the platform writes
    assert [t.splitlines() for t in texts(tmp_path)] == [
        BOOK.splitlines(),
        BOOK.splitlines(),
        ["row, and \ufeff within"],
    ]


def test_large_text_comes_in_chunks_of_whole_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "AT_ONCE", 5)
    text = "漢字🙂é" * 9
    (tmp_path / "c.txt").write_text(text, "utf-8")
    chunks = list(read_chunks(data(tmp_path / "c.txt")))
    assert len(chunks) > 9
    assert [ends for _, ends in chunks] == [False] * (len(chunks) - 1) + [True]
    assert texts(tmp_path / "c.txt") == [text]


@pytest.mark.parametrize(("content", "offset"), [("漢字".encode() + b"\xff", 6), ("漢字".encode() + b"ab\xe6\xbc", 8)])
def test_what_is_not_utf_8_is_told_by_its_offset_in_the_file(content, offset, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "AT_ONCE", 4)
    (tmp_path / "c.txt").write_bytes(content)
    refused(tmp_path / "c.txt", "not UTF-8", f"at offset {offset};", f"0x{content[offset]:02x}")


def test_suffixes_in_capitals_mean_what_small_ones_do(tmp_path):
    (tmp_path / "TRAIN.JSONL").write_text('{"text": "row"}\n', "utf-8")
    assert texts(tmp_path / "TRAIN.JSONL") == ["row"]
    (tmp_path / "A.TXT").write_text("capital", "utf-8")
    (tmp_path / "b.Txt").write_text("both", "utf-8")
    parquet(tmp_path / "C.PARQUET", ["table"])
    (tmp_path / "TRAIN.JSONL").rename(tmp_path / "D.Json")
    assert sorted(texts(tmp_path)) == ["both", "capital", "row", "table"]


# --- formats that are not read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("t.csv", "table"), ("T.TSV", "table"), ("z.jsonl.gz", "compressed"), ("z.txt.zst", "compressed"),
        ("z.zip", "compressed"), ("z.arrow", "save_to_disk"), ("book.pdf", "not read"), ("tokens.npy", "not read"),
    ],
)  # fmt: skip
def test_other_formats_are_refused_by_name(name, says, tmp_path):
    (tmp_path / name).write_text("id,text\n1,The ferry left\n", "utf-8")
    refused(tmp_path / name, name, says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1f\x8b\x08\x00rest", "compressed"), (b"\x28\xb5\x2f\xfdrest", "compressed"), (b"PK\x03\x04", "compressed"),
        (b"ARROW1\0\0", "Arrow"), (b"\xff\xff\xff\xff\x10", "Arrow"), (b"%PDF-1.7", "not read"),
        ("text".encode("utf-16"), "iconv -f utf-16"), (b'\n{"text": "row"}\n', "ends in .jsonl"),
        (POINTER, "Git LFS pointer, not the file; run git lfs pull"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["c.txt", "corpus"])
def test_other_formats_are_refused_by_content(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, says)


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "c.parquet", "folder/c.txt"])
def test_git_lfs_pointers(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(POINTER)
    refused(tmp_path / name.split("/")[0], name, "is a Git LFS pointer, not the file; run git lfs pull")


def test_parquet_is_read_whatever_its_name(tmp_path):
    parquet(tmp_path / "c.parquet", ["one", "two"]).rename(tmp_path / "c.txt")
    assert texts(tmp_path / "c.txt") == ["one", "two"]


def test_a_folder_does_not_leave_out_what_it_cannot_read(tmp_path):
    (tmp_path / "a.txt").write_text("text", "utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert texts(tmp_path) == ["text"]
    (tmp_path / "b.JSONL.GZ").write_bytes(b"\x1f\x8b")
    refused(tmp_path, "b.JSONL.GZ", "compressed", "or move it out")


# --- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3, 16, 1 << 20])
def test_arrays_are_read_as_streams(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "AT_ONCE", at_once)
    rows = [{"text": f'"quoted" \\ é {n} ]', "n": [n, {"deep": None}]} for n in range(5)]
    (tmp_path / "c.json").write_text("\n " + json.dumps(rows, indent=1) + "\n", "utf-8")
    assert texts(tmp_path / "c.json") == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"text": "a"}, {"text": "b"', "row 2"),
        ('[{"text": "a"} {"text": "b"}]', "after row 1"),
        ('[{"text": "a"}] x', "more after"),
        ('[{"text": "a"}, {"text" "b"}, {"text": "c"}]', "row 2"),
        ('[{"text": "a"},]', "row 2"),
        ('{\n "text": "pretty"\n}\n', "jq -c ."),
        ('{"text": {"0": "a", "1": "b"}, "id": {"0": 1, "1": 2}}', "lines=True"),
        ('{"text": ["a", "b"]}', "by columns"),
        ('{"data": [{"text": "a"}]}', "its columns are data; name one of them, and in a JSON file it must hold"),
        ('{"text": "a"}\n{"body": "b"}', "line 2"),
        ('{"text": "a"}\n{"text": NaN}', "line 2"),
        ('{"text": "a"}\n\n{"text": 3}', "line 3 of"),
    ],
)
def test_json_of_another_shape(content, says, tmp_path):
    (tmp_path / "c.json").write_text(content, "utf-8")
    refused(tmp_path / "c.json", "c.json", says)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_a_missing_text_is_told_by_its_row(kind, tmp_path):
    rows = [f"row {n}" for n in range(2000)]
    rows[1502] = None
    path = tmp_path / f"c.{kind}"
    if kind == "parquet":
        parquet(path, rows)
    else:
        objects = [json.dumps({"text": row}) for row in rows]
        path.write_text("\n".join(objects) if kind == "jsonl" else f"[{','.join(objects)}]", "utf-8")
    refused(path, "1503 of", path.name, "'text' is null; remove or fill it")


def test_a_missing_text_of_a_saved_dataset(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "b", None]}).save_to_disk(tmp_path / "saved")
    refused(tmp_path / "saved", "row 3 of", "remove or fill it")


# --- layouts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path):
    """A hub dataset's repository, as git clones it."""
    folder = tmp_path / "clone"
    for split, rows in (("train", 3), ("test", 2), ("validation", 1)):
        parquet(folder / f"data/{split}-00000-of-00001.parquet", [f"{split} {n}" for n in range(rows)])
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A card\n", "utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "notes.txt").write_text("git's own", "utf-8")
    return folder


@pytest.mark.parametrize("infos", [True, False])
@pytest.mark.parametrize("card", ["front matter", "no front matter", "none"])
def test_of_a_cloned_dataset_the_named_split_alone_is_read(card, infos, clone):
    if card != "front matter":
        (clone / "README.md").write_text("# A card\n", "utf-8")
    if card == "none":
        (clone / "README.md").unlink()
    if infos:
        (clone / "dataset_infos.json").write_text('{"default": {"description": ""}}', "utf-8")
    assert texts(clone) == ["train 0", "train 1", "train 2"]
    assert texts(clone, split="validation") == ["validation 0"]
    refused(clone, "'dev'", "it has train, ", split="dev")


def test_a_card_says_which_files_are_of_a_split(clone):
    parquet(clone / "data/extra.parquet", ["extra"])
    card = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/extra*\n"
    (clone / "README.md").write_text(f"---\n{card}---\n", "utf-8")
    assert texts(clone) == ["extra"]


@pytest.mark.parametrize("name", ["../other.parquet", "https://example.invalid/x.parquet", "/etc/x.parquet"])
def test_a_card_names_nothing_outside_its_folder(name, clone):
    card = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {name}\n"
    (clone / "README.md").write_text(f"---\n{card}---\n", "utf-8")
    refused(clone, repr(name), "not in its folder")


def test_a_card_with_several_configurations(clone):
    card = "configs:\n- config_name: en\n  data_files: data/train-*\n- config_name: de\n  data_files: data/test-*\n"
    (clone / "README.md").write_text(f"---\n{card}---\n", "utf-8")
    refused(clone, "'en', 'de'", "name one")


def test_a_damaged_card(clone):
    (clone / "README.md").write_text("---\na: [b\n---\n", "utf-8")
    refused(clone, "README.md", "name one of the data files")


@pytest.mark.parametrize("layout", ["{}.jsonl", "{}/rows.jsonl", "data/{}.jsonl"])
def test_files_and_folders_named_after_splits(layout, tmp_path):
    for split in ("train", "test", "valid"):
        path = tmp_path / "corpus" / layout.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": split}), "utf-8")
    assert texts(tmp_path / "corpus") == ["train"]
    assert texts(tmp_path / "corpus", split="validation") == ["valid"]
    (tmp_path / "corpus" / "notes.txt").write_text("of no split", "utf-8")
    refused(tmp_path / "corpus", "notes.txt of none")


def test_a_plain_folder_is_read_whole(tmp_path):
    for name in ("a test of time.txt", "train to nowhere.txt", "deep/third.txt", ".hidden/no.txt", "._a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, "utf-8")
    (tmp_path / "README.md").write_text("# Where these come from", "utf-8")
    assert texts(tmp_path) == ["a test of time.txt", "deep/third.txt", "train to nowhere.txt"]


def test_a_folder_of_pages_keeps_the_one_called_readme(tmp_path):
    for name in ("README.md", "test.md", "training.md"):
        (tmp_path / name).write_text(f"---\ntitle: {name}\n---\n", "utf-8")
    assert len(texts(tmp_path)) == 3


# --- digests -------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_what_the_documents_are_made_of(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "two"}', "utf-8")
    first = corpus_digest(data(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_text('{"text": "one", "body": "two"}', "utf-8")
    assert corpus_digest(data(tmp_path / "b.jsonl")) == first, "a name is no content"
    assert corpus_digest(data(tmp_path / "b.jsonl", text_column="body")) != first
    assert corpus_digest(data(tmp_path)) != first
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "ten"}', "utf-8")
    assert corpus_digest(data(tmp_path / "a.jsonl")) != first, "the same name with other content"
