from hf_ext.data.answer_packing import pack_answers
from hf_ext.data.bpe_dropout import BpeDropout, check_bpe_dropout
from hf_ext.data.files import resolve_data_files
from hf_ext.data.packing import PACKING_STRATEGIES, pack_dataset, pack_documents, utf8_bytes
from hf_ext.data.pair_packing import pack_pairs
from hf_ext.data.python_library import PYTHON_LIBRARY, PYTHON_LIBRARY_LICENSE, iter_python_library
from hf_ext.data.rows import RowArguments, load_rows
from hf_ext.data.sentences import split_sentences
from hf_ext.data.sources import DataArguments, load_documents
from hf_ext.data.squad_rows import unfold_squad
from hf_ext.data.tokenizer_training import TOKENIZER_KINDS, train_tokenizer


__all__ = [
    "PACKING_STRATEGIES",
    "PYTHON_LIBRARY",
    "PYTHON_LIBRARY_LICENSE",
    "TOKENIZER_KINDS",
    "BpeDropout",
    "DataArguments",
    "RowArguments",
    "check_bpe_dropout",
    "iter_python_library",
    "load_documents",
    "load_rows",
    "pack_answers",
    "pack_dataset",
    "pack_documents",
    "pack_pairs",
    "resolve_data_files",
    "split_sentences",
    "train_tokenizer",
    "unfold_squad",
    "utf8_bytes",
]
