"""Decoding-time hallucination mitigation for vision-language models on stock Hugging Face transformers."""

from vlmfix.errors import UnsupportedError
from vlmfix.generation import generate
from vlmfix.methods import make_method, methods
from vlmfix.methods.adaptinfer import AdaptInfer
from vlmfix.methods.base import Card, Kept, Method
from vlmfix.methods.gift import GIFT
from vlmfix.methods.var import VAR
from vlmfix.methods.vhr import VHR
from vlmfix.models.loading import load
from vlmfix.runtime.activity import Activity, InactiveMethodWarning

__version__ = "0.1.0"

__all__ = [
    "AdaptInfer",
    "GIFT",
    "VAR",
    "VHR",
    "Activity",
    "Card",
    "InactiveMethodWarning",
    "Kept",
    "Method",
    "UnsupportedError",
    "generate",
    "load",
    "make_method",
    "methods",
]
