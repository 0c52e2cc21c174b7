"""The support desk with its policy in passages: who reads them answers rightly, who remembers does not.

Each question comes with a few policy lines, one of them about the product that is asked for. A retriever puts that one
first; in half of the training it stands anywhere, so that it is found by its name and not by its place. In training every
question has its own policy, most of its products are made up on the spot, and so the windows can only be read. Grammar,
judge and repairs are the plain desk's. No model is used here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aligner_chain.exchange import Exchange, Turn
from bootstrap.demo import world
from bootstrap.demo.world import Ticket
from bootstrap.judges import Annotation
from bootstrap.measures import Yardstick
from bootstrap.records import split_of

_FIRST = (
    "tea", "foot", "hand", "book", "rain", "sun", "snow", "wall", "table", "door", "bed", "bath", "lamp", "wind",
    "water", "fire", "arm", "head", "neck", "key", "note", "side", "back", "wrist", "night", "day", "hair", "tooth",
    "shoe", "rice", "egg", "cook", "lawn", "sea", "road", "skate",
)  # fmt: skip
_SECOND = (
    "pot", "bag", "ball", "case", "coat", "glass", "shoe", "paper", "cloth", "mat", "room", "robe", "shade", "mill",
    "bottle", "place", "chair", "band", "lace", "board", "book", "stool", "pack", "watch", "light", "cap", "dryer",
    "brush", "box", "rack", "cup", "fork", "pan", "mower", "shirt", "bike", "pin", "ring",
)  # fmt: skip

KNOWN_PRODUCTS = tuple(world.PRODUCTS)
"""What training asks for by name, among the products that are made up."""

UNSEEN_PRODUCTS = (
    "teapot", "handbag", "football", "bookcase", "raincoat", "snowshoe", "wallpaper", "tablecloth", "doormat",
    "bathrobe", "lampshade", "armchair", "headband", "necklace", "keyboard", "notebook", "nightlight", "shoebox",
    "hairbrush", "toothbrush", "wristwatch", "backpack", "lawnmower", "headlight",
)  # fmt: skip
"""Products that no training text names. Their parts occur there, in names such as `teacoat` and `rainpot`."""

WINDOWS = tuple(world.WINDOWS.values())
FACTS = world.FACTS[:2]
"""The forms that name the product first: what so small a model looks up is the name that it has just written."""

GRAMMAR = world.Grammar(f"{'|'.join(KNOWN_PRODUCTS)}|(?:{'|'.join(_FIRST)})(?:{'|'.join(_SECOND)})")
RETRIEVED = 3
"""How many passages the app retrieves."""
NAME_PARTS = "|".join([*KNOWN_PRODUCTS, *sorted({*_FIRST, *_SECOND}, key=lambda part: (-len(part), part))])
"""What retrieval goes by: the words and parts of words that name products, so that it also finds similar ones."""

_WORDINGS = tuple(index for index in range(len(world.WORDINGS)) if index not in world.HELD_OUT_WORDINGS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A question with its passages: `ticket` holds its facts, `policy` the window of each product in the passages."""

    ticket: Ticket
    policy: Mapping[str, int]

    @property
    def passages(self) -> tuple[str, ...]:
        return tuple(passage(product, window) for product, window in self.policy.items())

    @property
    def others(self) -> tuple[str, ...]:
        """The products that are in the passages and not asked for."""
        return tuple(product for product in self.policy if product != self.ticket.product)

    def exchange(self, rng: random.Random, answer: str = "") -> Exchange:
        """The question in a form drawn at random, with its passages and an answer."""
        return replace(self.ticket.drawn_exchange(rng, answer), context=self.passages)


def passage(product: str, window: int) -> str:
    """The policy line of a product."""
    return world.PASSAGE.format(product=product, window=window)


# --- drawing ---------------------------------------------------------------------------------------------------


def desk_policy(seed: int) -> dict[str, int]:
    """The policy of the desk of one seed: the window of each known and each unseen product, in the order of its lines."""
    rng = random.Random(f"{seed} policy")
    products = rng.sample((*KNOWN_PRODUCTS, *UNSEEN_PRODUCTS), len(KNOWN_PRODUCTS) + len(UNSEEN_PRODUCTS))
    return {product: rng.choice(WINDOWS) for product in products}


def made_up_product(rng: random.Random, like: tuple[str, str] | None = None) -> tuple[str, str]:
    """A name for training: two parts in a combination that is no other product's. It shares one of them with `like`."""
    while True:
        first, second = rng.choice(_FIRST), rng.choice(_SECOND)
        if like and rng.random() < 0.5:
            first = like[0]
        elif like:
            second = like[1]
        if first + second not in (*UNSEEN_PRODUCTS, *KNOWN_PRODUCTS) and (first, second) != like:
            return first, second


def draw_training_case(rng: random.Random, *, first: float = 0.5) -> Case:
    """A case under a policy of its own, whose cell of product, days and wording may be trained on.

    The passage of the product is put first in a share `first` of the cases, and stands anywhere in the others.
    """
    while split_of((), (case := _draw_case(rng, first)).ticket.split_key) != "train":
        pass
    return case


def draw_held_out_ticket(rng: random.Random, products: Sequence[str], policy: Mapping[str, int]) -> Ticket:
    """A question about one of `products`, in a cell that is held out."""
    while split_of((), (ticket := _draw_ticket(rng, product := rng.choice(products), policy[product])).split_key) == (
        "train"
    ):
        pass
    return ticket


def _draw_case(rng: random.Random, first: float) -> Case:
    products = _draw_products(rng)
    policy = dict(zip(products, rng.sample(WINDOWS, len(products)), strict=True))
    product = next(iter(policy)) if rng.random() < first else rng.choice(tuple(policy))
    return Case(ticket=_draw_ticket(rng, product, policy[product]), policy=policy)


def _draw_products(rng: random.Random) -> tuple[str, ...]:
    """Two to four products. Many are look-alikes, as those are what a retriever finds beside the right one."""
    products: dict[str, None] = {}
    like = None
    while len(products) < 2 or (len(products) < 4 and rng.random() < 0.67):
        if rng.random() < 0.3:
            products[rng.choice(KNOWN_PRODUCTS)] = None
        else:
            like = made_up_product(rng, like if rng.random() < 0.5 else None)
            products["".join(like)] = None
    return tuple(rng.sample(tuple(products), len(products)))


def _draw_ticket(rng: random.Random, product: str, window: int) -> Ticket:
    """A question that is in time or too late with the same chance, so that the window matters."""
    in_time = rng.random() < 0.5
    return Ticket(
        product=product,
        days=rng.choice([days for days in world.DAYS if (days <= window) == in_time]),
        wording=rng.choice(_WORDINGS),
        topic=rng.choice(tuple(world.TOPICS)),
        window=window,
        passage=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradictions:
    """How often an answer says another window, the wrong conclusion or another product's policy, or is rude."""

    window: float = 0.25
    conclusion: float = 0.15
    product: float = 0.15
    rude: float = 0.1


UPSTREAM = Contradictions()
NO_CONTRADICTIONS = Contradictions(window=0, conclusion=0, product=0, rude=0)
GOLD = Contradictions(window=0.3, conclusion=0.18, product=0.17, rude=0.15)
"""How answers are damaged for the Aligner: at other rates than the upstream's."""


def flawed_answer(rng: random.Random, case: Case, rates: Contradictions) -> str:
    """A right answer, damaged at these rates; at most one of the three contradictions is in it."""
    ticket = case.ticket
    product, window, follows = ticket.product, ticket.window, True
    kind = rng.random()
    if kind < rates.window:
        window = _wrong_window(rng, case)
    elif kind < rates.window + rates.conclusion:
        follows = False
    elif kind < rates.window + rates.conclusion + rates.product:
        product = rng.choice(case.others)
        window = case.policy[product]
    opening, _, *rest = world.split_sentences(world.right_answer(rng, ticket))
    if rng.random() < rates.rude:
        opening = rng.choice(world.RUDE)
    return " ".join([opening, fact(rng, product, window, (ticket.days <= window) == follows), *rest])


def right_answer(rng: random.Random, case: Case) -> str:
    """An answer as its passage has it."""
    return flawed_answer(rng, case, NO_CONTRADICTIONS)


def _wrong_window(rng: random.Random, case: Case) -> int:
    """Half of the time a window of another passage, else any other."""
    if rng.random() < 0.5:
        return case.policy[rng.choice(case.others)]
    return rng.choice([window for window in WINDOWS if window != case.ticket.window])


def fact(rng: random.Random, product: str, window: int, follows: bool) -> str:
    """The sentence that states a window and a conclusion."""
    stated = rng.choice(FACTS).format(product=product, window=window)
    return f"{stated}, {rng.choice(world.CONCLUSIONS[follows])}"


# --- judging ---------------------------------------------------------------------------------------------------


def verdict(exchange: Exchange) -> dict[str, bool]:
    """Whether the answer meets each criterion under the passages that stand beside it."""
    return world.judge(world.read_ticket(exchange, GRAMMAR), exchange.answer, GRAMMAR)


def agrees(exchange: Exchange) -> bool:
    """Whether the answer says of the product in question what its passage says and what follows from it."""
    met = verdict(exchange)
    return met["true"] and met["follows"]


def is_garbled(answer: str) -> bool:
    """Whether the world's grammar cannot read the answer."""
    return world.parse(answer, GRAMMAR) is None


def repair(exchange: Exchange) -> str:
    """The exact minimal repair under the passages."""
    return world.repair(world.read_ticket(exchange, GRAMMAR), exchange.answer, GRAMMAR)


def annotate(exchange: Exchange) -> Annotation:
    """The repair with the criteria that the answer broke."""
    broken = tuple(name for name, met in verdict(exchange).items() if not met)
    return Annotation(text=repair(exchange), criteria=broken)


YARDSTICK = Yardstick(
    judge=lambda exchanges: [verdict(one) for one in exchanges],
    minimal=lambda exchanges: [repair(one) for one in exchanges],
    garbled=is_garbled,
)


# --- what the upstream is asked ----------------------------------------------------------------------------------

QUESTION_AND_PASSAGES = "{query_str}\n{context_str}"
"""The app's prompt. It is short, since so small an upstream has a small window."""


def upstream_turns(exchange: Exchange) -> tuple[Turn, ...]:
    """What the app asks the upstream: the question and the passages as one user turn."""
    text = QUESTION_AND_PASSAGES.format(query_str=exchange.question, context_str="\n\n".join(exchange.context))
    return (Turn(role="user", text=text),)
