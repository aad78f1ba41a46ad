"""Loading tokenizers without transformers, which takes seconds to import, and training new ones.

transformers is used only for folders of other kinds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from potstill.data.common.store import build_once, store_key
from potstill.data.corpus.sources import TextSource
from potstill.errors import DataError, TokenizerError
from potstill.models.gguf import is_gguf, read_header
from potstill.runtime.json_text import json_text, read_json
from potstill.runtime.small_files import model_folder_problem

# Larger values mean "no limit" in transformers.
NO_LIMIT = 10**9
BERT_NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
BERT_NAMES |= {"mask_token": "[MASK]"}
ROBERTA_NAMES = dict.fromkeys(("bos_token", "cls_token"), "<s>") | dict.fromkeys(("eos_token", "sep_token"), "</s>")
ROBERTA_NAMES |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
T5_NAMES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
GPT2_NAMES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_ADVICE = "use the folder of a saved tokenizer"
# tokenizer.json, WordPiece or BPE, SentencePiece, tiktoken.
VOCABULARY_FILES = ("tokenizer.json", "vocab.*", "vocab", "*.model", "*.spm", "*.tiktoken")

TRAINING_CHARACTERS = 10 * 10**6
SAMPLE_CHARACTERS = 2**15
ALPHABET = 1000
# Letters inside words, which the BERT pre-tokenizer cuts at spaces and punctuation.
_INSIDE_WORD = re.compile(r"(?<=[^\s!-/:-@\[-`{-~])[^\s!-/:-@\[-`{-~]")


@dataclass(frozen=True)
class Vocabulary:
    """Properties of a tokenizer.

    Attributes:
        path: Its folder, or GGUF file.
        size: Number of tokens, with added ones; every id is below.
        start_id: Token before every sequence (CLS, or BOS), if any.
        end_id: Token after every sequence (SEP, or EOS), if any.
        pad_id: Padding token, or the end token.
        mask_id: Mask token, if any.
        unk_id: Unknown token, if any.
        special_ids: All special tokens, ascending.
        max_length: Maximum number of tokens with special tokens, from the tokenizer's or the model's config, if any.
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
    """The fast tokenizer of a folder, without truncation and padding.

    Args:
        folder: A folder with tokenizer.json, vocab.txt (WordPiece), vocab.json and merges.txt (byte-level BPE), or
            another fast tokenizer of transformers.

    Raises:
        TokenizerError: The folder or its tokenizer does not exist or cannot be used.
    """
    return _load(_Folder(folder))


def _load(folder: _Folder) -> Tokenizer:
    path = folder.path
    try:
        if folder.has("tokenizer.json"):
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        elif folder.has("vocab.txt"):
            tokenizer = _wordpiece(folder)
        elif folder.has("vocab.json") and folder.has("merges.txt"):
            tokenizer = _byte_level(folder)
        else:
            tokenizer = _from_transformers(path)
    except TokenizerError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = str(error).strip().split("\n")[0]
        advice = _ADVICE
        if folder.has("spiece.model"):
            advice = "install the package sentencepiece, or use a folder with a tokenizer.json"
        raise folder.error(f"cannot be read ({reason})", advice) from error
    # For a folder without vocabulary files, transformers returns a tokenizer of special tokens alone.
    if tokenizer.get_vocab_size() <= len(tokenizer.get_added_tokens_decoder()):
        raise folder.error("has no vocabulary", "use the folder or hub id of the model's tokenizer")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary file of a tokenizer."""
    return any(found.is_file() for pattern in VOCABULARY_FILES for found in folder.glob(pattern))


def describe(folder: str | Path) -> Vocabulary:
    """Properties of the tokenizer of a folder, the same as in transformers.

    The tokens around a sequence are those of the post-processor, or BOS and EOS if it adds none (GPT-2).

    Raises:
        TokenizerError: The folder or its tokenizer does not exist, or it adds several tokens on one side.
    """
    own = _Folder(folder)
    tokenizer = _load(own)
    names, further = _special_tokens(own, tokenizer)
    ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    start_id, end_id = _frame(tokenizer, own)
    if start_id is None and end_id is None:
        start_id, end_id = ids.get("bos_token"), ids.get("eos_token")
    special = {number for number in [*ids.values(), *map(tokenizer.token_to_id, further)] if number is not None}
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
        max_length=_max_length(own, ids.get("pad_token")),
        digest=hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
    )


def train_wordpiece(
    source: TextSource, vocabulary_size: int, cache: Path, lowercase: bool = True, max_length: int = 512
) -> Path:
    """Train a BERT tokenizer on a source, deterministically and once.

    Args:
        source: The texts, of which an even sample of about 10 MB is used.
        vocabulary_size: Maximum number of tokens.
        cache: The tokenizer is stored in its `tokenizers` folder.
        lowercase: Whether letter case and accents are dropped.
        max_length: `model_max_length` of the tokenizer.

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
        _wordpiece(_Folder(temporary)).save(str(temporary / "tokenizer.json"))

    build_once(folder, build)
    return folder


def bare_tokenizer(vocabulary: Vocabulary, cache: Path, lower: bool = False) -> Path:
    """A tokenizer's folder without the tokens that it adds around a text.

    Args:
        vocabulary: Of the tokenizer.
        cache: The folder is stored in its `tokenizers` folder.
        lower: Whether texts are put into lower case first.

    Returns:
        A folder that `transformers.AutoTokenizer.from_pretrained` opens.
    """
    folder = cache / "tokenizers" / store_key({"tokenizer": vocabulary.digest}, "bare", {"lower": lower})

    def build(temporary: Path) -> None:
        tokenizer = load_backend(vocabulary.path)
        content = json.loads(tokenizer.to_str()) | {"post_processor": None}
        if lower:
            own = [] if content["normalizer"] is None else [content["normalizer"]]
            content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *own]}
        (temporary / "tokenizer.json").write_text(json_text(content), encoding="utf-8")
        # Names of tokens around a text would add them again.
        ids = {"pad_token": vocabulary.pad_id, "unk_token": vocabulary.unk_id}
        names = {name: tokenizer.id_to_token(number) for name, number in ids.items() if number is not None}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        (temporary / "tokenizer_config.json").write_text(json_text(config, indent=1), encoding="utf-8")

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
        raise DataError(f"{source.name}: has no text to train a tokenizer on; use a source with text")
    return [text for batch in kept for text in batch]


def _learn_wordpieces(texts: list[str], vocabulary_size: int, lowercase: bool) -> list[str]:
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    texts = [normalizer.normalize_str(text) for text in texts]
    letters = Counter(chain.from_iterable(texts))
    alphabet = sorted(filter(str.strip, letters), key=lambda letter: (-letters[letter], letter))[:ALPHABET]
    # The trainer numbers letters inside words in the order of a hash table, which decides between equally frequent
    # pairs; listing them all makes the result deterministic.
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


class _Folder:
    """The JSON files and the special tokens of a tokenizer's folder, or the header of a GGUF file.

    Attributes:
        config: Content of tokenizer_config.json.
        saved: The same with special_tokens_map.json.
        names: Special tokens by name, from these files and the defaults of the kind of tokenizer.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        if is_gguf(self.path):
            self.config = read_header(self.path, f"data.tokenizer: '{self.path}'").tokenizer_settings
        elif problem := model_folder_problem(self.path) if self.path.is_dir() else "does not exist":
            raise self.error(problem)
        else:
            self.config = self.json("tokenizer_config.json")
        self.saved = self.json("special_tokens_map.json") | self.config
        names: dict[str, str] = {}
        if self.has("vocab.txt") and not self.has("tokenizer.json"):
            names = BERT_NAMES
        elif self.has("vocab.json") and not self.has("tokenizer.json"):
            names = GPT2_NAMES if "<|endoftext|>" in self.json("vocab.json") else ROBERTA_NAMES
        names = names | {name: _text(self.saved[name]) for name in TOKEN_NAMES if self.saved.get(name)}
        self.names = {name: token for name, token in names.items() if self.saved.get(name, token) is not None}

    def has(self, file: str) -> bool:
        return (self.path / file).is_file()

    def json(self, file: str) -> dict[str, Any]:
        """Content of a JSON file; empty if it does not exist."""
        try:
            return dict(read_json(self.path / file)) if self.has(file) else {}
        except (ValueError, TypeError) as error:
            raise self.error(f"{file} is not a JSON object ({error})") from error

    def error(self, problem: str, advice: str = "") -> TokenizerError:
        return TokenizerError(f"data.tokenizer: '{self.path}': {problem}; {advice or _ADVICE}")


def _wordpiece(folder: _Folder) -> Tokenizer:
    tokens = (folder.path / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    config, names = folder.config, folder.names
    if names["unk_token"] not in vocabulary:
        raise folder.error(f"vocab.txt has no {names['unk_token']}", "use a BERT vocabulary with one token per line")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    _add_specials(tokenizer, folder)
    start, end = names["cls_token"], names["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return tokenizer


def _byte_level(folder: _Folder) -> Tokenizer:
    prefix_space = folder.config.get("add_prefix_space", False)
    files = (str(folder.path / name) for name in ("vocab.json", "merges.txt"))
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    _add_specials(tokenizer, folder)
    names = folder.names
    if "cls_token" in names and "sep_token" in names:
        end, start = ((names[name], tokenizer.token_to_id(names[name]) or 0) for name in ("sep_token", "cls_token"))
        tokenizer.post_processor = processors.RobertaProcessing(end, start, True, prefix_space)
    return tokenizer


def _from_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    from potstill.models.pretrained import read_pretrained

    backend: Tokenizer = read_pretrained(AutoTokenizer, folder).backend_tokenizer
    return backend


def _add_specials(tokenizer: Tokenizer, folder: _Folder) -> None:
    """Add special tokens; some include the space before them (RoBERTa's mask)."""
    tokens = []
    for name, token in folder.names.items():
        saved = folder.saved.get(name)
        takes_space = isinstance(saved, dict) and bool(saved.get("lstrip"))
        tokens.append(AddedToken(token, lstrip=takes_space, normalized=False))
    tokenizer.add_special_tokens(tokens)


def _special_tokens(folder: _Folder, tokenizer: Tokenizer) -> tuple[dict[str, str], list[str]]:
    """Special tokens by name, and further ones; for a lone tokenizer.json they are found by their usual spelling."""
    if not folder.names:
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        usual = (names for names in (GPT2_NAMES, ROBERTA_NAMES, BERT_NAMES, T5_NAMES) if set(names.values()) <= added)
        return next(usual, {}), sorted(added)  # RoBERTa has T5's names and more
    further = folder.saved.get("extra_special_tokens") or folder.saved.get("additional_special_tokens") or []
    return folder.names, [_text(token) for token in (further.values() if isinstance(further, dict) else further)]


def _frame(tokenizer: Tokenizer, folder: _Folder) -> tuple[int | None, int | None]:
    """Tokens that the post-processor adds before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a").ids
    before = framed.index(bare[0]) if bare and bare[0] in framed else len(framed) // 2
    after = len(framed) - before - len(bare)
    if before > 1 or after > 1:
        raise folder.error(
            f"adds {before} tokens before a text and {after} after it",
            "use a tokenizer that adds at most one on either side",
        )
    return (framed[0] if before == 1 else None), (framed[-1] if after == 1 else None)


def _max_length(folder: _Folder, pad_id: int | None) -> int | None:
    config = folder.json("config.json")
    limits = [folder.config.get("model_max_length"), config.get("max_position_embeddings")]
    if limits[1] and config.get("model_type") in ("roberta", "camembert", "xlm-roberta", "longformer"):
        limits[1] -= (pad_id or 0) + 1  # their positions start after the padding id
    return min((int(limit) for limit in limits if limit and limit < NO_LIMIT), default=None)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
