"""Short stories from a small grammar: varied enough to teach English word order, small enough for a small model."""

import random
from dataclasses import dataclass

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.generated import GeneratedTask
from nanochat.tasks.letters import loosen

HEROES = (
    "dog cat fox bear rabbit mouse horse duck frog owl boy girl king queen farmer sailor robot bird lion fish".split()
)
NAMES = "Tom Anna Ben Mia Sam Lily Max Ella Leo Nora Finn Ruby Jack Rose Otto Clara".split()
TRAITS = "little big brave kind clever happy old young funny quiet gentle curious proud lucky busy shy".split()
PLACES = (
    "in a small house",
    "near the forest",
    "by the river",
    "on a farm",
    "in a big city",
    "on a green hill",
    "by the sea",
    "in a quiet village",
    "in an old castle",
    "under a tall tree",
)
TIMES = (
    "One day",
    "One morning",
    "One evening",
    "On a cold night",
    "On a sunny day",
    "In the spring",
    "One winter day",
)
THINGS = (
    "ball book key lamp cake coin boat hat stone flower box drum letter bell kite map ring star apple basket".split()
)
COLORS = "red blue green yellow white black golden silver brown pink".split()
FINDS = ("found", "saw", "lost", "wanted", "made", "bought", "heard about", "dreamed of")
REACTIONS = {
    "found": ("was very happy", "could not believe it", "smiled"),
    "saw": ("stopped to look", "was surprised", "came closer"),
    "lost": ("was sad", "began to cry", "looked everywhere"),
    "wanted": ("asked everyone for it", "thought about it all day", "began to save money"),
    "made": ("was very proud", "showed it to everyone", "worked all day"),
    "bought": ("paid with the last coin", "carried it home", "was very happy"),
    "heard about": ("wanted to see it", "asked where it was", "could not sleep"),
    "dreamed of": ("woke up early", "told everyone about it", "began to look for it"),
}
HELP = (
    "helped {hero} to look for it",
    "told {hero} a secret",
    "gave {hero} some bread",
    "laughed and sang a song",
    "said that it was not far away",
    "walked with {hero} to the market",
    "promised to help",
    "shared the food with {hero}",
)
ENDS = (
    "In the end they became good friends.",
    "Then they went home and had dinner.",
    "That night everyone slept well.",
    "They were friends from that day on.",
    "And so the day ended well.",
    "They laughed and danced until the sun went down.",
    "After that, they met every day.",
    "It was the best day of the year.",
)
LESSONS = (
    "Good friends help each other.",
    "It is good to share.",
    "Who looks for a long time will find.",
    "Be kind to everyone.",
    "Small people can do big things.",
)
QUESTIONS = (
    "Tell me a story about a {hero}.",
    "Tell me a story about a {trait} {hero}.",
    "Tell me a short story about a {hero}.",
    "Write a story about a {hero}.",
    "Do you know a story about a {hero}?",
    "Please tell me a story about a {trait} {hero}.",
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
)


@dataclass(frozen=True)
class Hero:
    kind: str
    trait: str
    name: str


def sample_hero(rng: random.Random) -> Hero:
    return Hero(rng.choice(HEROES), rng.choice(TRAITS), rng.choice(NAMES))


def write_story(rng: random.Random, hero: Hero) -> str:
    """A story of four to eight sentences."""
    article = "an" if hero.trait[0] in "aeiou" else "a"
    friend = sample_hero(rng)
    while friend.name == hero.name or friend.kind == hero.kind:
        friend = sample_hero(rng)
    thing = f"{rng.choice(COLORS)} {rng.choice(THINGS)}"
    find = rng.choice(FINDS)
    sentences = [
        rng.choice(
            ("Once upon a time there was {0} {1} {2} named {3}.", "There was once {0} {1} {2} called {3}.")
        ).format(article, hero.trait, hero.kind, hero.name),
        f"{hero.name} lived {rng.choice(PLACES)}.",
        f"{rng.choice(TIMES)}, {hero.name} {find} a {thing}.",
        f"{hero.name} {rng.choice(REACTIONS[find])}.",
    ]
    if rng.random() < 0.8:
        sentences.append(f"Then {friend.name} the {friend.kind} came by.")
        if rng.random() < 0.4:
            sentences.append(f'"What about the {thing}?" asked {friend.name}.')
        else:
            sentences.append(f"{friend.name} was {rng.choice(TRAITS)} and {rng.choice(HELP).format(hero=hero.name)}.")
        sentences.append(rng.choice(ENDS))
    if rng.random() < 0.3:
        sentences.append(rng.choice(LESSONS))
    return " ".join(sentences)


class StoriesTask(GeneratedTask):
    """Tell a story about a given hero. Not graded."""

    name = "stories"
    max_new_tokens = 160

    SIZES = {"train": 5_000, "test": 200}

    def example(self, index: int) -> Conversation:
        rng = self.draw(index)
        hero = sample_hero(rng)
        question = loosen(rng, rng.choice(QUESTIONS).format(hero=hero.kind, trait=hero.trait))
        return Conversation((user(question), assistant(write_story(rng, hero))))

    def evaluate(self, conversation: Conversation, completion: str) -> None:
        return None
