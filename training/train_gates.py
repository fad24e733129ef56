"""Train gates for DyVTE: `python -m training.train_gates tiny-llava --images FOLDER --output FILE`.

The folder has ordinary pictures, such as `vlmfix scenes` writes; no annotation is needed. 150 of them take
about four minutes for an embedded model, almost all of it for the labels: each answer is read once more for
every layer after which image tokens may leave. Unlike the paper, which draws one layer in each step and goes
over its data once, the labels of all layers are found first and serve many passes, as there are few pictures.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

import vlmfix
from training.optimizer import Schedule
from vlmfix.calibration.exit_layer import ExitTrial, exit_trials
from vlmfix.methods.pruning.dyvte import DyVTE, ExitGate, exit_logits
from vlmfix.models.directions import write_directions

SEED = 0
QUESTIONS = 3
"""For each picture, beside its description."""
HELD_OUT = 5
"""Of so many pictures one is not trained on."""
BATCH = 128


class Gates(nn.Module):
    """Gates of all layers but the last (arXiv 2411.19628).

    Args:
        layers: how many.
        hidden: width of the text decoder.
        gate_hidden: width of a gate.
    """

    def __init__(self, layers: int, hidden: int, gate_hidden: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(layers, gate_hidden, 2 * hidden))
        self.second = nn.Parameter(torch.empty(layers, 2, gate_hidden))
        for weight in (*self.first, *self.second):
            nn.init.xavier_uniform_(weight.data)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of keeping the image tokens and of letting them go, `(layers, batch, 2)`, from `(batch,
        layers, 2 hidden)`."""
        return exit_logits(features.transpose(0, 1), ExitGate(self.first, self.second))


def fit(features: Tensor, labels: Tensor, *, gate_hidden: int, epochs: int, rate: float) -> Gates:
    """Gates that tell from features whether image tokens may leave.

    Args:
        features: `(samples, layers, 2 hidden)` float32.
        labels: `(samples, layers)` bool.
        gate_hidden: width of a gate.
        epochs: passes over the samples.
        rate: the largest learning rate.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        gates = Gates(features.shape[1], features.shape[2] // 2, gate_hidden)
    batches = [
        part for _ in range(epochs) for part in torch.randperm(len(labels), generator=generator).split(BATCH)
    ]
    schedule = Schedule([gates], set(), len(batches), muon=0.0, adam=rate)
    for part in batches:
        logits = gates(features[part])
        target = labels[part].long().T
        schedule.step(nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()))
    return gates


@torch.no_grad()
def measured(gates: Gates, trials: list[ExitTrial]) -> dict[str, float]:
    """What gates do on prompts that they were not trained on, and one layer for all of like cost."""
    labels = torch.stack([trial.exits for trial in trials])
    logits = gates(torch.stack([trial.features for trial in trials]))
    opens = (logits[..., 1] > logits[..., 0]).T
    layers = labels.shape[1]
    exits = torch.where(opens.any(dim=1), opens.int().argmax(dim=1), layers)
    nearest = int(exits.float().mean().round())
    stays = nn.functional.pad(labels.float(), (0, 1), value=1.0)  # where nothing leaves, the answer stays
    tokens = nn.functional.pad(torch.stack([trial.agreement for trial in trials]), (0, 1), value=1.0)
    commoner = torch.maximum(labels.float().mean(dim=0), 1 - labels.float().mean(dim=0))
    return {
        "labels told": float((opens == labels).float().mean()),
        "labels told by the commoner one of each layer": float(commoner.mean()),
        "layers with image tokens": float(exits.float().mean()) + 1,
        "answers that stay": float(stays.gather(1, exits[:, None]).mean()),
        "answers that stay after the nearest layer for all": float(stays.mean(dim=0)[nearest]),
        "tokens that stay": float(tokens.gather(1, exits[:, None]).mean()),
        "tokens that stay after the nearest layer for all": float(tokens.mean(dim=0)[nearest]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train gates for DyVTE (arXiv 2411.19628).")
    parser.add_argument("model", help="an embedded model, a folder, or a name on the Hugging Face hub")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--limit", type=int, default=150, help="pictures at most")
    parser.add_argument("--gate-hidden", type=int, default=64, help="width of a gate (published: 2048)")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the prompts (published: 1)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (published: 6e-5)")
    arguments = parser.parse_args()
    model, processor = vlmfix.load(arguments.model)
    pictures = sorted(each for each in arguments.images.iterdir() if each.is_file())[: arguments.limit]
    read = itertools.count(1)
    trials = list(
        exit_trials(
            model,
            processor,
            pictures,
            lambda _: print(f"\r{next(read)} of {len(pictures)} pictures", end="", flush=True),
            questions=QUESTIONS,
        )
    )
    print()
    numbered = [(number // (1 + QUESTIONS), trial) for number, trial in enumerate(trials)]
    trained = [trial for picture, trial in numbered if picture % HELD_OUT != HELD_OUT - 1]
    held_out = [trial for picture, trial in numbered if picture % HELD_OUT == HELD_OUT - 1]
    gates = fit(
        torch.stack([trial.features for trial in trained]),
        torch.stack([trial.exits for trial in trained]),
        gate_hidden=arguments.gate_hidden,
        epochs=arguments.epochs,
        rate=arguments.rate,
    )
    write_directions(arguments.output, DyVTE.name, model.config, dict(gates.state_dict()))
    for name, value in measured(gates, held_out).items():
        print(f"{name}: {value:.3f}")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
