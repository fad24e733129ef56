"""Other forms of the prompts of a batch, which contrastive methods decode beside them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import check_features, embedded_tokens, extras, selected
from vlmfix.engine.state import Branch, Selection
from vlmfix.engine.vision_cache import PIXELS, VIDEO_PIXELS, is_video, pixels_of, split_images
from vlmfix.errors import UnsupportedError

if TYPE_CHECKING:
    from vlmfix.engine.method import MethodHooks

NO_TEXT = "nothing but an image in the prompt"


def unchanged(
    context: DecodeContext,
    inputs_embeds: Tensor,
    decoder_inputs: Mapping[str, Any],
    *,
    fused: bool,
    selection: Selection | None = None,
) -> Branch:
    """The prompts as they are.

    Args:
        inputs_embeds: image features merged, `(batch, prompt, hidden)`.
        decoder_inputs: what else the text decoder was given.
        fused: see `Branch`.
        selection: see `Branch`.
    """
    positions = decoder_inputs.get("position_ids")
    return Branch(
        inputs_embeds,
        context.layout.real_tokens,
        positions,
        extras(decoder_inputs),
        fused=fused,
        selection=selection,
        seen=context.layout.seen,
    )


def without_image(
    context: DecodeContext,
    method: MethodHooks,
    inputs_embeds: Tensor,
    decoder_inputs: Mapping[str, Any],
    *,
    fused: bool,
    selection: Selection | None = None,
) -> Branch:
    """The prompts without their images, and without what is written around and between their tokens, see
    `DecodeContext.image_blocks`. The times that Qwen3-VL reads between the frames of a video are text and
    stay.

    A prompt of which nothing is left is declined for the method; its last token is read in its place.

    Args:
        method: that compares with them.
        inputs_embeds: image features merged, `(batch, prompt, hidden)`.
        decoder_inputs: what else the text decoder was given.
        fused: see `Branch`.
        selection: see `Branch`.
    """
    text, index = context.layout.select(text_alone(context, method, context.image_blocks))
    index = index.to(inputs_embeds.device)
    embeddings = inputs_embeds.gather(1, index[..., None].expand(-1, -1, inputs_embeds.shape[-1]))
    given = selected(embedded_tokens(decoder_inputs, inputs_embeds), index, torch.ones_like(index).bool())
    return Branch(embeddings, text.real_tokens, None, given, fused=fused, selection=selection, seen=text.seen)


def text_alone(context: DecodeContext, method: MethodHooks, image: Tensor) -> Tensor:
    """What is left of the prompts without their images, `(batch, prompt)` bool; the last token of a prompt of
    which nothing is, and which is declined for the method.

    Args:
        image: tokens to leave out, `(batch, prompt)` bool.
    """
    text = context.layout.real_tokens & ~image
    nothing = ~text.any(dim=1)
    context.decline(method, NO_TEXT, nothing)
    text[:, -1] |= nothing
    return text


def shown_images(context: DecodeContext, name: str, *, in_rows: bool = False) -> list[dict[str, Tensor]]:
    """The tensors of each image, then of each video, see `vlmfix.engine.vision_cache.split_images`.

    Args:
        name: of the method that wants to change them.
        in_rows: whether it is enough that crops come one a row of the pixels, with all images as one.

    Raises:
        UnsupportedError: the prompt came without pixels.
    """
    names = (*context.image_arguments, VIDEO_PIXELS, "video_grid_thw")
    given = {each: context.inputs.get(each) for each in names}
    if given.get(PIXELS) is None and given[VIDEO_PIXELS] is None:
        raise UnsupportedError(
            f"{name} changes the pixels of the image, and the prompt came without any; pass {PIXELS}, of a "
            f"video {VIDEO_PIXELS}"
        )
    images = split_images(given)
    if images is None:
        tensors = {each: value for each, value in given.items() if isinstance(value, Tensor)}
        shapes = {each: tuple(value.shape) for each, value in tensors.items()}
        # Crops come in rows, but which are of one image is not told by their number: they count as one.
        rows = max(map(len, pixels_of(tensors).values()))
        if not in_rows or any(len(value) > rows for value in tensors.values()):
            raise UnsupportedError(
                f"{name} changes the pixels of each image, and those of this model do not come one an image "
                f"({shapes}); use a method that acts on attention or on the text"
            )
        images = [tensors]
    if any(map(is_video, images)) and not context.has_video:
        raise UnsupportedError(
            f"{name} changes the pixels of a video, and no video token of the prompt tells where its "
            "features go in this model; show its frames as images"
        )
    return images


def seeded(pixels: Tensor, seed: int) -> torch.Generator:
    """A source of random numbers that depends on the seed and the pixels alone, on the CPU.

    Neither the place of an image in a batch nor the device then matters, and the numbers that sampling draws
    stay what they are.

    Args:
        pixels: of one image, of any shape.
        seed: 0 or more.
    """
    exact = pixels.detach().float().cpu().contiguous()
    return torch.Generator().manual_seed(zlib.crc32(exact.numpy().tobytes()) ^ seed)


def with_other_images(
    context: DecodeContext,
    images: Sequence[Mapping[str, Tensor]],
    inputs_embeds: Tensor,
    decoder_inputs: Mapping[str, Any],
    *,
    fused: bool,
) -> Branch:
    """The prompts about other images and videos of the same shapes.

    Args:
        images: in the order of the prompts, videos by themselves, see
            `vlmfix.engine.vision_cache.split_images`.
        inputs_embeds: image features merged, `(batch, prompt, hidden)`.
        decoder_inputs: what else the text decoder was given.
        fused: see `Branch`.
    """
    assert context.encode_images is not None
    check_features(decoder_inputs, inputs_embeds, "made of the other images")
    _check_merging(context, inputs_embeds)
    with torch.no_grad():
        encoded = context.encode_images(images)
    are_videos = [is_video(image) for image in images]
    if not any(are_videos):  # several images may come as one
        are_videos = [False] * len(encoded)
    prompts = context.layout.image_tokens[:: context.copies].to(inputs_embeds.device)
    videos = torch.zeros_like(prompts)
    if context.video_tokens is not None:
        videos = context.video_tokens[:: context.copies].to(prompts.device)
    places = {False: prompts & ~videos, True: videos}
    for kind, tokens in places.items():
        given = sum(
            len(each.features) for each, other in zip(encoded, are_videos, strict=True) if other == kind
        )
        if given != int(tokens.sum()):
            raise UnsupportedError(
                f"the {'videos' if kind else 'images'} make {given} tokens, but the prompts hold "
                f"{int(tokens.sum())} placeholders for them; pass the inputs of one processor call"
            )

    def placed(features: Sequence[Tensor], like: Tensor) -> Tensor:
        """Image features in their places, for every copy of a prompt."""
        filled = like.clone()
        for kind, tokens in places.items():
            own = [each for each, other in zip(features, are_videos, strict=True) if other == kind]
            if own:
                filled[tokens] = torch.cat(own).to(filled)
        return filled.repeat_interleave(context.copies, dim=0)

    own = inputs_embeds[:: context.copies]
    embeddings = placed([image.features for image in encoded], own)
    branch = unchanged(context, embeddings, decoder_inputs, fused=fused)
    if branch.decoder_inputs.get("visual_pos_masks") is None:
        return branch
    visual = branch.decoder_inputs["visual_pos_masks"]
    layers = zip(*(image.injected for image in encoded), strict=True)
    filled = [placed(features, torch.zeros_like(own)) for features in layers]
    injected = [each[visual.to(each.device)] for each in filled]
    branch.decoder_inputs = {**branch.decoder_inputs, "deepstack_visual_embeds": injected}
    return branch


def _check_merging(context: DecodeContext, inputs_embeds: Tensor) -> None:
    """Refuse a model that makes something else of image features than to put them in their places, as far as
    `generate` has encoded the images before."""
    output = None if context.engine.encoded is None else context.engine.encoded.get("image")
    features = getattr(output, "pooler_output", None)
    if features is None or context.has_video or not len(features):
        return
    first = features[0] if features[0].ndim == 2 else features
    own = inputs_embeds[context.layout.image_tokens.to(inputs_embeds.device)][: len(first)]
    if own.shape != first.shape or not torch.allclose(own, first.to(own), rtol=1e-2, atol=1e-3):
        raise UnsupportedError(
            "this model does not put the features of an image in its place as they are (it may add them to "
            "what is there), so that those of another image cannot be put there; use a method that acts on "
            "attention or on the text"
        )
