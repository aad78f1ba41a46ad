"""Tokenizer, stores and batch settings from configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.data import ConversationsDataConfig, CorpusDataConfig, SequenceDataConfig, TextDataConfig, data_of
from potstill.config.models import OWN
from potstill.data.common.progress import counting
from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import Vocabulary, describe, has_tokenizer, train_wordpiece
from potstill.data.conversations.encoding import ConversationCorpus, encode
from potstill.data.conversations.reading import Conversation, RowFormat, held_out, read_conversations, read_datasets
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.pickled import PickledTokens
from potstill.data.corpus.retokenise import Retokeniser
from potstill.data.corpus.splits import Parts, Source, row_sources
from potstill.data.corpus.store import Corpus, TokenStore
from potstill.data.tasks.preflight import refuse_unknown
from potstill.errors import ConfigError, DataError, TokenizerError
from potstill.interchange.plans import PlanSettings
from potstill.models.backbone import backbone_of
from potstill.models.gguf import gguf_of, is_gguf
from potstill.models.load import keep_tokenizer, load_tokenizer
from potstill.runtime.small_files import small_text
from potstill.validation.launch import SHARDED

log = logging.getLogger(__name__)

PROBED = 64  # sequences on which two tokenizers are compared
LEAST = 12  # tokens of a sequence of a corpus, unless data.min_length says otherwise
LONGEST = 512  # tokens of a sequence where neither data.max_length nor a model says less


def build_vocabulary(
    data: CorpusDataConfig, parts: Parts, models: dict[str, str | None], *, saved: bool = False
) -> Vocabulary:
    """The tokenizer: `data.tokenizer`, else that of the first model given, else one trained on the corpus.

    Args:
        data: the section of the configuration.
        parts: the corpus.
        models: by key, in the order in which they are asked.
        saved: whether a student will be saved with it.
    """
    if (found := given_vocabulary(data, models, saved=saved)) is not None:
        return found
    cache, source = Path(data.cache).expanduser(), parts.train[0]
    if isinstance(source, PickledTokens):
        raise TokenizerError(
            f"data.tokenizer=null: {source.name} has token ids and no text to train a tokenizer on; "
            "data.tokenizer=<folder or hub id of the one that binarized it>"
        )
    with counting(f"training a tokenizer of {data.vocabulary_size} on {source.name}"):
        folder = train_wordpiece(source, data.vocabulary_size, cache)
    if saved:
        keep_tokenizer(f"data.cache={cache}", folder)
    return describe(folder)


def given_vocabulary(data: TextDataConfig, models: dict[str, str | None], *, saved: bool = False) -> Vocabulary | None:
    """The tokenizer of `data.tokenizer`, else that of the first model given; None without either."""
    for key, value in {"data.tokenizer": data.tokenizer, **models}.items():
        if value is not None:
            return vocabulary_of(key, value, saved=saved)
    return None


def vocabulary_of(key: str, value: str, *, saved: bool = False) -> Vocabulary:
    """The vocabulary of a folder or hub id.

    Args:
        key: configuration key that names it, for messages.
        value: folder, or hub id.
        saved: whether a student will be saved with the tokenizer, which is then tried before any work.

    Raises:
        TokenizerError: there is none, or it cannot be read.
        ModelError: it cannot be loaded or saved by transformers.
    """
    folder = local_tokenizer(key, value)
    try:
        found = describe(folder)
    except DataError as error:
        raise TokenizerError(str(error).replace("data.tokenizer:", f"{key}={value}:", 1)) from error
    except Exception as error:  # of any kind, depending on what is in the files
        raise TokenizerError(
            f"{key}={value}: its tokenizer cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    if saved:
        keep_tokenizer(f"{key}={value}", folder)
    return found


def local_tokenizer(key: str, value: str) -> str:
    """A folder with the tokenizer of a folder or hub id, or a GGUF file that holds it.

    Raises:
        TokenizerError: there is none, or no network for a hub id.
    """
    folder = Path(value).expanduser()
    if is_gguf(folder):
        return str(folder)
    if not folder.is_dir():
        folder = Path(_downloaded(key, value))
    if not has_tokenizer(folder):
        if (file := gguf_of(folder, f"{key}={value}")) is not None:
            return str(file)
        other = "a folder with a tokenizer.json" if key == "data.tokenizer" else "data.tokenizer=<folder or hub id>"
        raise TokenizerError(f"{key}={value}: the folder has no tokenizer; give {other}")
    return str(folder)


def _downloaded(key: str, value: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(value, allow_patterns=["*.json", "*.txt", "*.model", "*_Dense/*"], etag_timeout=3)
    except Exception as error:
        raise TokenizerError(
            f"{key}={value}: no such folder, and the hub gives no tokenizer of that name "
            f"({type(error).__name__}); pass a folder, data.tokenizer=<folder>"
        ) from error


def own_vocabulary(setting: str | None, key: str, teacher: str, vocabulary: Vocabulary) -> Vocabulary | None:
    """The vocabulary of a teacher that reads its own tokens; None where they are the student's.

    Args:
        setting: `teacher.tokenizer`.
        key: configuration key that names the teacher, for messages.
        teacher: its folder or hub id.
        vocabulary: the student's.

    Raises:
        TokenizerError: there is no such tokenizer.
    """
    if setting is None:
        return None
    given = (key, teacher) if setting == OWN else ("teacher.tokenizer", setting)
    own = vocabulary_of(*given)
    return None if own.digest == vocabulary.digest else own


def build_retokeniser(corpus: Corpus, vocabulary: Vocabulary, own: Vocabulary | None, max_length: int) -> Retokeniser:
    """A reader of a corpus in the teacher's tokens, checked on the first sequences.

    Args:
        corpus: in the student's tokens.
        vocabulary: of these.
        own: of the teacher's; None where they are the same.
        max_length: most tokens that the teacher reads.

    Raises:
        ConfigError: the tokenizers are the same.
        DataError: the tokens of one never end where those of the other do.
    """
    if own is None:
        raise ConfigError(
            f"teacher.tokenizer: is the student's ({vocabulary.path}), so predictions can be compared token by token; "
            "use objective.terms.ce and teacher.tokenizer=null"
        )
    retokenise = Retokeniser(vocabulary, own, max_length)
    ids, lengths = corpus.gather(np.arange(min(len(corpus.lengths), PROBED)))
    found = len(retokenise(np.split(ids, np.cumsum(lengths)[:-1])).row)
    if not found:
        raise DataError(
            f"teacher.tokenizer={own.path}: none of its tokens ends where one of {vocabulary.path} does; "
            "give a tokenizer that keeps the text"
        )
    log.info("the teacher has read the same text at %.0f %% of the tokens", 100 * found / lengths.sum())
    return retokenise


def check_mask(kind: str, vocabulary: Vocabulary) -> None:
    """A masked language model needs a token to mask with.

    Raises:
        DataError: the tokenizer has none.
    """
    if kind == "masked" and vocabulary.mask_id is None:
        raise DataError(
            f"data.tokenizer={vocabulary.path}: has no mask token, which a masked language model needs; "
            "use the tokenizer that the model was trained with"
        )


def sequence_length(
    data: SequenceDataConfig, vocabulary: Vocabulary, models: list[PreTrainedModel], usual: int | None = None
) -> int:
    """Tokens of the longest sequence: `data.max_length`, within what the models can read.

    Args:
        data: the section of the configuration.
        vocabulary: whose tokenizer has a length of its own, which counts where nothing else is said.
        models: that read the sequences.
        usual: what the benchmark takes where `data.max_length` is null.

    Raises:
        ConfigError: `data.max_length` is more than a model can read.
    """
    limit = min(backbone_of(model).max_length for model in models)
    if data.max_length is not None and data.max_length > limit:
        raise ConfigError(f"data.max_length={data.max_length}: the models read at most {limit} tokens")
    return data.max_length or min(limit, usual or vocabulary.max_length or limit, LONGEST)


def build_corpora(
    data: CorpusDataConfig, parts: Parts, vocabulary: Vocabulary, length: int
) -> tuple[Corpus | None, Corpus | None]:
    """Binarized training and evaluation corpora; a second run opens the stores of the first."""
    if not parts.held_out:
        return build_corpus(data, parts.train, vocabulary, length), build_corpus(data, parts.eval, vocabulary, length)
    train = build_corpus(data, parts.train, vocabulary, length)
    try:
        return train, build_corpus(data, parts.eval, vocabulary, length)
    except DataError as error:
        log.warning("no evaluation: %s; give data.eval_files or a larger data.eval_share", error)
        return train, None


def build_corpus(data: CorpusDataConfig, sources: list[Source], vocabulary: Vocabulary, length: int) -> Corpus | None:
    """The stores of all sources, joined; their counts are reported. None where there is no source."""
    stores = []
    for source in sources:
        with counting(f"binarizing {source.name}") as progress:
            store = binarize(
                source,
                vocabulary,
                cache=Path(data.cache).expanduser(),
                max_length=length,
                min_length=LEAST if data.min_length is None else data.min_length,
                max_unknown=data.max_unknown,
                packed=data.packed,
                num_proc=data.num_proc,
                engine=data.engine,
                progress=progress,
            )
        refuse_dropped(source.name, store, data.max_unknown, vocabulary)
        stores.append(store)
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in Corpus([store]).describe().items())
        log.info("%s: %s", source.name, counts)
    return Corpus(stores) if stores else None


def build_conversations(
    data: ConversationsDataConfig, parts: Sequence[list[Conversation]], vocabulary: Vocabulary, length: int
) -> list[ConversationCorpus | None]:
    """The tokens of conversations, part by part; what is cut or dropped is reported. None for an empty part."""
    tokenizer, made = load_tokenizer(vocabulary.path), list[ConversationCorpus | None]()
    for rows in parts:
        if not rows:
            made.append(None)
            continue
        with counting("tokenising conversations") as progress:
            corpus = encode(
                rows,
                tokenizer,
                vocabulary,
                template=template_of(data),
                max_length=length,
                cache=Path(data.cache).expanduser(),
                progress=progress,
            )
        refuse_unknown("conversations", corpus.gather(range(len(corpus)))[0], vocabulary, data.max_unknown)
        counts = corpus.describe()
        log.info("conversations: %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
        if counts["dropped"]:
            log.warning(
                "%d of %d rows have no completion within data.max_length=%d, and are left out",
                counts["dropped"], counts["rows"], length,
            )  # fmt: skip
        made.append(corpus)
    return made


def conversation_parts(data: ConversationsDataConfig) -> tuple[list[Conversation], list[Conversation]]:
    """Training and evaluation rows.

    Raises:
        DataError: a file cannot be read, or a row is no conversation.
    """
    train, evaluation = conversations_of(data, "train"), conversations_of(data, "eval")
    return (train, evaluation) if evaluation else held_out(train, data.eval_share)


def conversations_of(
    data: ConversationsDataConfig, part: str, files: Sequence[str] | None = None
) -> list[Conversation]:
    """The rows of a part, `train` or `eval`, of its files (or of others), else of its data sets; empty without any.

    Raises:
        DataError: a file or data set cannot be read, or a row is no conversation.
    """
    form = RowFormat({name: column for name, column in asdict(data.columns).items() if column}, data.as_messages)
    if files := files or data[f"{part}_files"]:
        return read_conversations(files, f"data.{part}_files", data.max_examples, data.skip, form)
    return read_datasets(row_sources(data, part), data.max_examples, form)


def template_of(data: ConversationsDataConfig) -> str | None:
    """The chat template of `data.chat_template`; None for that of the tokenizer."""
    given = data.chat_template
    if given is None or "{" in given:
        return given
    return small_text(Path(given).expanduser(), "data.chat_template")


def refuse_dropped(name: str, store: TokenStore, most: float, vocabulary: Vocabulary) -> None:
    """Refuse a corpus most of whose sequences were dropped because the tokenizer does not know them.

    Raises:
        DataError: they were.
    """
    counts = store.index["report"]
    kept, dropped = counts["sequences"], counts["dropped_unknown"]
    if dropped > kept:
        raise DataError(
            f"data.max_unknown={most}: {dropped:,} of {kept + dropped:,} sequences of '{name}' are mostly unknown to "
            f"the tokenizer '{vocabulary.path}'; data.tokenizer=<folder of the one that the model was trained with>, "
            "or a larger share"
        )


def batch_settings(config: TrainConfig | EvaluateConfig, interchange: PlanSettings | None = None) -> BatchSettings:
    """How sequences become batches and swaps."""
    data = config.data
    return BatchSettings(
        seed=config.seed,
        batch_size=data.batch_size,
        accumulate=config.trainer.accumulate_grad_batches,
        max_tokens=data.max_tokens,
        eval_batch_size=data.eval_batch_size,
        group_size=data.group_size,
        length_bin=data.length_bin,
        num_workers=data.num_workers,
        interchange=interchange,
        even=config.trainer.strategy in SHARDED,
    )


def corpus_settings(config: TrainConfig | EvaluateConfig, interchange: PlanSettings | None = None) -> BatchSettings:
    """The same of texts, with the masks of a corpus."""
    data = data_of(config, TextDataConfig)
    settings = batch_settings(config, interchange)
    if not isinstance(data, CorpusDataConfig):
        return settings
    return replace(
        settings, mlm_share=data.mlm_share, mlm_smoothing=data.mlm_smoothing, mlm_replace=tuple(data.mlm_replace)
    )
