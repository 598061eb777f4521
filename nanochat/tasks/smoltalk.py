"""SmolTalk: general conversations. Source: `HuggingFaceTB/smol-smoltalk` on the hub (Allal et al. 2025)."""

from pathlib import Path

from nanochat.conversation import Conversation, parse_conversation
from nanochat.errors import DataError
from nanochat.tasks.hub import HubRows
from nanochat.tasks.task import Split, Task


class SmolTalkTask(Task):
    """Conversations of several turns, some with a system message. Not graded."""

    name = "smoltalk"

    def __init__(self, split: Split, folder: Path | None = None) -> None:
        self.rows = HubRows("smoltalk", split, ("messages",), folder)

    def num_examples(self) -> int:
        return len(self.rows)

    def example(self, index: int) -> Conversation:
        try:
            return parse_conversation(self.rows[index])
        except ValueError as error:
            raise DataError(
                f"row {index} of smoltalk is no conversation: {error}", "nanochat download verify --repair"
            ) from error

    def evaluate(self, conversation: Conversation, completion: str) -> None:
        return None
