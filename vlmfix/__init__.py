"""Decoding-time hallucination mitigation for vision-language models on stock Hugging Face transformers."""

from vlmfix.api import generate
from vlmfix.engine.state import PruneResult
from vlmfix.engine.stats import EditStats, InactiveMethodWarning
from vlmfix.errors import UnsupportedError
from vlmfix.methods.attention.adhh import ADHH
from vlmfix.methods.attention.devils import Devils
from vlmfix.methods.attention.gift import GIFT
from vlmfix.methods.attention.pai import PAI
from vlmfix.methods.attention.vaf import VAF
from vlmfix.methods.attention.var import VAR
from vlmfix.methods.attention.vhr import VHR
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.baselines.decoding import (
    BaselineBeam,
    BaselineGreedy,
    BaselinePromptBias,
    BaselineSample,
)
from vlmfix.methods.baselines.output_shift import BaselineOutputShift
from vlmfix.methods.baselines.plausibility import BaselinePlausibility, BaselineSharpen
from vlmfix.methods.baselines.text_contrast import BaselineTextContrast
from vlmfix.methods.decoding.opera.opera import OPERA
from vlmfix.methods.image.carve.carve import CARVE
from vlmfix.methods.image.carve.crop import Refinement
from vlmfix.methods.logits.crops import CRoPS
from vlmfix.methods.logits.deco import DeCo
from vlmfix.methods.logits.dola import DoLa
from vlmfix.methods.logits.flb import FLB
from vlmfix.methods.logits.icd import ICD
from vlmfix.methods.logits.lcd import LCD
from vlmfix.methods.logits.m3id import M3ID
from vlmfix.methods.logits.only import ONLY
from vlmfix.methods.logits.ritual import RITUAL
from vlmfix.methods.logits.sid import SID
from vlmfix.methods.logits.vcd import VCD
from vlmfix.methods.logits.vdd import VDD
from vlmfix.methods.pruning.adaptinfer import AdaptInfer
from vlmfix.methods.pruning.divprune import DivPrune
from vlmfix.methods.pruning.fastv import FastV
from vlmfix.methods.pruning.kmeans import KMeans
from vlmfix.methods.pruning.pyramid_drop import PyramidDrop
from vlmfix.methods.pruning.random_tokens import RandomTokens
from vlmfix.methods.pruning.sparsevlm import SparseVLM
from vlmfix.methods.pruning.uniform_grid import UniformGrid
from vlmfix.methods.pruning.visionzip import VisionZip
from vlmfix.methods.registry import list_methods, make_method
from vlmfix.models.loading import load

__version__ = "0.1.0"

__all__ = [
    "ADHH",
    "CARVE",
    "FLB",
    "GIFT",
    "ICD",
    "LCD",
    "M3ID",
    "ONLY",
    "OPERA",
    "PAI",
    "RITUAL",
    "SID",
    "VAF",
    "VAR",
    "VCD",
    "VDD",
    "VHR",
    "AdaptInfer",
    "BaselineBeam",
    "BaselineGreedy",
    "BaselineOutputShift",
    "BaselinePlausibility",
    "BaselinePromptBias",
    "BaselineSample",
    "BaselineSharpen",
    "BaselineTextContrast",
    "CRoPS",
    "DeCo",
    "Devils",
    "DivPrune",
    "DoLa",
    "EditStats",
    "FastV",
    "InactiveMethodWarning",
    "KMeans",
    "Method",
    "MethodInfo",
    "PruneResult",
    "PyramidDrop",
    "RandomTokens",
    "Refinement",
    "SparseVLM",
    "UniformGrid",
    "UnsupportedError",
    "VisionZip",
    "generate",
    "list_methods",
    "load",
    "make_method",
]
