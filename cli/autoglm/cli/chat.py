"""`autoglm chat`: asks a running mesh from the terminal."""

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from autoglm.cli.api import DEFAULT_URL, Api, ApiError, audio_part, image_part
from autoglm.cli.options import ApiKey

HELP = "Ask something; /image FILE and /audio FILE attach a file, /quit leaves."


def chat(
    prompt: Annotated[str | None, typer.Argument(help="The question; without it and --audio, a conversation.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Screenshot to send along; can be repeated.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="Recording to send along; can be repeated.")] = None,
    url: Annotated[str, typer.Option(envvar="AUTOGLM_URL", help="Address of the server.")] = DEFAULT_URL,
    api_key: ApiKey = "EMPTY",
    model: Annotated[str, typer.Option(help="Name of the model.", show_default="the server's")] = "",
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Sampling temperature; 0 always takes the most likely token.")
    ] = 0.0,
    thinking: Annotated[
        bool | None, typer.Option(help="Whether the model reasons before it answers.", show_default="model")
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
) -> None:
    """Ask about text, screenshots and recordings; the answer is streamed to the terminal."""
    fields = {"model": model, "temperature": temperature} | ({} if thinking is None else {"enable_thinking": thinking})
    session = ChatSession(Api(url, api_key), fields, system)
    try:
        for path in image or ():
            session.attach(image_part(path))
        for path in audio or ():
            session.attach(audio_part(path))
        if prompt is None and not audio:
            converse(session)
        else:
            session.ask(prompt or "")
    except ApiError as error:
        print(f"autoglm chat: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@dataclass(slots=True)
class ChatSession:
    """A conversation: its turns so far, what is attached to the next question, and the server that is asked."""

    api: Api
    fields: Mapping[str, Any]
    system: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)
    attached: list[dict[str, Any]] = field(default_factory=list)
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))

    def attach(self, part: dict[str, Any]) -> None:
        """Send `part` with the next question."""
        self.attached.append(part)

    def ask(self, text: str) -> None:
        """Ask, print the answer as it comes, and remember both once it is complete. Raises ApiError."""
        words = [{"type": "text", "text": text}] if text else []
        question = {"role": "user", "content": [*self.attached, *words]}
        self.attached.clear()  # even if it fails: a broken file must not spoil the next question
        instructions = [{"role": "system", "content": self.system}] if self.system else []
        reasoning, answer = self._print([*instructions, *self.turns, question])
        # The model was trained on conversations that contain its reasoning.
        thought = f"<think>{reasoning}</think>" if reasoning else ""
        self.turns += [question, {"role": "assistant", "content": thought + answer}]

    def _print(self, messages: list[dict[str, Any]]) -> tuple[str, str]:
        reasoning = answer = ""
        try:
            with closing(self.api.stream(messages, **self.fields)) as deltas:
                for delta in deltas:
                    gap = "\n" if reasoning and delta.text and not answer else ""
                    self.console.print(delta.reasoning, style="dim", end="", markup=False)
                    self.console.print(gap + delta.text, end="", markup=False)
                    reasoning += delta.reasoning
                    answer += delta.text
        finally:
            if reasoning or answer:
                self.console.print()
        return reasoning, answer


def converse(session: ChatSession) -> None:
    """Ask what is typed until /quit, Ctrl-D or Ctrl-C; Ctrl-C during an answer stops only that answer."""
    session.api.get("/v1/models")  # a server that does not answer is reported before anything is typed
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (gives input() its line editing)

        session.console.print(HELP, style="dim")
    while (line := _read_line("> " if interactive else "")) is not None:
        try:
            if not _obey(session, line.strip()):
                return
        except ApiError as error:
            print(f"autoglm chat: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            session.console.print("(stopped)", style="dim")


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        return None


def _obey(session: ChatSession, line: str) -> bool:
    """Run the command or ask the question in `line`; return whether to go on."""
    command, _, rest = line.partition(" ")
    match command:
        case "/quit":
            return False
        case "/image":
            session.attach(image_part(Path(rest.strip())))
        case "/audio":
            session.attach(audio_part(Path(rest.strip())))
        case _ if line or session.attached:
            session.ask(line)
    return True
