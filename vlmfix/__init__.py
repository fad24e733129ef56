"""Decoding-time hallucination mitigation for vision-language models on stock Hugging Face transformers."""

from vlmfix.errors import UnsupportedError
from vlmfix.generation import generate
from vlmfix.methods import make_method, methods
from vlmfix.methods.adaptinfer import AdaptInfer
from vlmfix.methods.adhh import ADHH
from vlmfix.methods.base import Card, Kept, Method
from vlmfix.methods.carve import CARVE
from vlmfix.methods.controls import ControlBeam, ControlGreedy, ControlPromptBias, ControlSample
from vlmfix.methods.crops import CRoPS
from vlmfix.methods.deco import DeCo
from vlmfix.methods.devils import Devils
from vlmfix.methods.divprune import DivPrune
from vlmfix.methods.dola import DoLa
from vlmfix.methods.fastv import FastV
from vlmfix.methods.flb import FLB
from vlmfix.methods.gift import GIFT
from vlmfix.methods.icd import ICD
from vlmfix.methods.kmeans import KMeans
from vlmfix.methods.lcd import LCD
from vlmfix.methods.m3id import M3ID
from vlmfix.methods.only import ONLY
from vlmfix.methods.opera import OPERA
from vlmfix.methods.outputshift import ControlOutputShift
from vlmfix.methods.pai import PAI
from vlmfix.methods.plausibility import ControlPlausibility, ControlSharpen
from vlmfix.methods.pyramiddrop import PyramidDrop
from vlmfix.methods.randomtokens import RandomTokens
from vlmfix.methods.ritual import RITUAL
from vlmfix.methods.sid import SID
from vlmfix.methods.sparsevlm import SparseVLM
from vlmfix.methods.textcontrast import ControlTextContrast
from vlmfix.methods.uniformgrid import UniformGrid
from vlmfix.methods.vaf import VAF
from vlmfix.methods.var import VAR
from vlmfix.methods.vcd import VCD
from vlmfix.methods.vdd import VDD
from vlmfix.methods.vhr import VHR
from vlmfix.methods.visionzip import VisionZip
from vlmfix.models.loading import load
from vlmfix.refinement import Refinement
from vlmfix.runtime.activity import Activity, InactiveMethodWarning

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
    "Activity",
    "AdaptInfer",
    "CRoPS",
    "Card",
    "ControlBeam",
    "ControlGreedy",
    "ControlOutputShift",
    "ControlPlausibility",
    "ControlPromptBias",
    "ControlSample",
    "ControlSharpen",
    "ControlTextContrast",
    "DeCo",
    "Devils",
    "DivPrune",
    "DoLa",
    "FastV",
    "InactiveMethodWarning",
    "KMeans",
    "Kept",
    "Method",
    "PyramidDrop",
    "RandomTokens",
    "Refinement",
    "SparseVLM",
    "UniformGrid",
    "UnsupportedError",
    "VisionZip",
    "generate",
    "load",
    "make_method",
    "methods",
]
