"""One `generate` call as methods see it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.modules import DecoderModules
from vlmfix.engine.rows_of_state import of_rows
from vlmfix.engine.state import AuxiliaryPrompt, Encoded, EngineState, PruningStage
from vlmfix.engine.stats import Counts
from vlmfix.engine.tokens import has_no_markers, image_markers
from vlmfix.engine.vision_attention import EncodedImage, EncoderTap
from vlmfix.engine.vision_encoder import VisionEncoder
from vlmfix.errors import UnsupportedError
from vlmfix.models.image_grid.families import token_grids
from vlmfix.models.image_grid.grids import ImageTokens, by_prompt
from vlmfix.models.markup import image_markup


@dataclass(eq=False)
class DecodeContext:
    """Born at the prefill, gone at the next one or when a method comes or goes; nothing else keeps state.

    Args:
        layout: where the parts of the prompt lie.
        num_layers: decoder layers of the model.
        attention_layers: those that attend; None: all.
        prompt_ids: token ids of the prompt, `(batch, prompt)`; None where only embeddings were given.
        image_token: id of the image placeholder.
        video_tokens: which of the image tokens of the layout are those of videos, `(batch, prompt)` bool;
            None: none.
        processor: of the model, if the method was attached with one.
        step: 0 in the prefill, then the number of tokens generated before this forward pass.
        is_prefill: whether this pass reads the prompt for the first time.
        alive: sequences that have not ended, `(batch,)` bool.
        auxiliary_prompts: what methods added after the prompt; in the prefill only.
        modules: what methods may run of the text decoder by themselves.
        early_exits: what entered the tapped layers at the newest position in this pass, `(batch, hidden)`,
            by layer.
        pruning_stages: what pruning left, by layer.
        inputs: what `generate`, or else the model, was given beside the tokens, such as `pixel_values`; in
            the prefill only.
        copies: sequences of each prompt in `inputs`, which beams multiply.
        config: of the whole model.
        image_arguments: names of the inputs that the vision encoder takes, pixels and what goes with them.
        encode_images: what the vision encoder makes of images, see `vlmfix.engine.vision_cache`.
        embed_tokens: embeddings of token ids.
        encoder: what was seen of the vision encoder, if a method needs it.
        vision_encoder: the vision encoder, if a method changes it.
        position_embeddings: cosines and sines of the tokens in the layer, `(batch or 1, tokens, head_dim)`;
            in the prefill only.
        has_newest_row: whether the newest token is the last of the rows that a hook edits; the others are
            edited in blocks.
        row_positions: where the rows that a hook edits or previews stand among the tokens that are present in
            the layer, generated ones after the prompt, `(rows,)` int64; None: there is the newest alone.
        log_sum_exp: computes the log-sum-exp of the scores that became the weights of a hook, `(batch, heads,
            rows, 1)` float32; during `Method.edit_weights` only.
        peek: computes weights `(batch, heads, rows, keys)` of the layer that is about to run, for given
            rows; during `Method.prune` only.
        attend: what the attention of the layer adds to the residual stream `(batch, rows, hidden)` under
            given weights `(batch, heads, rows, keys)`; during `Method.observe` only.
        engine: what the engine alone knows of the run.
        state: what methods keep from the prefill for later steps, under keys such as `(self, layer)`; the
            first dimension of tensors counts the sequences, or is 1 for all. What has a `PromptLayout` in its
            key is found anew when sequences come or go.
        memory: what `RemembersSequences` methods keep of the tokens generated so far, under such keys,
            `(batch, ...)` each; beams take it along.
        counts: what each method did.
        declined: by method and reason, sequences that it leaves as they are, see `decline`.
        whole: the run of which this is a part, and which sequences of it these are.
        began: the runs in which these sequences began, where it is not this one.
    """

    layout: PromptLayout
    num_layers: int
    attention_layers: tuple[int, ...] | None = None
    prompt_ids: Tensor | None = None
    image_token: int = -1
    video_tokens: Tensor | None = None
    processor: Any = None
    step: int = 0
    is_prefill: bool = True
    alive: Tensor = field(init=False)
    auxiliary_prompts: dict[Any, AuxiliaryPrompt] = field(default_factory=dict)
    modules: DecoderModules | None = None
    early_exits: dict[int, Tensor] = field(default_factory=dict)
    pruning_stages: list[PruningStage] = field(default_factory=list)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    copies: int = 1
    config: PreTrainedConfig | None = None
    image_arguments: tuple[str, ...] = ()
    encode_images: Callable[[Sequence[Mapping[str, Tensor]]], list[Encoded]] | None = None
    embed_tokens: Callable[[Tensor], Tensor] | None = None
    encoder: EncoderTap | None = None
    vision_encoder: VisionEncoder | None = None
    position_embeddings: tuple[Tensor, Tensor] | None = None
    has_newest_row: bool = True
    row_positions: Tensor | None = None
    log_sum_exp: Callable[[], Tensor] | None = None
    peek: Callable[[Rows], Tensor] | None = None
    attend: Callable[[Tensor], Tensor] | None = None
    engine: EngineState = field(default_factory=EngineState)
    state: dict[Hashable, Any] = field(default_factory=dict)
    memory: dict[Hashable, Tensor] = field(default_factory=dict)
    counts: dict[Any, Counts] = field(default_factory=dict)
    declined: dict[Any, dict[str, Tensor]] = field(default_factory=dict)
    whole: tuple[DecodeContext, slice] | None = None
    began: tuple[Began, ...] = ()
    _unions: dict[tuple[Rows, ...], Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alive = torch.ones_like(self.layout.image_tokens[:, 0])

    @cached_property
    def images(self) -> list[list[ImageTokens]]:
        """How the image tokens of each sequence form images, videos and grids; to be asked in the prefill.

        Raises:
            UnsupportedError: it is not known exactly for this model.
        """
        assert self.config is not None
        videos = None if self.video_tokens is None else self.video_tokens[:: self.copies]
        numbers = None if self.image_numbers is None else self.image_numbers[:: self.copies]
        prompts = token_grids(
            self.config, self.inputs, self.layout.image_tokens[:: self.copies], videos, numbers
        )
        return [images for images in prompts for _ in range(self.copies)]

    @cached_property
    def encoded_images(self) -> list[list[EncodedImage]]:
        """What the vision encoder attended to in the images, and the frames of videos, of each sequence; for
        `needs_encoder`.

        Raises:
            UnsupportedError: it was not seen at work on these images.
        """
        assert self.encoder is not None
        images, videos = self.encoder.images, self.encoder.videos
        tokens = self.layout.image_tokens
        of_videos = torch.zeros_like(tokens) if self.video_tokens is None else self.video_tokens
        # A generate call may encode its images once for all copies of a prompt.
        encoded = sum(each.count for each in (*images, *videos))
        copies = self.copies if encoded * self.copies == int(tokens.sum()) else 1
        prompts = by_prompt(images, videos, tokens[::copies], of_videos[::copies])
        if prompts is None:
            raise UnsupportedError(
                "the images of the prompt did not go through the vision encoder of this call; pass "
                "pixel_values, not features"
            )
        return [own for own in prompts for _ in range(copies)]

    @cached_property
    def image_blocks(self) -> Tensor:
        """Image tokens, and all that is written around and between those of an image, or of a video or frame
        of it: markers, row breaks, names of tiles; `(batch, prompt)` bool.

        What is written is said by a processor with which the method was attached, and by the configuration.

        Raises:
            UnsupportedError: it is not known, or the token ids are not.
        """
        assert self.config is not None
        image = self.layout.image_tokens
        numbers = self.image_numbers
        begin, end = image_markers(self.config, self.processor)
        if numbers is None and begin is None and end is None:
            if not has_no_markers(self.config):
                raise self._unknown_markup()
            return image
        ids = self.token_ids
        if numbers is not None:
            image = image | (numbers >= 0)
        ahead, behind = nn.functional.pad(image[:, 1:], (0, 1)), nn.functional.pad(image[:, :-1], (1, 0))
        first, last = (ids == begin) & ahead, (ids == end) & behind
        if numbers is None and None not in (begin, end):
            runs = [(each & (image ^ near)).sum(dim=1) for each, near in ((first, ahead), (last, behind))]
            if not torch.equal(*runs):  # other tokens stand inside of an image
                raise self._unknown_markup()
        return image | first | last

    def _unknown_markup(self) -> UnsupportedError:
        assert self.config is not None
        return UnsupportedError(
            f"what is written around the images of {self.config.model_type} is not known; attach with its "
            "processor: 'with method(model, processor):', or vlmfix.generate"
        )

    @cached_property
    def image_numbers(self) -> Tensor | None:
        """To which of the images of its prompt each token belongs, with what a processor writes around and
        between their placeholders; -1: to none; `(batch, prompt)` int64. None: no processor says so.
        """
        if self.processor is None or self.prompt_ids is None:
            return None
        markup = image_markup(self.processor, self.image_token)
        if markup is None:
            return None
        numbers = torch.full_like(self.prompt_ids, -1)
        layout = self.layout
        rows = zip(numbers, self.prompt_ids, layout.image_tokens, layout.real_tokens, strict=True)
        for own, ids, shown, real in rows:
            own[real] = own.new_tensor(markup.of_image(ids[real].tolist(), shown[real].tolist()))
        return numbers

    @cached_property
    def has_video(self) -> bool:
        """Whether any sequence has a token of a video."""
        return self.video_tokens is not None and bool(self.video_tokens.any())

    @property
    def token_ids(self) -> Tensor:
        """`prompt_ids`, for those who cannot do without.

        Raises:
            UnsupportedError: only embeddings were given.
        """
        if self.prompt_ids is None:
            raise UnsupportedError(
                "the prompt is given as inputs_embeds alone, and what its tokens are is not known; pass its "
                "input_ids to generate as well"
            )
        return self.prompt_ids

    @property
    def auxiliary_length(self) -> int:
        """Number of tokens after the prompt in this pass that belong to auxiliary prompts."""
        return sum(
            auxiliary_prompt.inputs_embeds.shape[1] for auxiliary_prompt in self.auxiliary_prompts.values()
        )

    def auxiliary_tokens(self, method: Any, tokens: int) -> slice:
        """Where the auxiliary prompt of a method stands among the `tokens` of this pass."""
        start = tokens - self.auxiliary_length
        for owner, auxiliary_prompt in self.auxiliary_prompts.items():
            end = start + auxiliary_prompt.inputs_embeds.shape[1]
            if owner is method:
                return slice(start, end)
            start = end
        raise KeyError(type(method).__name__)

    def position_of(self, generated: int) -> Tensor:
        """Position of a generated token, the first being 0: `(batch or 1, 1)`, or `(axes, batch, 1)`; the
        model may count from the first layer's cache, which a pruning makes short."""
        assert self.engine.next_position is not None
        return self.engine.next_position[..., None] + generated

    @property
    def first_position(self) -> Tensor | int:
        """Position of the first token of the prompts, `(batch, 1)`, or of all of them."""
        return self.engine.first_position

    def reads_on(self, queries: int) -> bool:
        """Whether a pass of so many tokens reads new ones on the cache of the prompt."""
        return not self.is_prefill and (queries == 1 or self.engine.candidates is not None)

    def first_new_row(self, layer: int, tokens: int) -> int:
        """Where the last prompt token stands among the `tokens` of this pass in a layer, new ones after it; 0
        where the pass reads new ones alone."""
        return 0 if self.reads_on(tokens) else self.layout_at(layer).length - 1

    @property
    def reads_prompt(self) -> bool:
        """Whether this pass reads rows of the prompt: the prefill, what is read again of it, and without a
        cache every pass."""
        return self.step == 0 or self.engine.cache is None

    def follow(self, sources: Tensor) -> None:
        """Let each sequence go on from another one, `(batch,)` int64."""
        self.engine.gates.follow(sources)
        self.memory = {
            key: value.index_select(0, sources.to(value.device)) for key, value in self.memory.items()
        }

    def part(self, rows: slice | Tensor) -> DecodeContext:
        """The run of some sequences alone, when the prompt has been read.

        Args:
            rows: a slice, and what it counts, counts here; or their numbers, `(sequences,)` int64 on the CPU,
                and it counts by itself.

        Raises:
            ValueError: a method keeps what does not tell the sequences apart.
        """
        batch = self.layout.batch_size
        return DecodeContext(
            self.layout.part(rows),
            num_layers=self.num_layers,
            attention_layers=self.attention_layers,
            prompt_ids=None if self.prompt_ids is None else self.prompt_ids[rows],
            image_token=self.image_token,
            video_tokens=None if self.video_tokens is None else self.video_tokens[rows],
            processor=self.processor,
            step=self.step,
            is_prefill=False,
            pruning_stages=[
                PruningStage(
                    each.first_layer, each.layout.part(rows), each.index[rows], renumbered=each.renumbered
                )
                for each in self.pruning_stages
            ],
            config=self.config,
            modules=self.modules,
            state={key: of_rows(value, rows, batch) for key, value in self.state.items()},
            declined={
                method: {reason: sequences[rows] for reason, sequences in reasons.items()}
                for method, reasons in self.declined.items()
            },
            whole=(self, rows) if isinstance(rows, slice) else None,
        )

    def check_attention(self, name: str, layers: Sequence[int], *, all_of_them: bool = False) -> None:
        """Refuse a method whose layers keep a state in the place of attention.

        Args:
            name: of the method that acts in the layers.
            layers: by number.
            all_of_them: whether each of them has to attend, or any.

        Raises:
            UnsupportedError: with the layers that attend.
        """
        if self.attention_layers is None:
            return
        attending = [layer in self.attention_layers for layer in layers]
        if not (all(attending) if all_of_them else any(attending)):
            raise UnsupportedError(
                f"{name} acts on attention in layers {', '.join(map(str, layers))}; of this "
                f"model, layers {', '.join(map(str, self.attention_layers))} attend; choose among these"
            )

    def pruning_stage_at(self, layer: int) -> PruningStage | None:
        """What a pruning left of the prompt in `layer`; None: all of it."""
        for stage in reversed(self.pruning_stages):
            if stage.first_layer <= layer:
                return stage
        return None

    def layout_at(self, layer: int) -> PromptLayout:
        """Where the parts of the prompt lie among the tokens that are present in `layer`."""
        stage = self.pruning_stage_at(layer)
        return self.layout if stage is None else stage.layout

    def decline(self, method: Any, reason: str, sequences: Tensor) -> None:
        """Note sequences that a method cannot take and leaves as they are, for `Method.takes`; in the
        prefill. Reads the device.

        Args:
            reason: in words, for the activity and the warning.
            sequences: which, `(batch,)` bool; without any, nothing is noted.
        """
        if bool(sequences.any()):
            self.declined.setdefault(method, {})[reason] = sequences

    def count(self, method: Any, layer: int | None, edited: Tensor, eligible: int | Tensor) -> None:
        """Note what a method did in a layer of this step.

        Args:
            layer: None for what no layer does, such as an edit of the logits.
            edited: number of sites that it edited in each sequence, `(batch,)`, or where it edited any,
                `(batch, sites, rows)` bool.
            eligible: number of sites that it could have edited, one for all sequences or `(batch,)`.
        """
        if layer is not None and not self.is_prefill:
            edited = self.engine.gates.passing(method, edited)
        self.counts_of(method).add(layer, edited, eligible)

    def measure(self, method: Any, **sizes: Tensor) -> None:
        """Note the size of edits in a layer of this step; activity has the means over steps and sequences.

        Args:
            sizes: by name, `(batch, sites)` each; "size" is the one in the method's own unit.
        """
        self.counts_of(method).measure(sizes)

    def counts_of(self, method: Any) -> Counts:
        """The counters of `method` in this run."""
        if method not in self.counts:
            if self.whole is not None:
                whole, rows = self.whole
                self.counts[method] = whole.counts_of(method).part(rows)
            else:
                device = self.layout.image_tokens.device
                self.counts[method] = Counts(self.layout.batch_size, self.num_layers, device)
        return self.counts[method]

    def union(self, rows: list[Rows]) -> Rows:
        """The rows that any of `rows` has, worked out once a run for each combination."""
        key = tuple(rows)
        if key not in self._unions:
            self._unions[key] = reduce(or_, dict.fromkeys(rows))
        return self._unions[key]


@dataclass(frozen=True)
class Began:
    """Sequences that are read on in another run than that in which they began.

    Args:
        run: that in which they began; what is counted since counts there when it is settled.
        rows: their numbers there, `(sequences,)` int64 on the CPU.
        places: where they stand now, `(sequences,)` int64 on the CPU.
    """

    run: DecodeContext
    rows: Tensor
    places: Tensor
