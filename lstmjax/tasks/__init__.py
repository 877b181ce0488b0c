"""Data to run and to learn on. Nothing is downloaded: it is made here, or ships inside a package."""

from lstmjax.tasks.adding import adding, adding_1997, adding_correct_1997
from lstmjax.tasks.base import Batch, one_hot_until, outputs_correct
from lstmjax.tasks.companies import COMPANIES, INITIAL_WEIGHTS, SLIDE_WEIGHTS, TRAINING, company_values, slide_unit
from lstmjax.tasks.datasets import (
    Characters,
    Digits,
    Sunspots,
    Windows,
    bigram_entropy,
    character_windows,
    decode_characters,
    digits,
    sunspot_errors,
    sunspots,
    unigram_entropy,
)
from lstmjax.tasks.reber import (
    REBER_SYMBOLS,
    continual_reber,
    embedded_graph,
    embedded_reber,
    reber_correct,
    reber_string,
)
from lstmjax.tasks.sentences import LOAN_VOCABULARY, loan_sentences, loan_text
from lstmjax.tasks.sources import english_text, one_hot_text, seattle_temperatures
from lstmjax.tasks.symbols import copy_accuracy, copy_memory, noisy_lag, temporal_order

__all__ = [
    "COMPANIES",
    "INITIAL_WEIGHTS",
    "LOAN_VOCABULARY",
    "REBER_SYMBOLS",
    "SLIDE_WEIGHTS",
    "TRAINING",
    "Batch",
    "Characters",
    "Digits",
    "Sunspots",
    "Windows",
    "adding",
    "adding_1997",
    "adding_correct_1997",
    "bigram_entropy",
    "character_windows",
    "company_values",
    "continual_reber",
    "copy_accuracy",
    "copy_memory",
    "decode_characters",
    "digits",
    "embedded_graph",
    "embedded_reber",
    "english_text",
    "loan_sentences",
    "loan_text",
    "noisy_lag",
    "one_hot_text",
    "one_hot_until",
    "outputs_correct",
    "reber_correct",
    "reber_string",
    "seattle_temperatures",
    "slide_unit",
    "sunspot_errors",
    "sunspots",
    "temporal_order",
    "unigram_entropy",
]
