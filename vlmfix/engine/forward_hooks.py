"""The passes of the text decoder: companions ride along, branches are read, the last row is read again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from vlmfix.engine.branches import follow_beams, join
from vlmfix.engine.caches import read_cache, with_cache, write_cache
from vlmfix.engine.context import Run
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.token_pruning import Narrowing, leave_out
from vlmfix.errors import UnsupportedError

if TYPE_CHECKING:
    from vlmfix.engine.attachment import Steering


class Passes:
    """Hooks around the text decoder and its layers.

    Args:
        steering: whose methods act and whose run is read.
    """

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.decoder = steering.decoder
        self._given: dict[str, Any] = {}
        self._narrowing = Narrowing(self.decoder)
        self._is_reading_again = False

    def before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Append companions in the prefill; keep positions right behind tokens that never entered."""
        run, methods = self.steering.run, self.steering.methods
        if run is None or run.reading is not None or run.block is not None:
            return None
        if kwargs.get("inputs_embeds") is None:
            return None
        copies = self.steering.copies
        if run.is_prefill and copies > 1:
            kwargs = _copied(kwargs, copies)
        embeddings = kwargs["inputs_embeds"]
        if run.is_prefill:
            self._given = dict(kwargs)
            run.companions = {
                method: companion
                for method in methods
                if (companion := method.companion(run, embeddings)) is not None
            }
            run.branches = [
                branch for method in methods for branch in method.branches(run, embeddings, self._given)
            ]
        elif run.branches and not self._is_reading_again:
            self._given = dict(kwargs)
        if run.is_prefill:
            # Not the largest: the times of a video may lie far behind the text that follows it.
            run.next_position = _positions(kwargs, run.layout)[..., run.layout.length - 1] + 1
        prunes = any(method.prunes for method in methods)
        if not run.companions and not prunes and not run.branches:
            return args, kwargs
        _check_mask(kwargs.get("attention_mask"))
        kwargs = dict(kwargs)
        if prunes:
            self._narrowing.take_over_injection(kwargs)
            if run.step and run.stages and run.stages[0].first_layer == 0 and embeddings.shape[1] == 1:
                kwargs["position_ids"] = run.position_of(run.step - 1)
        if run.companions:
            _append_companions(run, kwargs)
        if run.branches and not run.is_prefill and _is_joined(run):
            kwargs = join(run, self.decoder, kwargs)
        return args, kwargs

    def after_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """End a pass; put behind the prompts what else the model shall turn into logits."""
        run = self.steering.run
        if run is None or run.reading is not None or self._is_reading_again:
            return None
        if run.block is None:
            self._check_cache(run, kwargs, output)
        if run.is_prefill:
            self._end_prefill(run, output)
        rows = []
        if run.branches:
            if run.step and _is_joined(run):
                write_cache(output, read_cache(self._given))
            else:
                rows = self._read_branches(run)
        self._given = {}
        newest = output.last_hidden_state[: run.layout.batch_size, -1]
        for method in self.steering.methods:
            rows += method.readouts(run, newest)
        if rows:
            _append_rows(run, output, rows)
        return output

    def _check_cache(self, run: Run, kwargs: dict[str, Any], output: Any) -> None:
        """Refuse a pass whose tokens went to another cache than the one that was given, or to none."""
        given, used = read_cache(kwargs), read_cache(output)
        read = run.layout_at(0).length + run.companion_length + run.step
        wanted = kwargs.get("use_cache") is True
        if (given is not None and used is not given) or (used is None and wanted):
            fault = "did not use the cache that it was given" if given is not None else "returned no cache"
        elif used is not None and used.get_seq_length() != read:
            fault = f"left {used.get_seq_length()} tokens in its cache where {read} were read"
        else:
            return
        raise UnsupportedError(
            f"{type(self.decoder).__name__} of transformers {transformers.__version__} {fault}, so that "
            "methods could not tell a prompt from a decode step; use a version of transformers that vlmfix "
            "was tested with"
        )

    def _end_prefill(self, run: Run, output: Any) -> None:
        """End the first pass over the prompt: companions leave, and the last row is read again if asked."""
        run.cache = cache = read_cache(output)  # the decoder may have made it
        if run.companions:
            extra = run.companion_length
            _replace_rows(output, lambda states: states[:, :-extra])
            if cache is not None:
                cache.crop(-extra)
            run.companions = {}
        run.is_prefill = False
        if any(method.reads_last_row_again(run) for method in self.steering.methods):
            again = self._read_last_row_again(cache)
            last = [states[:, -1:] for states in _states(again)]
            _replace_rows(output, lambda states: torch.cat([states[:, :-1], last.pop(0)], dim=1))
        if run.branches:
            for branch in run.branches:
                branch.cache = None if cache is None else DynamicCache()
            if cache is not None:
                follow_beams(run, cache)
        run.position_embeddings, run.inputs = None, {}
        for stage in run.stages:
            stage.position_embeddings = None

    def before_layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let methods see what enters a layer, in the prompt all of it, and leave out what they prune."""
        run = self.steering.run
        if run is None or run.reading is not None:
            return None
        hidden_states = args[0] if args else kwargs["hidden_states"]
        if run.prefix is not None and not run.prefix.is_read:
            if any(method.sees_layers for method in self.steering.methods):
                run.prefix.hidden_states.append(hidden_states)
            return None
        is_decode = run.reads_on(hidden_states.shape[1])
        if is_decode and run.stage_at(index) is None:
            _tap(run, index, hidden_states)
            return None
        kwargs = dict(kwargs)
        if not is_decode:
            hidden_states = self._narrowing.inject(run, index, hidden_states)
        with torch.no_grad():
            if run.is_prefill:
                self._narrowing.prune(run, self.steering.methods, index, layer, hidden_states, kwargs)
            stage = run.stage_at(index)
            if stage is not None:
                if not is_decode and stage.first_layer == index:
                    hidden_states = leave_out(run, stage, hidden_states)
                self._narrowing.set_positions(run, stage, index, hidden_states, kwargs)
            if run.is_prefill:
                run.position_embeddings = kwargs["position_embeddings"]
                prompt = self._prompt(run, index, hidden_states)
                for method in self.steering.methods:
                    method.enter_layer(run, index, prompt)
        _tap(run, index, hidden_states)
        if args:
            return (hidden_states, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden_states}

    def _prompt(self, run: Run, index: int, hidden_states: Tensor) -> Tensor:
        """What enters a layer at the tokens of the prompt that are present in it."""
        if run.prefix is not None and run.prefix.hidden_states:
            beginnings = run.prefix.spread(run.prefix.hidden_states[index])
            return torch.cat([beginnings, hidden_states], dim=1)
        return hidden_states[:, : run.layout_at(index).length]

    def _read_last_row_again(self, cache: Any) -> Any:
        """Run the last prompt token once more, when the prompt has been seen; without a cache, all of it."""
        given = dict(self._given)
        if cache is not None:
            cache.crop(-1)
            given = with_cache(self.decoder, given, cache)
            given["inputs_embeds"] = given["inputs_embeds"][:, -1:]
            _inject_last(given)
            positions = given.get("position_ids")
            run = self.steering.run
            assert run is not None
            if positions is None:
                positions = torch.tensor([[run.layout.length - 1]], device=given["inputs_embeds"].device)
            given["position_ids"] = positions[..., -1:]
        self._is_reading_again = True
        try:
            return self.decoder(**given)
        finally:
            self._is_reading_again = False

    def _read_branches(self, run: Run) -> list[Tensor]:
        """Let the decoder read the branches by themselves: their last hidden states, `(batch, hidden)`."""
        embeddings = self._given["inputs_embeds"]
        first = run.step == 0
        rows = []
        for branch in run.branches:
            new = embeddings[:, run.layout.length :] if branch.cache is None else embeddings[:, -1:]
            whole = first or branch.cache is None
            read = torch.cat([branch.inputs_embeds, new], dim=1) if branch.cache is None else new
            if first:
                read = branch.inputs_embeds
            given = dict(branch.decoder_inputs) if whole else {}
            if "visual_pos_masks" in given:
                behind = read.shape[1] - branch.inputs_embeds.shape[1]
                given["visual_pos_masks"] = nn.functional.pad(given["visual_pos_masks"], (0, behind))
            positions = branch.positions(_positions(self._given, run.layout), run.step)
            given["position_ids"] = positions[..., -read.shape[1] :]
            run.reading = branch
            try:
                states = self.decoder(
                    inputs_embeds=read,
                    attention_mask=None,
                    use_cache=branch.cache is not None,
                    **with_cache(self.decoder, given, branch.cache),
                ).last_hidden_state
            finally:
                run.reading = None
            rows.append(states[:, -1])
        return rows


def _tap(run: Run, index: int, hidden_states: Tensor) -> None:
    """Keep what enters a tapped layer at the newest position; a copy, to let go of the rest."""
    if index in run.taps:
        newest = hidden_states.shape[1] - run.companion_length - 1
        run.exits[index] = hidden_states[: run.layout.batch_size, newest].clone()


def _append_rows(run: Run, output: Any, rows: list[Tensor]) -> None:
    """Put hidden states `(batch, hidden)` behind the last ones of the prompts, at the newest position."""
    states = output.last_hidden_state
    if run.wants_last_logits:
        states = states[:, -1:]
    added = torch.cat([each.to(states) for each in rows])[:, None]
    padded = nn.functional.pad(added, (0, 0, states.shape[1] - 1, 0))
    output.last_hidden_state = torch.cat([states, padded])


def _is_joined(run: Run) -> bool:
    """Whether branches are decoded in one pass with the prompts."""
    return all(branch.fused and branch.cache is not None for branch in run.branches)


def _copied(kwargs: dict[str, Any], copies: int) -> dict[str, Any]:
    """What the decoder is given, for so many sequences of each prompt."""
    kwargs, prompts = dict(kwargs), len(kwargs["inputs_embeds"])
    for name, dim in (("inputs_embeds", 0), ("attention_mask", 0), ("position_ids", -2)):
        if kwargs.get(name) is not None and kwargs[name].shape[dim] == prompts:
            kwargs[name] = kwargs[name].repeat_interleave(copies, dim=dim)
    places = kwargs.get("visual_pos_masks")
    if places is not None:
        counts = places.sum(dim=1).tolist()
        kwargs["visual_pos_masks"] = places.repeat_interleave(copies, dim=0)
        kwargs["deepstack_visual_embeds"] = [
            torch.cat([own for own in features.split(counts) for _ in range(copies)])
            for features in kwargs["deepstack_visual_embeds"]
        ]
    return kwargs


def _inject_last(given: dict[str, Any]) -> None:
    """Of the visual features that Qwen3-VL adds behind its first layers, leave those of the last column."""
    places = given.pop("visual_pos_masks", None)
    features = given.pop("deepstack_visual_embeds", None)
    if places is None or features is None or not bool(places[:, -1].any()):
        return
    is_last = places.nonzero()[:, 1] == places.shape[1] - 1
    given["visual_pos_masks"] = places[:, -1:]
    given["deepstack_visual_embeds"] = [each[is_last.to(each.device)] for each in features]


def _check_mask(mask: Any) -> None:
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise UnsupportedError(
            "this model prepares its attention masks ahead of the decoder (for instance to let image tokens "
            "see each other), which pruning and companion prompts do not support"
        )


def _positions(kwargs: dict[str, Any], layout: PromptLayout) -> Tensor:
    """The positions given to the decoder, or those that it would count itself."""
    given = kwargs.get("position_ids")
    if given is not None:
        return given
    embeddings = kwargs["inputs_embeds"]
    return torch.arange(embeddings.shape[1], device=embeddings.device)[None]


def _append_companions(run: Run, kwargs: dict[str, Any]) -> None:
    """Put the companions behind the prompt, with positions of their own."""
    embeddings, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
    positions = _positions(kwargs, run.layout)
    batch = embeddings.shape[0]
    for companion in run.companions.values():
        embeddings = torch.cat([embeddings, companion.inputs_embeds], dim=1)
        own = companion.layout.counted_positions.to(positions.device)
        head = positions.expand(*positions.shape[:-2], batch, -1)
        positions = torch.cat([head, own.expand(*head.shape[:-1], -1)], dim=-1)
        if mask is not None:
            mask = torch.cat([mask, companion.real_tokens.to(mask)], dim=1)
    kwargs.update(inputs_embeds=embeddings, position_ids=positions, attention_mask=mask)
    if kwargs.get("visual_pos_masks") is not None:
        places = kwargs["visual_pos_masks"]
        kwargs["visual_pos_masks"] = torch.cat([places, places.new_zeros(batch, run.companion_length)], dim=1)


def _states(output: Any) -> list[Tensor]:
    """The hidden states that the decoder returns: the last, and those of all layers where asked for."""
    return [output.last_hidden_state, *(getattr(output, "hidden_states", None) or ())]


def _replace_rows(output: Any, edit: Any) -> None:
    output.last_hidden_state = edit(output.last_hidden_state)
    if getattr(output, "hidden_states", None):
        output.hidden_states = tuple(edit(states) for states in output.hidden_states)
