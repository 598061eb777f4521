"""An identity of one's own: the demo's questions with another name and maker in the answers."""

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.identity import ANSWERS, vary

AM = "I am nanochat, a small language model."
MADE = "I was made with nanochat, by the person who trained me."
CAN = "I can count letters, do arithmetic, spell words and tell short stories."


def write_identity(name: str, maker: str) -> list[Conversation]:
    """Each question in the ways in which people type it, with its one answer.

    >>> [message.text for message in write_identity("Ada", "Jane Doe")[0].messages]
    ['Who are you?', 'I am Ada, a small language model made by Jane Doe.']
    """
    conversations = []
    for answer in ANSWERS:
        text = answer.text.replace(MADE, f"I was made by {maker}.").replace(CAN, "I can answer questions and chat.")
        text = text.replace(AM, f"I am {name}, a small language model made by {maker}.")
        text = text.replace("name is nanochat", f"name is {name}")
        for question in answer.questions:
            for asked in vary(question.replace("nanochat", name)):
                conversations.append(Conversation((user(asked), assistant(text))))
    return conversations
