"""Draw the picture in the README from a trained model: `python docs/screenshot.py demo docs/chat.svg`."""

import argparse
import asyncio
import re
from pathlib import Path

from nanochat.chat.recorder import Recorder
from nanochat.engine.sampling import SamplingParams
from nanochat.launch.launch import read_environ, resolve_home
from nanochat.paths import Workspace
from nanochat.stages.assemble import build_session
from nanochat.tui.app import ChatApp
from nanochat.tui.widgets import PromptArea

QUESTIONS = ("How many r are in strawberry?", "What is 47 + 38?", "Tell me a story.")


async def draw(model: str, out: Path) -> None:
    workspace = Workspace(resolve_home(None, read_environ()))
    session = build_session(workspace.resolve_model(model), params=SamplingParams(temperature=0, max_new_tokens=120))
    app = ChatApp(Recorder(session, None), out.parent)
    async with app.run_test(size=(84, 28)) as pilot:
        for question in QUESTIONS:
            app.query_one(PromptArea).insert(question)
            await pilot.press("enter")
            await pilot.pause(0.2)
            while app.is_answering:
                await pilot.pause(0.1)
        await pilot.pause(0.5)
        picture = app.export_screenshot(title=f"nanochat chat {model}")
    # No fonts from the network: the reader's own monospace font will do.
    out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    asyncio.run(draw(options.model, options.out))
