import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from potstill.data.common.tokenizers import bare_tokenizer, describe, load_backend, train_wordpiece
from potstill.data.corpus.sources import TextFiles
from potstill.errors import DataError, TokenizerError

DATA = os.environ.get("POTSTILL_DATA_DIR")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "The"]


def bert(folder, config=None, words=WORDS):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_level(folder, specials, config):
    """A byte-level BPE of the letters, with the merge `h e`."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *letters, "he"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_tokenizer_without_the_tokens_around_a_text(tmp_path):
    framed = describe(bert(tmp_path / "t", {"do_lower_case": False}))
    assert load_backend(framed.path).encode("The cats").ids == [2, 8, 6, 7, 3]
    for lower, ids in ((False, [8, 6, 7]), (True, [5, 6, 7])):
        bare = describe(bare_tokenizer(framed, tmp_path / "cache", lower))
        assert load_backend(bare.path).encode("The cats").ids == ids
        assert (bare.start_id, bare.end_id, bare.pad_id, bare.unk_id, bare.size) == (None, None, 0, 1, 9)
        again = describe(bare_tokenizer(bare, tmp_path / "cache"))
        assert again.digest == bare.digest != framed.digest
    letters = byte_level(tmp_path / "b", ["<|endoftext|>"], {})
    bare = describe(bare_tokenizer(describe(letters), tmp_path / "cache"))
    assert (bare.start_id, bare.end_id, bare.pad_id) == (None, None, 0)


def test_wordpiece_folder(tmp_path):
    vocabulary = describe(bert(tmp_path / "t"))
    assert (vocabulary.size, vocabulary.start_id, vocabulary.end_id) == (9, 2, 3)
    assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.mask_id) == (0, 1, 4)
    assert vocabulary.special_ids == (0, 1, 2, 3, 4)
    assert vocabulary.max_length is None
    assert load_backend(tmp_path / "t").encode("The cats [MASK] dog").ids == [2, 5, 6, 7, 4, 1, 3]


def test_letter_case_follows_the_config(tmp_path):
    folder = bert(tmp_path / "t", {"do_lower_case": False, "model_max_length": 64})
    assert load_backend(folder).encode("The the").ids == [2, 8, 5, 3]
    assert describe(folder).max_length == 64
    assert describe(folder).digest != describe(bert(tmp_path / "u")).digest


def test_gpt2_frames_and_pads_with_its_only_special_token(tmp_path):
    folder = byte_level(tmp_path / "t", ["<|endoftext|>"], {"model_max_length": 1024})
    vocabulary = describe(folder)
    assert (vocabulary.start_id, vocabulary.end_id, vocabulary.pad_id) == (0, 0, 0)
    assert (vocabulary.mask_id, vocabulary.unk_id, vocabulary.special_ids) == (None, 0, (0,))
    assert vocabulary.max_length == 1024


def test_roberta_folder_without_tokenizer_json(tmp_path):
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    folder = byte_level(tmp_path / "t", specials, {"tokenizer_class": "RobertaTokenizer"})
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "max_position_embeddings": 514}))
    vocabulary = describe(folder)
    assert (vocabulary.start_id, vocabulary.end_id, vocabulary.pad_id, vocabulary.mask_id) == (0, 2, 1, 4)
    assert vocabulary.max_length == 512
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("he said", " the <mask> he", "Über <s> x"):
        assert load_backend(folder).encode(text).ids == tokenizer(text).input_ids
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<mask>", "lstrip": True}}))
    assert load_backend(folder).encode("he <mask>").ids[-2:] == [4, 2]
    assert len(load_backend(folder).encode("he <mask>").ids) == 4


def test_llama_has_a_start_and_no_end(tmp_path):
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    (tmp_path / "t").mkdir()
    tokenizer.save(str(tmp_path / "t" / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(names))
    vocabulary = describe(tmp_path / "t")
    assert (vocabulary.start_id, vocabulary.end_id, vocabulary.pad_id) == (1, None, 1)


def test_special_tokens_of_a_lone_tokenizer_json(tmp_path):
    load_backend(bert(tmp_path / "t")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "alone").mkdir()
    (tmp_path / "tokenizer.json").rename(tmp_path / "alone" / "tokenizer.json")
    alone, whole = describe(tmp_path / "alone"), describe(tmp_path / "t")
    assert (alone.mask_id, alone.pad_id, alone.special_ids) == (4, 0, whole.special_ids)
    assert alone.digest == whole.digest


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda at: None, ""),
        (lambda at: at.mkdir(), ""),
        (lambda at: bert(at, words=["the"]), r"vocab\.txt .*\[UNK\]"),
        (lambda at: (at.mkdir(), (at / "tokenizer.json").write_text("{")), ""),
        (lambda at: (at.mkdir(), (at / "tokenizer_config.json").write_text("[1]")), r"tokenizer_config\.json"),
    ],
)
def test_invalid_folders(tmp_path, make, named):
    make(tmp_path / "t")
    with pytest.raises(TokenizerError, match=rf"^data\.tokenizer: '{tmp_path}/t': .*{named}.*$"):
        describe(tmp_path / "t")


def source(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text)
    return TextFiles((str(path),), "line", None, None, tmp_path / "cache")


TRAINING_TEXT = "".join(f"the cats number{n % 97} sat, on {n % 31} Mats\n" for n in range(3000))


def test_training(tmp_path):
    folder = train_wordpiece(source(tmp_path, TRAINING_TEXT), 120, tmp_path / "cache", max_length=64)
    tokens = (folder / "vocab.txt").read_text().split()
    assert tokens[:5] == WORDS[:5]
    assert len(tokens) == describe(folder).size <= 120
    assert {"the", "cats", "mats"} <= set(tokens)
    assert train_wordpiece(source(tmp_path, TRAINING_TEXT), 120, tmp_path / "cache", max_length=64) == folder
    assert train_wordpiece(source(tmp_path, TRAINING_TEXT), 110, tmp_path / "cache", max_length=64) != folder

    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    assert type(tokenizer).__name__.startswith("BertTokenizer")
    assert (len(tokenizer), tokenizer.model_max_length) == (len(tokens), 64)
    assert tokenizer("The cats").input_ids == [2, tokens.index("the"), tokens.index("cats"), 3]
    assert tokenizer("The cats").input_ids == load_backend(folder).encode("The cats").ids
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]


def test_training_gives_the_same_every_time(tmp_path):
    contents = set()
    for number in range(3):
        folder = train_wordpiece(source(tmp_path, TRAINING_TEXT), 200, tmp_path / f"cache{number}")
        contents.add((folder / "vocab.txt").read_bytes() + (folder / "tokenizer.json").read_bytes())
    assert len(contents) == 1


def test_training_on_nothing(tmp_path):
    with pytest.raises(DataError, match=r"text\.txt: "):
        train_wordpiece(source(tmp_path, " \n\n"), 100, tmp_path / "cache")


def test_neither_torch_nor_transformers_is_imported(tmp_path):
    code = (
        "import sys; from potstill.data.common import tokenizers; "
        "from potstill.data.corpus import binarize, docstrings, sources, store; "
        f"tokenizers.describe({str(bert(tmp_path / 't'))!r}); "
        "print({'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.skipif(not DATA, reason="POTSTILL_DATA_DIR is not set: no real tokenizers")
@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese", "roberta-gpt2-bpe", "t5"])
def test_real_folders_agree_with_transformers(name):
    transformers = pytest.importorskip("transformers")
    folder = Path(DATA) / "tokenizers" / name
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), describe(folder)
    start = theirs.cls_token_id if theirs.cls_token_id is not None else theirs.bos_token_id
    end = theirs.sep_token_id if theirs.sep_token_id is not None else theirs.eos_token_id
    assert (ours.size, ours.start_id, ours.end_id) == (len(theirs), start, end)
    assert (ours.pad_id, ours.mask_id, ours.unk_id) == (theirs.pad_token_id, theirs.mask_token_id, theirs.unk_token_id)
    assert ours.special_ids == tuple(sorted(theirs.all_special_ids))
    if theirs.model_max_length < 10**9:
        assert ours.max_length == theirs.model_max_length
    backend = load_backend(folder)
    for text in ("The cats' naïve café, [MASK] <mask> </s>", "我爱 北京 today", "  two  spaces\tand a tab"):
        assert backend.encode(text).ids == theirs(text).input_ids


def test_a_t5_tokenizer_without_its_other_files(tmp_path):
    """`tokenizer.json` alone names its tokens by their usual spelling."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = describe(tmp_path)
    assert (vocabulary.start_id, vocabulary.end_id, vocabulary.pad_id, vocabulary.unk_id) == (None, 1, 0, 2)


def test_a_sentencepiece_model_that_cannot_be_converted(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"no model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(TokenizerError, match=r"^data\.tokenizer: .* sentencepiece"):
        describe(tmp_path)
