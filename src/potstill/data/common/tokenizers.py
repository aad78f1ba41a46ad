"""Tokenizers without transformers: what a folder holds, as the data path needs it, and training a new one.

transformers takes seconds to import and is only a last resort here, for folders of other kinds.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from potstill.data.common.store import build_once, store_key
from potstill.data.corpus.sources import TextSource
from potstill.errors import DataError
from potstill.runtime.json_text import json_text, read_json
from potstill.runtime.small_files import model_folder_fault

# Limits above this are how transformers says that there is none.
NO_LIMIT = 10**9
BERT_NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
BERT_NAMES |= {"mask_token": "[MASK]"}
ROBERTA_NAMES = dict.fromkeys(("bos_token", "cls_token"), "<s>") | dict.fromkeys(
    ("eos_token", "sep_token"), "</s>"
)
ROBERTA_NAMES |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
T5_NAMES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
GPT2_NAMES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# tokenizer.json, WordPiece or BPE, SentencePiece, tiktoken.
VOCABULARY_FILES = ("tokenizer.json", "vocab.*", "vocab", "*.model", "*.spm", "*.tiktoken")

TRAINING_CHARACTERS = 10 * 10**6
SAMPLE_CHARACTERS = 2**15
ALPHABET = 1000
# Every letter that the BERT pre-tokenizer can leave inside a word: it cuts at spaces and punctuation.
_INSIDE_WORD = re.compile(r"(?<=[^\s!-/:-@\[-`{-~])[^\s!-/:-@\[-`{-~]")


@dataclass(frozen=True)
class Vocabulary:
    """What the data path needs to know of a tokenizer.

    Attributes:
        path: Its folder.
        size: Number of tokens, added ones counted; every id is below.
        start_id: Token before every sequence (CLS, or BOS), if any.
        end_id: Token after every sequence (SEP, or EOS), if any.
        pad_id: Padding; the end token where the tokenizer has none.
        mask_id: The mask of masked language models, if any.
        unk_id: The unknown token, if any.
        special_ids: All special tokens, ascending.
        max_length: Longest sequence in tokens that the tokenizer's or the model's config allows, special tokens
            counted; None where neither says.
        digest: sha256 of the serialized tokenizer.
    """

    path: str
    size: int
    start_id: int | None
    end_id: int | None
    pad_id: int
    mask_id: int | None
    unk_id: int | None
    special_ids: tuple[int, ...]
    max_length: int | None
    digest: str


def load_backend(folder: str | Path) -> Tokenizer:
    """The fast tokenizer of a folder, with truncation and padding switched off.

    Args:
        folder: Holds tokenizer.json, or vocab.txt (WordPiece), or vocab.json and merges.txt (byte-level BPE), or
            whatever transformers makes a fast tokenizer of.

    Raises:
        DataError: There is no such folder, or no tokenizer in it.
    """
    at = Path(folder)
    if not at.is_dir():
        raise DataError(
            f"data.tokenizer: the folder '{folder}' does not exist; give the folder of a saved tokenizer"
        )
    if fault := model_folder_fault(at):
        raise DataError(f"data.tokenizer: '{folder}': {fault}; give the folder of a saved tokenizer")
    try:
        if (at / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(at / "tokenizer.json"))
        elif (at / "vocab.txt").is_file():
            tokenizer = _wordpiece(at)
        elif (at / "vocab.json").is_file() and (at / "merges.txt").is_file():
            tokenizer = _byte_level(at)
        else:
            tokenizer = _from_transformers(at)
    except DataError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        if (at / "spiece.model").is_file() and not (at / "tokenizer.json").is_file():
            raise DataError(
                f"data.tokenizer: '{folder}' has a SentencePiece model and no tokenizer.json, which takes the package "
                "sentencepiece to convert; install it, or give a folder with a tokenizer.json"
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"data.tokenizer: '{folder}' cannot be read ({reason}); give the folder of a saved tokenizer"
        ) from error
    # transformers makes a tokenizer of special tokens alone where a folder names its kind and has no vocabulary.
    if tokenizer.get_vocab_size() <= len(tokenizer.get_added_tokens_decoder()):
        raise DataError(
            f"data.tokenizer: '{folder}' has a tokenizer without a vocabulary, every text would be unknown to it; "
            "data.tokenizer=<folder or hub id of the tokenizer that the model was trained with>"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a file that a tokenizer's vocabulary can be in."""
    return any(found.is_file() for pattern in VOCABULARY_FILES for found in folder.glob(pattern))


def describe(folder: str | Path) -> Vocabulary:
    """What a tokenizer's folder says about itself; agrees with transformers without importing it.

    The tokens around a sequence are the ones that its post-processor adds; where that adds none (GPT-2), they
    are BOS and EOS.

    Raises:
        DataError: There is no such folder, no tokenizer in it, or one that adds several tokens on one side.
    """
    tokenizer = load_backend(folder)
    at = Path(folder)
    names, extra = _special_tokens(at, tokenizer)
    ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    start_id, end_id = _frame(tokenizer, at)
    if start_id is None and end_id is None:
        start_id, end_id = ids.get("bos_token"), ids.get("eos_token")
    special = {number for number in [*ids.values(), *map(tokenizer.token_to_id, extra)] if number is not None}
    pads = [known for known in (ids.get("pad_token"), end_id, start_id) if known is not None]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return Vocabulary(
        path=str(folder),
        size=max(len(vocabulary), max(vocabulary.values(), default=-1) + 1),
        start_id=start_id,
        end_id=end_id,
        pad_id=pads[0] if pads else 0,
        mask_id=ids.get("mask_token"),
        unk_id=ids.get("unk_token"),
        special_ids=tuple(sorted(special)),
        max_length=_max_length(at, ids.get("pad_token")),
        digest=hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
    )


def train_wordpiece(
    source: TextSource, vocabulary_size: int, cache: Path, lowercase: bool = True, max_length: int = 512
) -> Path:
    """A BERT tokenizer trained on a source: the same for the same source, made once.

    Args:
        source: The texts; about 10 MB of them, evenly drawn, are read for training.
        vocabulary_size: Most tokens that it may have.
        cache: The folder lies in its `tokenizers` folder.
        lowercase: Whether letter case and accents are dropped.
        max_length: Longest sequence that the tokenizer will announce, in tokens.

    Returns:
        A folder that `transformers.AutoTokenizer.from_pretrained` opens.
    """
    options = {"vocabulary_size": vocabulary_size, "lowercase": lowercase, "max_length": max_length}
    folder = cache / "tokenizers" / store_key(source.fingerprint(), "wordpiece", options)

    def build(temporary: Path) -> None:
        tokens = _learn_wordpieces(_even_sample(source), vocabulary_size, lowercase)
        config = BERT_NAMES | {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lowercase,
            "model_max_length": max_length,
        }
        (temporary / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        (temporary / "tokenizer_config.json").write_text(json_text(config, indent=1), encoding="utf-8")
        _wordpiece(temporary).save(str(temporary / "tokenizer.json"))

    build_once(folder, build)
    return folder


def _even_sample(source: TextSource) -> list[str]:
    """Texts drawn evenly over a source of unknown size: every n-th batch; n doubles when they are too many."""
    kept: list[list[str]] = []
    stride = 1
    for number, batch in enumerate(source.batches(SAMPLE_CHARACTERS)):
        if number % stride == 0:
            kept.append(batch)
        if len(kept) * SAMPLE_CHARACTERS > TRAINING_CHARACTERS:
            kept, stride = kept[::2], 2 * stride
    if not kept:
        raise DataError(f"{source.name}: there is no text to train a tokenizer on; give a source with text")
    return [text for batch in kept for text in batch]


def _learn_wordpieces(texts: list[str], vocabulary_size: int, lowercase: bool) -> list[str]:
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    texts = [normalizer.normalize_str(text) for text in texts]
    letters = Counter(chain.from_iterable(texts))
    alphabet = sorted(filter(str.strip, letters), key=lambda letter: (-letters[letter], letter))[:ALPHABET]
    # The trainer numbers letters inside words in the order of a hash table, which decides between equally
    # frequent pairs; naming them all beforehand makes the result the same every time.
    inside = set(chain.from_iterable(map(_INSIDE_WORD.findall, texts))).intersection(alphabet)
    pieces = sorted(alphabet) + [f"##{letter}" for letter in sorted(inside)]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*BERT_NAMES.values(), *pieces],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)[:vocabulary_size]


def _wordpiece(folder: Path) -> Tokenizer:
    config = _json(folder, "tokenizer_config.json")
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {token: number for number, token in enumerate(tokens[:-1] if tokens[-1] == "" else tokens)}
    names = _named(folder)
    if names["unk_token"] not in vocabulary:
        raise DataError(
            f"data.tokenizer: '{folder}/vocab.txt' has no {names['unk_token']}; "
            "give a BERT vocabulary, a token a line"
        )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    _add_specials(tokenizer, names, folder)
    start, end = names["cls_token"], names["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return tokenizer


def _byte_level(folder: Path) -> Tokenizer:
    config = _json(folder, "tokenizer_config.json")
    prefix_space = config.get("add_prefix_space", False)
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    names = _named(folder)
    _add_specials(tokenizer, names, folder)
    if "cls_token" in names and "sep_token" in names:
        end, start = (
            (names[name], tokenizer.token_to_id(names[name]) or 0) for name in ("sep_token", "cls_token")
        )
        tokenizer.post_processor = processors.RobertaProcessing(end, start, True, prefix_space)
    return tokenizer


def _from_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    from potstill.models.pretrained import read_pretrained

    backend: Tokenizer = read_pretrained(AutoTokenizer, folder).backend_tokenizer
    return backend


def _add_specials(tokenizer: Tokenizer, names: dict[str, str], folder: Path) -> None:
    """Have special tokens recognised in text; one may be said to take the space before it (RoBERTa's mask)."""
    said = _said(folder)
    takes_space = {
        name: isinstance(said.get(name), dict) and bool(said[name].get("lstrip")) for name in names
    }
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=takes_space[name], normalized=False) for name, token in names.items()]
    )


def _named(folder: Path) -> dict[str, str]:
    """Named special tokens: what the JSON files say, over what the kind of tokenizer has by default."""
    names: dict[str, str] = {}
    if not (folder / "tokenizer.json").is_file():
        if (folder / "vocab.txt").is_file():
            names = BERT_NAMES
        elif (folder / "vocab.json").is_file():
            names = GPT2_NAMES if "<|endoftext|>" in _json(folder, "vocab.json") else ROBERTA_NAMES
    said = _said(folder)
    given = {name: _text(said[name]) for name in TOKEN_NAMES if said.get(name)}
    return {name: token for name, token in (names | given).items() if said.get(name, token) is not None}


def _special_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[dict[str, str], list[str]]:
    """Named special tokens and further ones; a tokenizer.json alone names them by their usual spelling."""
    names = _named(folder)
    said = _said(folder)
    further = said.get("extra_special_tokens") or said.get("additional_special_tokens") or []
    if not names:
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        for usual in (T5_NAMES, BERT_NAMES, ROBERTA_NAMES, GPT2_NAMES):  # RoBERTa has T5's and more
            if set(usual.values()) <= added:
                names = usual
        further = sorted(added)
    return names, [_text(token) for token in (further.values() if isinstance(further, dict) else further)]


def _frame(tokenizer: Tokenizer, folder: Path) -> tuple[int | None, int | None]:
    """Tokens that the post-processor puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a").ids
    before = framed.index(bare[0]) if bare and bare[0] in framed else len(framed) // 2
    after = len(framed) - before - len(bare)
    if before > 1 or after > 1:
        raise DataError(
            f"data.tokenizer: '{folder}' puts {before} tokens before a text and {after} after it; "
            "give a tokenizer that puts at most one on either side"
        )
    return (framed[0] if before == 1 else None), (framed[-1] if after == 1 else None)


def _max_length(folder: Path, pad_id: int | None) -> int | None:
    config = _json(folder, "config.json")
    limits = [
        _json(folder, "tokenizer_config.json").get("model_max_length"),
        config.get("max_position_embeddings"),
    ]
    if limits[1] and config.get("model_type") in ("roberta", "camembert", "xlm-roberta", "longformer"):
        limits[1] -= (pad_id or 0) + 1  # their positions count from behind the padding's id
    known = [int(limit) for limit in limits if limit and limit < NO_LIMIT]
    return min(known, default=None)


def _said(folder: Path) -> dict[str, Any]:
    return _json(folder, "special_tokens_map.json") | _json(folder, "tokenizer_config.json")


def _json(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"data.tokenizer: '{path}' is no JSON object ({error}); give the folder of a saved tokenizer"
        ) from error


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
