"""The agent of phone_agent.py with the loop of published phone agents: answers are streamed, and everything from the
first `do(action=` or `finish(message=` to the end of an answer is the action, one Python expression.

    python examples/streaming_phone_agent.py "Turn on Bluetooth" "Open Notes"

This works because </answer> ends an answer and is not printed. Such a client must not set include_stop_str_in_output.
"""

import ast
import sys
from typing import Any

from phone_agent import PARAMETERS, Action, Agent, Stuck, action_of, main

FINISH, DO = "finish(message=", "do(action="
TYPE = 'do(action="Type", text='


def split(answer: str) -> tuple[str, str]:
    """Return what an answer says before its action, and the action as text; raises Stuck when there is none."""
    for begins in (FINISH, DO):
        before, found, after = answer.partition(begins)
        if found:
            return before, found + after
    raise Stuck(f"the model names no action that a phone can do: {answer!r}")


def parse_to_the_end(answer: str) -> Action:
    """Read the action that ends a model's answer, as data and never as code. Raises Stuck when there is none.

    A message or a text to type goes up to the last quotation mark: models do not escape those inside.
    """
    call = split(answer)[1].strip()
    try:
        for begins, name, argument in ((FINISH, "finish", "message"), (TYPE, "Type", "text")):
            if call.startswith(begins):
                if not call.endswith('")'):
                    raise ValueError("no end")
                return action_of(name, {argument: call[len(begins) + 1 : -2]})
        expression = ast.parse(call, mode="eval").body
        if not isinstance(expression, ast.Call):
            raise ValueError("no call")
        arguments = {str(each.arg): ast.literal_eval(each.value) for each in expression.keywords}
        return action_of(arguments.pop("action"), arguments)
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError):
        raise Stuck(f"the model names no action that a phone can do: {answer!r}") from None


class StreamingAgent(Agent):
    """Carries out orders on a phone as published agents do."""

    def _ask(self, messages: list[Any]) -> str:
        chunks = self.client.chat.completions.create(messages=messages, stream=True, **PARAMETERS)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def _read(self, answer: str) -> Action:
        return parse_to_the_end(answer)


if __name__ == "__main__":
    sys.exit(main(StreamingAgent))
