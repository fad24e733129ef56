"""The command `vlmfix generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlmfix
from vlmfix.cli.completion import complete_methods
from vlmfix.cli.console import err, out, print_json, progress_bar
from vlmfix.cli.options import (
    RECIPE,
    AllowMissingOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    TokensOption,
    given_text,
    path_option,
    sampling_of,
)
from vlmfix.failures import failure_of, words
from vlmfix.methods.registry import AUTO, GREEDY
from vlmfix.models.embedded import DEFAULT_MODEL

if TYPE_CHECKING:
    from vlmfix.inference.conversation import Conversation
    from vlmfix.inference.output import Answer
    from vlmfix.recipes import Recipe

BATCH_SIZE = 8


def generate(
    model: ModelOption = DEFAULT_MODEL,
    image: Annotated[
        list[Path] | None,
        path_option("Picture or folder of pictures; may be repeated. (default: demo scene)"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            callback=given_text,
            help="What to ask about each picture. (default: Describe the image.)",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(callback=given_text, help="System message before the prompt.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Ask once, about all pictures in their order.")
    ] = False,
    messages: Annotated[
        Path | None,
        path_option(
            "JSON file with a conversation as apply_chat_template takes it, in the place of --image and "
            "--prompt; paths in it are relative to the file."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method by name (see 'vlmfix methods'), several as var+vhr, greedy, or auto: the recipe of "
            "the checkpoint. (default: greedy)",
            autocompletion=complete_methods,
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help=f"{RECIPE}; in the place of --method.")] = None,
    force: ForceOption = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Parameter KEY=VALUE, of one method among several METHOD.KEY=VALUE; repeatable."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show plain decoding beside the method.")
    ] = False,
    max_new_tokens: TokensOption = 128,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
    save_maps: Annotated[
        Path | None,
        path_option(
            "Folder for the maps and pictures that carve, mrfd, patch_matters and shield make, or for maps "
            "before and after registers and vti."
        ),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document and nothing else, also when it stops half way."),
    ] = False,
) -> None:
    """Answer a prompt about pictures, plainly or with methods."""
    import torch

    from vlmfix.api import decoding_under
    from vlmfix.cli.loading import load_model
    from vlmfix.cli.pictures import Answered, answers_or_errors, show
    from vlmfix.cli.questions import asked_questions
    from vlmfix.inference.decoding import plain_decoding, set_aside
    from vlmfix.methods.grammar import make_methods, parse_settings
    from vlmfix.methods.suitability import profile_values
    from vlmfix.methods.vision.maps import encoder_maps
    from vlmfix.recipes import find_recipe

    taken = _named_recipe(recipe, method, set_ or [], force=force)
    by_name = taken is None and method != AUTO
    [parsed] = parse_settings([method or GREEDY], set_ or []) if by_name else [{}]
    chosen = make_methods(parsed) if taken is None else taken.make_methods()
    if compare and by_name and not chosen:
        raise ValueError("--compare needs a --method to compare with plain decoding, such as --method var")
    if save_maps is not None:
        if not any(isinstance(each, vlmfix.MultiPassMethod | vlmfix.EditsVisionEncoder) for each in chosen):
            raise ValueError(
                "--save-maps needs --method carve, mrfd, patch_matters or shield, which make pictures, or "
                "registers or vti, which change what the vision encoder makes of it"
            )
        merging = [each.name for each in chosen if isinstance(each, vlmfix.PrunesTokens)]
        if merging and any(isinstance(each, vlmfix.EditsVisionEncoder) for each in chosen):
            raise ValueError(
                f"--save-maps shows all image tokens, and {' and '.join(merging)} leaves out some; leave one "
                "of them out"
            )
        save_maps.mkdir(parents=True, exist_ok=True)  # what cannot be written shows before any work
    questions = asked_questions(image, prompt, system, messages, together=together)
    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    if method == AUTO:
        taken = find_recipe(loaded[0])
        what = "+".join([name for name, _ in taken.methods]) or GREEDY
        err.print(
            f"recipe: {taken.name} ({what}, {taken.decoding.get('num_beams', 1)} beams)",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        chosen = taken.make_methods()
    elif taken is not None:
        taken.check(loaded[0], force=force)
    sampling = sampling_of(temperature)
    plain = "sampling" if temperature > 0 else GREEDY
    label = "+".join(parsed) or plain if taken is None else f"recipe {taken.name}"
    own = sampling if taken is None else taken.generate_kwargs(sampling)
    variants: dict[str, tuple[list[vlmfix.Method], dict[str, Any]]]
    variants = {plain: ([], sampling)} if compare else {}
    variants[label] = (chosen, own)

    def answered(asked: Sequence[Conversation]) -> list[Answered]:
        """The answers to a batch, by variant, and what a method that asks several times found out."""
        found = [Answered({}, [], {}) for _ in asked]
        for name, (applied, decoding) in variants.items():
            torch.manual_seed(seed)
            refinements: list[vlmfix.MultiPassResult] = []
            written: list[Answer] = []
            texts = vlmfix.generate(
                *loaded,
                messages=list(asked),
                method=applied,
                max_new_tokens=max_new_tokens,
                on_refinement=refinements.append,
                on_answer=written.append,
                **decoding,
            )
            for index, each in enumerate(found):
                each.texts[name] = texts[index]
                each.refinements.extend(refinements[index : index + 1])
                reasoning = written[index].reasoning
                if reasoning is not None:
                    each.reasoning[name] = reasoning
        return found

    def decoding_of(applied: list[vlmfix.Method], decoding: dict[str, Any]) -> dict[str, Any]:
        wanted = decoding_under(applied, {"max_new_tokens": max_new_tokens, **decoding})
        return plain_decoding(loaded[0], wanted)

    results: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    saved: list[Path] = []

    def document(stopped_by: BaseException | None = None) -> dict[str, Any]:
        head = {
            "model": model,
            "prompt": questions[0].conversation.question.text,
            "method": label,
            "parameters": {each.name: each.parameters for each in chosen},
            "profile": profile_values(chosen, loaded[0]),
            "activity": {each.name: dataclasses.asdict(each.edit_stats()) for each in chosen},
            "decoding": {name: decoding_of(*variant) for name, variant in variants.items()},
            "generation_config_set_aside": set_aside(loaded[0]),
        }
        error = {} if stopped_by is None else {"error": failure_of(stopped_by).message}
        return head | {"results": results, "failures": failures} | error

    try:
        with progress_bar("answering", len(questions), quiet=json_ or len(questions) == 1) as advance:
            for start in range(0, len(questions), BATCH_SIZE):
                batch = questions[start : start + BATCH_SIZE]
                conversations = [each.conversation for each in batch]
                for number, opened, found in answers_or_errors(conversations, answered):
                    question = batch[number]
                    if isinstance(found, Exception):
                        failures.append(question.source | {"error": words(found)})
                        continue
                    reasoning = {"reasoning": found.reasoning} if found.reasoning else {}
                    results.append(question.source | {"answers": found.texts} | reasoning)
                    if save_maps is not None:
                        stem = f"{len(results):04}-{Path(question.name).stem.replace(' ', '-')}"
                        for refinement in found.refinements[:1]:
                            saved += refinement.save(save_maps, stem)
                        for each in chosen:
                            if isinstance(each, vlmfix.EditsVisionEncoder):
                                assert opened is not None
                                saved += encoder_maps(*loaded, opened, each).save(save_maps, stem)
                    if not json_:
                        assert opened is not None
                        show(question.name, opened.pictures, found.texts, alone=len(questions) == 1)
                advance(len(batch))
    except (Exception, KeyboardInterrupt) as error:
        if json_:
            print_json(document(error))
        raise
    if json_:
        print_json(document())
    elif save_maps is not None:
        none = "" if saved else " (the method made none for these answers)"
        out.print(f"{len(saved)} files in {save_maps}{none}", soft_wrap=True, highlight=False, markup=False)
    if failures and len(questions) == 1:
        raise ValueError(failures[0]["error"])
    if failures:
        reasons = "; ".join(failure["error"] for failure in failures[:3])
        raise ValueError(
            f"{len(failures)} of {len(questions)} pictures could not be read or answered: {reasons}"
        )


def _named_recipe(name: str | None, method: str | None, settings: list[str], *, force: bool) -> Recipe | None:
    """The recipe that the options name; None: none.

    Raises:
        ValueError: it is no recipe, or other options do not go with it.
        FileNotFoundError: there is none.
    """
    if settings and (name is not None or method == AUTO):
        raise ValueError(f"--set {settings[0]} changes no recipe; write another file, or name a --method")
    if name is None:
        if force:
            raise ValueError("--force takes a recipe that is for other weights; name one with --recipe")
        return None
    if method is not None:
        raise ValueError(f"--recipe {name} brings its methods; leave --method {method} out")
    return vlmfix.load_recipe(name)
