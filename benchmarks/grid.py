"""Settings of the table of effects: those of controls, and those that compete for every method."""

from __future__ import annotations

from typing import Any

from benchmarks.answers import Setting

CONTROLS = [
    Setting("baseline.prompt_bias", {"direction": "yes"}),
    Setting("baseline.prompt_bias", {"direction": "no"}),
    Setting("baseline.beam", {}),
    Setting("baseline.sample", {}),
    Setting("baseline.sample+baseline.plausibility", {}),
    Setting("baseline.sample+baseline.sharpen", {}),
    Setting("baseline.text_contrast", {}),
]
"""Rows of their own, without a choice; plain decoding with an offset between yes and no competes below."""

GRID: dict[str, list[dict[str, Any]]] = {
    "var": [
        {"moved_fraction": 0.4},
        {"moved_fraction": 0.6},
        {"moved_fraction": 1.0},
        {"moved_fraction": 0.6, "min_non_sink_share": 0.2},
        {"moved_fraction": 1.0, "min_non_sink_share": 0.2},
        {"moved_fraction": 1.0, "min_non_sink_share": 0.0, "min_image_mass": 0.05},
    ],
    "vhr": [
        {"num_last_layers": 2, "head_scale": 2.0},
        {"num_last_layers": 2, "head_scale": 3.0},
        {"num_last_layers": 3, "head_scale": 1.5},
        {"num_last_layers": 3, "head_scale": 2.0},
        {"num_last_layers": 4, "head_scale": 1.25},
        {"num_last_layers": 4, "head_scale": 1.5},
        {"num_last_layers": 4, "head_scale": 1.5, "scale_positions": "last"},
        {"num_last_layers": 6, "head_scale": 1.25},
    ],
    "gift": [
        {"saliency_layer": 4, "enhanced_layers": (3, 6), "image_boost": 0.5},
        {"saliency_layer": 4, "enhanced_layers": (3, 6), "image_boost": 2.0},
        {"saliency_layer": 4, "enhanced_layers": (5, 7), "image_boost": 2.0},
        {"saliency_layer": 4, "enhanced_layers": (5, 7), "image_boost": 5.0},
        {"saliency_layer": 2, "enhanced_layers": (3, 6), "image_boost": 2.0},
        {"saliency_layer": 2, "enhanced_layers": (2, 4), "image_boost": 1.0},
        {"saliency_layer": 5, "enhanced_layers": (5, 7), "image_boost": 0.5},
    ],
    "carve": [
        {"kept_pixel_fraction": 0.2},
        {"kept_pixel_fraction": 0.4},
        {"kept_pixel_fraction": 0.4, "step_mode": "last"},
        {"kept_pixel_fraction": 0.4, "final_images": "refined"},
    ],
    "adaptinfer": [{"budget": "33%"}, {"budget": "50%"}, {"budget": "70%"}],
    "fastv": [
        {"start_layer": 2, "prune_ratio": 0.25},
        {"start_layer": 2, "prune_ratio": 0.5},
        {"start_layer": 2, "prune_ratio": 0.75},
    ],
    "kmeans": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "baseline.resize": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "cdpruner": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "mmtok": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "prunesid": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "similarity_filter": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "random_tokens": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "uniform_grid": [{"kept_tokens": 16}, {"kept_tokens": 32}, {"kept_tokens": 48}],
    "divprune": [{"keep_ratio": 0.25}, {"keep_ratio": 0.5}, {"keep_ratio": 0.75}],
    "visionzip": [
        {"dominant_tokens": 14, "contextual_tokens": 2},
        {"dominant_tokens": 27, "contextual_tokens": 5},
        {"dominant_tokens": 41, "contextual_tokens": 7},
    ],
    "pyramid_drop": [
        {"prune_layers": (2, 4, 6), "keep_ratios": (0.75, 0.5, 0.25)},
        {"prune_layers": (2, 4, 6), "keep_ratios": (0.5, 0.25, 0.125)},
    ],
    "sparsevlm": [
        {"prune_layers": (2, 4, 6), "kept_tokens": (48, 32, 16)},
        {"prune_layers": (2, 4, 6), "kept_tokens": (32, 16, 8)},
    ],
    "baseline.output_shift": [{"delta": delta} for delta in (-6.0, -4.0, -3.0, -2.0, -1.0, 1.0)],
    "vcd": [
        {"alpha": 0.5},
        {"alpha": 1.0},
        {"alpha": 0.5, "noise_step": 999},
        {"alpha": 1.0, "noise_step": 999},
    ],
    "icd": [{"alpha": 0.25}, {"alpha": 0.5}, {"alpha": 1.0}],
    "m3id": [{"decay": 0.02}, {"decay": 0.1}, {"decay": 0.02, "offset": 10.0}],
    "vdd": [
        {"reference": "no_image", "alpha": 0.5},
        {"reference": "no_image", "alpha": 1.0},
        {"reference": "both", "alpha": 0.5, "unknown_token_id": 0},
        {"reference": "both", "alpha": 1.0, "unknown_token_id": 0},
    ],
    "ritual": [{"kappa": 1.0}, {"kappa": 3.0}],
    "sid": [{"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 0.5, "keep": 0.5}, {"alpha": 0.5, "layer": 4}],
    "lcd": [{"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 2.0}],
    "flb": [{"gamma": 0.3}, {"gamma": 1.0}],
    "only": [{"threshold": 0.25}, {"threshold": 0.6}, {"layer": 2}, {"layer": 4}],
    "crops": [{}, {"alpha": 0.5}, {"decay": 0.05}],
    "dola": [{"exits": "low"}, {"exits": "high"}, {"exits": "low", "weight": 0.5}],
    "deco": [{"alpha": 0.2}, {"alpha": 0.6}, {"alpha": 0.6, "exits": (4, 5)}],
    "pai": [
        {"alpha": 0.2},
        {"alpha": 0.5},
        {"alpha": 1.0},
        {"alpha": 0.2, "gamma": 1.1},
        {"alpha": 0.5, "gamma": 1.5},
    ],
    "devils": [{"alpha": 0.25}, {"alpha": 0.5}, {"alpha": 1.0}],
    "vaf": [{}, {"enhance": 1.5, "suppress": 0.9}, {"enhance": 2.0, "suppress": 0.8}],
    "adhh": [{"threshold": 0.2}, {"threshold": 0.4}, {"threshold": 0.6}],
    "opera": [{}, {"penalty_weights": 0.25}],
    "iat": [{"alpha": 0.2}, {"alpha": 0.8}, {"alpha": 1.5}],
    "adaiat": [{"alpha": 2.0}, {"alpha": 6.0}, {"alpha": 12.0}],
    "act": [
        {"heads": "all"},
        {"heads": "all", "sink_ratio": 2.0},
        {"heads": "all", "sink_keep_fraction": 0.1},
    ],
    "adavboost": [{}, {"image_max": 1.5}, {"image_max": 1.5, "text_max": 1.0}],
    "head_pursuit": [
        {"concept": "objects", "head_scale": -1.0},
        {"concept": "objects", "head_scale": 3.0},
        {"concept": "colours", "head_scale": -1.0},
    ],
    "cei": [{"alpha": 0.05}, {"alpha": 0.1}, {"alpha": 0.3}],
    "fade": [{"alpha": 0.1}, {"alpha": 0.2}, {"alpha": 0.5}],
    "rudder": [{"alpha_share": 0.1}, {"alpha_share": 0.2}, {"alpha_share": 0.5}],
    "vista": [{"strength": 0.05}, {"strength": 0.1}, {"strength": 0.3}],
    "vti": [{"alpha_text": 0.4}, {"alpha_text": 0.8}, {"alpha_text": 2.0}],
    "nullu": [{"rank": 1}, {"rank": 4}, {"rank": 8}],
    "sira": [{"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 2.0}],
    "sla": [{"gamma": 0.1}, {"gamma": 0.3}, {"gamma": 0.3, "normed": True}],
    "hulluedit": [{}, {"blend": 0.4}, {"kappa": 1.5}],
    "visual_entropy": [{}, {"alpha": 3.0}, {"alpha": 3.0, "gamma": None}],
    "farsight": [{"sigma": 0.2}, {"sigma": 0.8}, {"sigma": 3.0}],
    "eah": [{"threshold": 0.001}, {"threshold": 0.002}, {"threshold": 0.01}],
    "damro": [{"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 2.0}],
    "code": [{"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 1.0, "exponent": 1.0}],
    "causalmm": [{"gamma": 0.5}, {"gamma": 1.0}, {"gamma": 1.0, "vision_edit": "uniform"}],
    "memvr": [{"ratio": 0.06}, {"ratio": 0.12}, {"ratio": 0.12, "threshold": 0.3}],
    "avisc": [{"alpha": 0.5}, {"alpha": 1.0}, {"alpha": 2.0}],
}
"""Candidates by method, around the published settings as far as those fit a model of 8 layers and 64 image
tokens; a method that is not named runs at its defaults."""
