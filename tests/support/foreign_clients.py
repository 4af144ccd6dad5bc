"""Run by the Python of another environment: a client's own program against our server.

Usage: python foreign_clients.py NAME URL MODEL KEY IMAGE_URL; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from typing import Any

QUESTION = "What shape is red?"
TOO_LONG = "7" * 3000


def ask_langchain(url: str, model: str, key: str, image: str) -> dict[str, Any]:
    """An answer, its pieces, a conversation in a batch, and errors, by ``ChatOpenAI``."""
    import openai
    from langchain_core.exceptions import ContextOverflowError
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI

    llm = ChatOpenAI(
        model=model, base_url=url, api_key=key, temperature=0, max_tokens=48, max_retries=0
    )
    text = {"type": "text", "text": QUESTION}
    shown = {"type": "image_url", "image_url": {"url": image, "detail": "high"}}
    first = llm.invoke([HumanMessage(content=[text, shown])])
    history = [HumanMessage(content=[shown, text]), AIMessage(content="star")]
    turns = [*history, HumanMessage(content="Where is the red star?")]
    told = {
        "text first": first.content,
        "image first": llm.invoke([HumanMessage(content=[shown, text])]).content,
        "pieces": "".join(str(piece.content) for piece in llm.stream("What is 2 plus 3?")),
        "batch": [one.content for one in llm.batch([turns, "What is 2 plus 3?"])],
        "system": llm.invoke([SystemMessage("Be brief."), HumanMessage("Hi")]).content != "",
        "tokens": (first.usage_metadata or {}).get("output_tokens"),
        "end": first.response_metadata["finish_reason"],
    }
    try:
        llm.invoke(TOO_LONG)
    except openai.BadRequestError as err:
        told["too long"] = isinstance(err, ContextOverflowError)
    try:
        llm.bind_tools([{"type": "function", "function": {"name": "f"}}]).invoke("Hi")
    except openai.BadRequestError as err:
        told["tools"] = err.param
    return told


def ask_litellm(url: str, model: str, key: str, image: str) -> dict[str, Any]:
    """An answer, its pieces, and errors, by ``litellm.completion``."""
    import litellm

    text = {"type": "text", "text": QUESTION}
    shown = {"type": "image_url", "image_url": {"url": image, "detail": "low"}}

    def ask(content: Any, **settings: Any) -> Any:
        return litellm.completion(
            model=f"openai/{model}",
            api_base=url,
            api_key=settings.pop("api_key", key),
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=48,
            num_retries=0,
            **settings,
        )

    first = ask([text, shown])
    pieces = ask("What is 2 plus 3?", stream=True)
    told = {
        "text first": first.choices[0].message.content,
        "image first": ask([shown, text]).choices[0].message.content,
        "pieces": "".join(piece.choices[0].delta.content or "" for piece in pieces),
        "tokens": first.usage.completion_tokens,
        "end": first.choices[0].finish_reason,
    }
    mistakes: dict[str, tuple[Any, dict[str, Any]]] = {
        "too long": (TOO_LONG, {}),
        "key": ("Hi", {"api_key": "other"}),
        "tools": ("Hi", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    }
    for name, (content, settings) in mistakes.items():
        try:
            ask(content, **settings)
        except litellm.exceptions.APIError as err:
            told[name] = type(err).__name__
        except (litellm.BadRequestError, litellm.AuthenticationError) as err:
            told[name] = type(err).__name__
    return told


if __name__ == "__main__":
    ask = {"langchain": ask_langchain, "litellm": ask_litellm}[sys.argv[1]]
    print(json.dumps(ask(*sys.argv[2:])))
