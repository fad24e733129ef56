"""A chat in the terminal: what was said, under which method, and the commands that change it."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from rich.markup import escape
from transformers import PreTrainedModel, ProcessorMixin, TextStreamer

import vlmfix
from vlmfix.api import decoding_under
from vlmfix.cli.console import err, out
from vlmfix.cli.display import thumbnail
from vlmfix.cli.pictures import show
from vlmfix.failures import failure_of, printable
from vlmfix.inference.conversation import Conversation, Message, Picture
from vlmfix.inference.pictures import open_images
from vlmfix.methods.grammar import make_methods, parse_settings
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.registry import AUTO, GREEDY
from vlmfix.recipes import Recipe, find_recipe

HELP = """\
/image PATH           show a picture with the next question; repeatable
/method NAME [K=V]    answer under a method, such as var, var+vcd vcd.alpha=0.5, auto or greedy
/compare              the last question again, greedily, beside its answer
/system TEXT          system message of the conversation; without a text, none
/reset                forget what was said
/help                 these lines
/quit                 end, as does the end of the input
Everything else is a question. Ctrl-C stops an answer."""


@dataclass
class Chat:
    """A conversation, which every question reads as a whole.

    Args:
        model: any that `vlmfix.generate` takes.
        processor: of the model.
        decoding: arguments of `model.generate`, without those of a method.
        seed: of the sampling, for each answer.
        system: system message; "": none.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    decoding: dict[str, Any]
    seed: int = 0
    system: str = ""
    method: list[vlmfix.Method] | Recipe = field(default_factory=list)
    label: str = GREEDY
    _said: list[Message] = field(default_factory=list)
    _pictures: list[Image.Image] = field(default_factory=list)
    _last: tuple[Conversation, str, str] | None = None

    def run(self) -> None:
        """Read lines until the end of the input or `/quit`."""
        if sys.stdin is None:  # closed by the shell
            return
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused as a question
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            with suppress(ImportError):
                import readline  # noqa: F401  # lines can be edited
            self._note(f"{self.label}; /help lists the commands")
        while True:
            try:
                line = input("> " if is_terminal else "")
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                self._note("/quit or Ctrl-D ends the chat")
                continue
            if line.strip() == "/quit":
                return
            try:
                self.take(line.strip())
            except BrokenPipeError:
                raise
            except KeyboardInterrupt:
                print()
                self._note("stopped; the question is not kept")
            except Exception as error:
                failure = failure_of(error)
                if failure.exit_code == 1:
                    raise  # a bug, which ends the process as everywhere
                err.print(f"[bold red]{failure.kind}:[/] {escape(failure.message)}", soft_wrap=True)

    def take(self, line: str) -> None:
        """Answer a question, or follow a command.

        Raises:
            ValueError: an unknown command, or something that it does not take.
        """
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        word, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self.show_picture,
            "/method": self._change_method,
            "/compare": self._compare,
            "/system": self._tell,
            "/reset": self._reset,
            "/help": lambda _: out.print(HELP, markup=False, highlight=False),
        }
        if word not in commands:
            raise ValueError(f"unknown command {word!r}; use {', '.join([*commands, '/quit'])}")
        commands[word](rest.strip())

    def show_picture(self, path: str) -> None:
        """Show a picture with the next question.

        Raises:
            ValueError, FileNotFoundError: there is none, or it cannot be read.
        """
        if not path:
            raise ValueError("/image needs the path of a picture")
        [picture] = open_images(path)
        if out.is_terminal:
            out.print(thumbnail(picture))
        self._pictures.append(picture)
        self._note(f"{printable(path)}: picture {len(self._pictures)} of the next question")

    def use(self, name: str, settings: Sequence[str] = ()) -> None:
        """Answer under a method from now on.

        Args:
            name: as `vlmfix generate --method` takes it.
            settings: as its `--set`.

        Raises:
            ValueError: an unknown method or a setting that it does not take, also on this model.
            UnsupportedError: the model or another method does not go with it.
        """
        if name == AUTO and not settings:
            recipe = find_recipe(self.model)
            self.method, self.label = recipe, f"recipe {recipe.name}"
        else:
            [parsed] = parse_settings([name], settings)
            methods = make_methods(parsed)
            with ExitStack() as stack:  # what does not go with the model is said now
                for each in methods:
                    if each.attaches:
                        stack.enter_context(each(self.model, self.processor))
            self.method, self.label = methods, "+".join(parsed) or GREEDY
        self._note(f"answers are under {self.label}")

    def _change_method(self, text: str) -> None:
        if text:
            try:
                name, *settings = shlex.split(text)
            except ValueError as error:
                raise ValueError(f"/method {text}: {error}; close the quotation mark") from error
            self.use(name, settings)
        else:
            self._note(f"{self.label}; /method NAME changes it")

    def _ask(self, text: str) -> None:
        told = [Message("system", (self.system,))] if self.system else []
        question = Message("user", (*map(Picture, self._pictures), text))
        conversation = Conversation((*told, *self._said, question))
        streamer = _Printed(self.processor) if self._streams else None
        answer = self._answered(conversation, streamer)
        if streamer is None:
            out.print(answer, soft_wrap=True, highlight=False, markup=False)
        if not answer:
            self._note("there is no answer; the question is not kept")
            return
        self._said += [question, Message("assistant", (answer,))]
        self._pictures = []
        self._last = conversation, self.label, answer

    @property
    def _streams(self) -> bool:
        """Whether tokens can be printed as they come: not where the method has a loop of its own, or where a
        search may still change them."""
        methods = self.method.make_methods() if isinstance(self.method, Recipe) else self.method
        own = self.method.generate_kwargs({}) if isinstance(self.method, Recipe) else {}
        wanted = decoding_under(methods, {**self.decoding, **own})
        asks = any(isinstance(each, MultiPassMethod) for each in methods)
        return not asks and "custom_generate" not in wanted and wanted.get("num_beams", 1) == 1

    def _answered(self, conversation: Conversation, streamer: TextStreamer | None) -> str:
        torch.manual_seed(self.seed)
        streams = {} if streamer is None else {"streamer": streamer}
        return vlmfix.generate(
            self.model, self.processor, messages=conversation, method=self.method, **self.decoding, **streams
        )

    def _compare(self, _: str) -> None:
        if self._last is None:
            raise ValueError("there is no answer yet to compare with; ask a question")
        conversation, label, answer = self._last
        greedy = vlmfix.generate(
            self.model,
            self.processor,
            messages=conversation,
            max_new_tokens=self.decoding["max_new_tokens"],
        )
        names = {GREEDY: greedy, label if label != GREEDY else "answer": answer}
        show(conversation.question.text, (), names, alone=False)

    def _tell(self, text: str) -> None:
        self.system = text
        self._note("the system message is set" if text else "there is no system message")

    def _reset(self, _: str) -> None:
        self._said, self._pictures, self._last = [], [], None
        self._note("a new conversation begins")

    def _note(self, text: str) -> None:
        err.print(text, style="dim", soft_wrap=True, highlight=False, markup=False)


class _Printed(TextStreamer):
    """Prints an answer as it comes, without white space before it."""

    def __init__(self, processor: Any) -> None:
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._has_begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what is certain."""
        text = text if self._has_begun else text.lstrip()
        self._has_begun = self._has_begun or bool(text)
        out.print(text, end="\n" if stream_end else "", soft_wrap=True, highlight=False, markup=False)
