"""Decoding-time hallucination mitigation for vision-language models on stock Hugging Face transformers."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmfix.api import generate
    from vlmfix.engine.capabilities import (
        AddsAuxiliaryPrompt,
        ChangesPictures,
        ChoosesTokens,
        EditsQueries,
        EditsStream,
        EditsVisionEncoder,
        MeasuresScores,
        PreviewsWeights,
        PrunesTokens,
        ReadsAhead,
        ReadsEarlyExits,
        ReadsFinalStates,
        ReadsLastRowAgain,
        ReadsVisionAttention,
        RemembersSequences,
        ReplacesWeights,
        RunsLayerParts,
        SeesLogits,
        UsesOutputHead,
        WritesAhead,
    )
    from vlmfix.engine.context import DecodeContext
    from vlmfix.engine.gates import Always, Disagreement, Entropy, Gate, ImageMass, Margin, Random, Top1
    from vlmfix.engine.layout import PromptLayout, Rows
    from vlmfix.engine.state import AuxiliaryPrompt, Branch, PruneResult
    from vlmfix.engine.stats import EditStats, InactiveMethodWarning
    from vlmfix.errors import UnsupportedError
    from vlmfix.explanation.explain import explain
    from vlmfix.explanation.result import Explanation
    from vlmfix.methods.attention.act import ACT
    from vlmfix.methods.attention.adaiat import AdaIAT
    from vlmfix.methods.attention.adavboost import AdaVBoost
    from vlmfix.methods.attention.adhh import ADHH
    from vlmfix.methods.attention.base import KeyEdit, ScoreEdit
    from vlmfix.methods.attention.devils import Devils
    from vlmfix.methods.attention.eah import EAH
    from vlmfix.methods.attention.farsight import FarSight
    from vlmfix.methods.attention.gift import GIFT
    from vlmfix.methods.attention.head_pursuit import HeadPursuit
    from vlmfix.methods.attention.iat import IAT
    from vlmfix.methods.attention.ilvad import ILVAD
    from vlmfix.methods.attention.pai import PAI
    from vlmfix.methods.attention.paint import PAINT
    from vlmfix.methods.attention.tame import TAME
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
    from vlmfix.methods.baselines.random_directions import BaselineRandomDirections
    from vlmfix.methods.baselines.random_heads import BaselineRandomHeads
    from vlmfix.methods.baselines.resize import BaselineResize
    from vlmfix.methods.baselines.text_contrast import BaselineTextContrast
    from vlmfix.methods.decoding.opera.opera import OPERA
    from vlmfix.methods.image.carve.carve import CARVE
    from vlmfix.methods.image.carve.crop import Refinement
    from vlmfix.methods.image.mrfd.mrfd import MRFD
    from vlmfix.methods.image.mrfd.views import FusedAnswer
    from vlmfix.methods.image.patch_matters.boxes import Detection
    from vlmfix.methods.image.patch_matters.patch_matters import PatchMatters
    from vlmfix.methods.image.patch_matters.results import DetailedCaption
    from vlmfix.methods.logits.avisc import AvisC
    from vlmfix.methods.logits.base import AgainstText, Contrastive, LogitsMixer
    from vlmfix.methods.logits.causalmm import CausalMM
    from vlmfix.methods.logits.code import CODE
    from vlmfix.methods.logits.crops import CRoPS
    from vlmfix.methods.logits.damro import DAMRO
    from vlmfix.methods.logits.deco import DeCo
    from vlmfix.methods.logits.dola import DoLa
    from vlmfix.methods.logits.flb import FLB
    from vlmfix.methods.logits.hulluedit import HulluEdit
    from vlmfix.methods.logits.icd import ICD
    from vlmfix.methods.logits.lcd import LCD
    from vlmfix.methods.logits.m3id import M3ID
    from vlmfix.methods.logits.only import ONLY
    from vlmfix.methods.logits.ritual import RITUAL
    from vlmfix.methods.logits.sid import SID
    from vlmfix.methods.logits.sira import SIRA
    from vlmfix.methods.logits.sla import SelfLogitAugmentation
    from vlmfix.methods.logits.vcd import VCD
    from vlmfix.methods.logits.vdd import VDD
    from vlmfix.methods.logits.visual_entropy import VisualEntropy
    from vlmfix.methods.multi_pass import MultiPassMethod, MultiPassResult
    from vlmfix.methods.pruning.adaptinfer import AdaptInfer
    from vlmfix.methods.pruning.base import CountedPruning, TokenPruning
    from vlmfix.methods.pruning.cdpruner import CDPruner
    from vlmfix.methods.pruning.divprune import DivPrune
    from vlmfix.methods.pruning.dyvte import DyVTE
    from vlmfix.methods.pruning.fastv import FastV
    from vlmfix.methods.pruning.kmeans import KMeans
    from vlmfix.methods.pruning.mmtok import MMTok
    from vlmfix.methods.pruning.prunesid import PruneSID
    from vlmfix.methods.pruning.pyramid_drop import PyramidDrop
    from vlmfix.methods.pruning.random_tokens import RandomTokens
    from vlmfix.methods.pruning.similarity_filter import SimilarityFilter
    from vlmfix.methods.pruning.sparsevlm import SparseVLM
    from vlmfix.methods.pruning.uniform_grid import UniformGrid
    from vlmfix.methods.pruning.visionzip import VisionZip
    from vlmfix.methods.registry import list_methods, make_method, method_names, register_method
    from vlmfix.methods.steering.base import NewRowEdit, StreamEdit
    from vlmfix.methods.steering.cei import CEI
    from vlmfix.methods.steering.fade import FADE
    from vlmfix.methods.steering.memvr import MemVR
    from vlmfix.methods.steering.nullu import Nullu
    from vlmfix.methods.steering.rudder import RUDDER
    from vlmfix.methods.steering.vista import VISTA
    from vlmfix.methods.steering.vti import VTI
    from vlmfix.methods.vision.mctf import MCTF
    from vlmfix.methods.vision.registers import Registers
    from vlmfix.methods.vision.shield.results import ShieldedAnswer
    from vlmfix.methods.vision.shield.shield import SHIELD
    from vlmfix.methods.vision.tome import ToMe
    from vlmfix.models.loading import load
    from vlmfix.models.profiles import Profile
    from vlmfix.recipes import Recipe, find_recipe, load_recipe

__version__ = "0.1.0"

__all__ = [
    "ACT",
    "ADHH",
    "CARVE",
    "CEI",
    "CODE",
    "DAMRO",
    "EAH",
    "FADE",
    "FLB",
    "GIFT",
    "IAT",
    "ICD",
    "ILVAD",
    "LCD",
    "M3ID",
    "MCTF",
    "MRFD",
    "ONLY",
    "OPERA",
    "PAI",
    "PAINT",
    "RITUAL",
    "RUDDER",
    "SHIELD",
    "SID",
    "SIRA",
    "TAME",
    "VAF",
    "VAR",
    "VCD",
    "VDD",
    "VHR",
    "VISTA",
    "VTI",
    "AdaIAT",
    "AdaVBoost",
    "AdaptInfer",
    "AddsAuxiliaryPrompt",
    "AgainstText",
    "Always",
    "AuxiliaryPrompt",
    "AvisC",
    "BaselineBeam",
    "BaselineGreedy",
    "BaselineOutputShift",
    "BaselinePlausibility",
    "BaselinePromptBias",
    "BaselineRandomDirections",
    "BaselineRandomHeads",
    "BaselineResize",
    "BaselineSample",
    "BaselineSharpen",
    "BaselineTextContrast",
    "Branch",
    "CDPruner",
    "CRoPS",
    "CausalMM",
    "ChangesPictures",
    "ChoosesTokens",
    "Contrastive",
    "CountedPruning",
    "DeCo",
    "DecodeContext",
    "DetailedCaption",
    "Detection",
    "Devils",
    "Disagreement",
    "DivPrune",
    "DoLa",
    "DyVTE",
    "EditStats",
    "EditsQueries",
    "EditsStream",
    "EditsVisionEncoder",
    "Entropy",
    "Explanation",
    "FarSight",
    "FastV",
    "FusedAnswer",
    "Gate",
    "HeadPursuit",
    "HulluEdit",
    "ImageMass",
    "InactiveMethodWarning",
    "KMeans",
    "KeyEdit",
    "LogitsMixer",
    "MMTok",
    "Margin",
    "MeasuresScores",
    "MemVR",
    "Method",
    "MethodInfo",
    "MultiPassMethod",
    "MultiPassResult",
    "NewRowEdit",
    "Nullu",
    "PatchMatters",
    "PreviewsWeights",
    "Profile",
    "PromptLayout",
    "PruneResult",
    "PruneSID",
    "PrunesTokens",
    "PyramidDrop",
    "Random",
    "RandomTokens",
    "ReadsAhead",
    "ReadsEarlyExits",
    "ReadsFinalStates",
    "ReadsLastRowAgain",
    "ReadsVisionAttention",
    "Recipe",
    "Refinement",
    "Registers",
    "RemembersSequences",
    "ReplacesWeights",
    "Rows",
    "RunsLayerParts",
    "ScoreEdit",
    "SeesLogits",
    "SelfLogitAugmentation",
    "ShieldedAnswer",
    "SimilarityFilter",
    "SparseVLM",
    "StreamEdit",
    "ToMe",
    "TokenPruning",
    "Top1",
    "UniformGrid",
    "UnsupportedError",
    "UsesOutputHead",
    "VisionZip",
    "VisualEntropy",
    "WritesAhead",
    "explain",
    "find_recipe",
    "generate",
    "list_methods",
    "load",
    "load_recipe",
    "make_method",
    "method_names",
    "register_method",
]

# Where the public names are: each is imported when it is wanted, since torch and transformers take seconds.
_NAMES = {
    "vlmfix.api": "generate",
    "vlmfix.engine.capabilities": "AddsAuxiliaryPrompt ChangesPictures ChoosesTokens "
    "EditsQueries EditsStream EditsVisionEncoder MeasuresScores "
    "PreviewsWeights PrunesTokens ReadsAhead ReadsEarlyExits "
    "ReadsFinalStates ReadsLastRowAgain ReadsVisionAttention "
    "RemembersSequences ReplacesWeights RunsLayerParts "
    "SeesLogits UsesOutputHead WritesAhead",
    "vlmfix.engine.context": "DecodeContext",
    "vlmfix.engine.gates": "Always Disagreement Entropy Gate ImageMass Margin Random Top1",
    "vlmfix.engine.layout": "PromptLayout Rows",
    "vlmfix.engine.state": "AuxiliaryPrompt Branch PruneResult",
    "vlmfix.engine.stats": "EditStats InactiveMethodWarning",
    "vlmfix.errors": "UnsupportedError",
    "vlmfix.explanation.explain": "explain",
    "vlmfix.explanation.result": "Explanation",
    "vlmfix.methods.attention.act": "ACT",
    "vlmfix.methods.attention.adaiat": "AdaIAT",
    "vlmfix.methods.attention.adavboost": "AdaVBoost",
    "vlmfix.methods.attention.adhh": "ADHH",
    "vlmfix.methods.attention.base": "KeyEdit ScoreEdit",
    "vlmfix.methods.attention.devils": "Devils",
    "vlmfix.methods.attention.eah": "EAH",
    "vlmfix.methods.attention.farsight": "FarSight",
    "vlmfix.methods.attention.gift": "GIFT",
    "vlmfix.methods.attention.head_pursuit": "HeadPursuit",
    "vlmfix.methods.attention.iat": "IAT",
    "vlmfix.methods.attention.ilvad": "ILVAD",
    "vlmfix.methods.attention.pai": "PAI",
    "vlmfix.methods.attention.paint": "PAINT",
    "vlmfix.methods.attention.tame": "TAME",
    "vlmfix.methods.attention.vaf": "VAF",
    "vlmfix.methods.attention.var": "VAR",
    "vlmfix.methods.attention.vhr": "VHR",
    "vlmfix.methods.base": "Method MethodInfo",
    "vlmfix.methods.baselines.decoding": "BaselineBeam BaselineGreedy BaselinePromptBias BaselineSample",
    "vlmfix.methods.baselines.output_shift": "BaselineOutputShift",
    "vlmfix.methods.baselines.plausibility": "BaselinePlausibility BaselineSharpen",
    "vlmfix.methods.baselines.random_directions": "BaselineRandomDirections",
    "vlmfix.methods.baselines.random_heads": "BaselineRandomHeads",
    "vlmfix.methods.baselines.resize": "BaselineResize",
    "vlmfix.methods.baselines.text_contrast": "BaselineTextContrast",
    "vlmfix.methods.decoding.opera.opera": "OPERA",
    "vlmfix.methods.image.carve.carve": "CARVE",
    "vlmfix.methods.image.carve.crop": "Refinement",
    "vlmfix.methods.image.mrfd.mrfd": "MRFD",
    "vlmfix.methods.image.mrfd.views": "FusedAnswer",
    "vlmfix.methods.image.patch_matters.boxes": "Detection",
    "vlmfix.methods.image.patch_matters.patch_matters": "PatchMatters",
    "vlmfix.methods.image.patch_matters.results": "DetailedCaption",
    "vlmfix.methods.logits.avisc": "AvisC",
    "vlmfix.methods.logits.base": "AgainstText Contrastive LogitsMixer",
    "vlmfix.methods.logits.causalmm": "CausalMM",
    "vlmfix.methods.logits.code": "CODE",
    "vlmfix.methods.logits.crops": "CRoPS",
    "vlmfix.methods.logits.damro": "DAMRO",
    "vlmfix.methods.logits.deco": "DeCo",
    "vlmfix.methods.logits.dola": "DoLa",
    "vlmfix.methods.logits.flb": "FLB",
    "vlmfix.methods.logits.hulluedit": "HulluEdit",
    "vlmfix.methods.logits.icd": "ICD",
    "vlmfix.methods.logits.lcd": "LCD",
    "vlmfix.methods.logits.m3id": "M3ID",
    "vlmfix.methods.logits.only": "ONLY",
    "vlmfix.methods.logits.ritual": "RITUAL",
    "vlmfix.methods.logits.sid": "SID",
    "vlmfix.methods.logits.sira": "SIRA",
    "vlmfix.methods.logits.sla": "SelfLogitAugmentation",
    "vlmfix.methods.logits.vcd": "VCD",
    "vlmfix.methods.logits.vdd": "VDD",
    "vlmfix.methods.logits.visual_entropy": "VisualEntropy",
    "vlmfix.methods.multi_pass": "MultiPassMethod MultiPassResult",
    "vlmfix.methods.pruning.adaptinfer": "AdaptInfer",
    "vlmfix.methods.pruning.base": "CountedPruning TokenPruning",
    "vlmfix.methods.pruning.cdpruner": "CDPruner",
    "vlmfix.methods.pruning.divprune": "DivPrune",
    "vlmfix.methods.pruning.dyvte": "DyVTE",
    "vlmfix.methods.pruning.fastv": "FastV",
    "vlmfix.methods.pruning.kmeans": "KMeans",
    "vlmfix.methods.pruning.mmtok": "MMTok",
    "vlmfix.methods.pruning.prunesid": "PruneSID",
    "vlmfix.methods.pruning.pyramid_drop": "PyramidDrop",
    "vlmfix.methods.pruning.random_tokens": "RandomTokens",
    "vlmfix.methods.pruning.similarity_filter": "SimilarityFilter",
    "vlmfix.methods.pruning.sparsevlm": "SparseVLM",
    "vlmfix.methods.pruning.uniform_grid": "UniformGrid",
    "vlmfix.methods.pruning.visionzip": "VisionZip",
    "vlmfix.methods.registry": "list_methods make_method method_names register_method",
    "vlmfix.methods.steering.base": "NewRowEdit StreamEdit",
    "vlmfix.methods.steering.cei": "CEI",
    "vlmfix.methods.steering.fade": "FADE",
    "vlmfix.methods.steering.memvr": "MemVR",
    "vlmfix.methods.steering.nullu": "Nullu",
    "vlmfix.methods.steering.rudder": "RUDDER",
    "vlmfix.methods.steering.vista": "VISTA",
    "vlmfix.methods.steering.vti": "VTI",
    "vlmfix.methods.vision.mctf": "MCTF",
    "vlmfix.methods.vision.registers": "Registers",
    "vlmfix.methods.vision.shield.results": "ShieldedAnswer",
    "vlmfix.methods.vision.shield.shield": "SHIELD",
    "vlmfix.methods.vision.tome": "ToMe",
    "vlmfix.models.loading": "load",
    "vlmfix.models.profiles": "Profile",
    "vlmfix.recipes": "Recipe find_recipe load_recipe",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a checker would take any name for one of this package

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'vlmfix' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
