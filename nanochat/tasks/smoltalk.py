"""SmolTalk: conversations about everything, written by larger models. Source: Allal et al. 2025."""

from pathlib import Path
from typing import Any

from nanochat.conversation import Conversation, parse_conversation
from nanochat.download.sources import TASK_SOURCES
from nanochat.tasks.hub import HubTask
from nanochat.tasks.task import Split


class SmolTalkTask(HubTask):
    """General conversation, of several turns. Not graded."""

    columns = ("messages",)

    def __init__(self, split: Split, folder: Path | None = None) -> None:
        super().__init__("smoltalk", TASK_SOURCES["smoltalk"], split, folder)

    def read_row(self, row: dict[str, Any]) -> Conversation:
        conversation = parse_conversation(row["messages"])
        if conversation.messages[-1].role != "assistant":
            raise ValueError("the conversation ends with the user")
        return conversation

    def example(self, index: int) -> Conversation:
        return self.read(index)

    def evaluate(self, conversation: Conversation, completion: str) -> None:
        return None
