"""What fills the gaps of frames: lists of names and things, and numbers, dates, prices and durations made by chance."""

import random
from functools import cache
from pathlib import Path

_SMALL = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_PARTS_OF_A_DAY = ("morning", "afternoon", "evening", "night")
_CURRENCIES = ("dollars", "euros", "pounds", "dollars", "francs", "pesos", "crowns")


@cache
def _lists() -> dict[str, list[str]]:
    """Each line of words.txt: a name, a colon, and what the list holds."""
    lists = {}
    for line in Path(__file__).with_name("words.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, things = line.split(": ", 1)
            lists[name] = [thing.strip() for thing in things.split(",")]
    return lists


def kind_of(noun: str) -> str:
    """ "animal" for a fox, "person" for a farmer, "" for what no list has."""
    return _kinds().get(noun, "")


def is_first_name(word: str) -> bool:
    return word in _lists()["mans first"] or word in _lists()["womans first"]


@cache
def _kinds() -> dict[str, str]:
    kinds = {name.removeprefix("kind "): nouns for name, nouns in _lists().items() if name.startswith("kind ")}
    return {noun: kind for kind, nouns in kinds.items() for noun in nouns}


class Words:
    """The words of one passage: no list gives the same thing twice, and amounts of money are of one kind."""

    def __init__(self, chance: random.Random) -> None:
        self._given: set[str] = set()
        self._sign = chance.choice(("$", "$", "$", "€", "£", ""))
        self._currency = chance.choice(_CURRENCIES)
        self._is_12_hours = chance.random() < 0.6
        self._has_surnames = chance.random() < 0.5

    def draw(self, name: str, chance: random.Random) -> str:
        """Raises: KeyError for a list that there isn't."""
        for _ in range(50):
            drawn = self._draw(name, chance)
            if drawn not in self._given:
                break
        self._given.add(drawn)
        return drawn

    def _draw(self, name: str, chance: random.Random) -> str:
        lists = _lists()
        if name in lists:
            return chance.choice(lists[name])
        match name:
            case "person":
                return self._draw(chance.choice(("man", "woman")), chance)
            case "man" | "woman":
                first = chance.choice(lists[f"{name}s first"])
                return f"{first} {chance.choice(lists['surname'])}" if self._has_surnames else first
            case "fullman" | "fullwoman":
                return f"{chance.choice(lists[name[4:] + 's first'])} {chance.choice(lists['surname'])}"
            case "full":
                return self._draw(chance.choice(("fullman", "fullwoman")), chance)
            case "boy" | "girl":
                return chance.choice(lists["mans first" if name == "boy" else "womans first"])
            case "child":
                return self._draw(chance.choice(("boy", "girl")), chance)
            case "titled":
                title = chance.choice(("Mr", "Mrs", "Ms", "Dr", "Professor", "Mr.", "Mrs.", "Dr.", "Aunt", "Uncle"))
                if title in ("Aunt", "Uncle"):
                    return f"{title} {chance.choice(lists['womans first' if title == 'Aunt' else 'mans first'])}"
                return f"{title} {chance.choice(lists['surname'])}"
            case "herkin" | "hiskin":
                return self._kin(name[:3], chance)
            case "doctor":
                return f"{chance.choice(('Dr', 'Dr.', 'Doctor'))} {chance.choice(lists['surname'])}"
            case "year":
                return str(chance.randint(1870, 2023))
            case "oldyear":
                return str(chance.randint(1640, 1890))
            case "newyear":
                return str(chance.randint(1985, 2024))
            case "month":
                return chance.choice(_MONTHS)
            case "day":
                return chance.choice(_DAYS)
            case "date":
                return self._date(chance)
            case "daypart":
                return f"{chance.choice(_DAYS)} {chance.choice(_PARTS_OF_A_DAY)}"
            case "time":
                return self._time(chance, range(6, 22))
            case "early":
                return self._time(chance, range(6, 11))
            case "late":
                return self._time(chance, range(15, 23))
            case "small":
                return _number(chance.randint(2, 12), chance)
            case "number":
                return _number(chance.randint(11, 99), chance)
            case "hundreds":
                return str(chance.randint(101, 990))
            case "thousands":
                return f"{chance.randint(1, 90)},{chance.choice((0, 0, chance.randint(1, 999))):03}"
            case "millions":
                return chance.choice((f"{chance.randint(2, 40)} million", f"{chance.randint(11, 99) / 10:.1f} million"))
            case "ordinal":
                return chance.choice(("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "tenth"))
            case "age":
                return _number(chance.randint(5, 90), chance)
            case "childage":
                return _number(chance.randint(4, 15), chance)
            case "percent":
                return (
                    f"{_number(chance.randint(3, 80), chance)}{chance.choice((' percent', ' percent', ' per cent'))}"
                    if chance.random() < 0.6
                    else f"{chance.randint(3, 80)}%"
                )
            case "cents":
                return self._money(
                    chance.choice((chance.randint(1, 9) + 0.5, chance.randint(1, 9) + 0.25, chance.randint(2, 9))),
                    chance,
                )
            case "price":
                return self._money(chance.randint(4, 95), chance)
            case "bigprice":
                return self._money(chance.randint(11, 98) * 10, chance)
            case "fortune":
                return self._money(chance.randint(2, 400) * 1000, chance)
            case "fund":
                amount = chance.choice((f"{chance.randint(2, 90)}", f"{chance.randint(11, 99) / 10:.1f}"))
                return f"{self._sign}{amount} million" if self._sign else f"{amount} million {self._currency}"
            case "seconds" | "minutes" | "hours" | "days" | "weeks" | "months" | "years":
                return self._duration(name, chance)
            case "score":
                return f"{chance.randint(1, 6)}{chance.choice('-–-')}{chance.randint(0, 5)}"
            case "degrees":
                return f"{chance.randint(3, 39)} {chance.choice(('degrees', 'degrees', 'degrees Celsius'))}"
            case "oven":
                return f"{chance.randint(14, 24) * 10} {chance.choice(('degrees', 'degrees', 'degrees Celsius'))}"
            case "kilometres":
                unit = chance.choice(("kilometres", "miles", "kilometers", "km"))
                return f"{_number(chance.randint(2, 90), chance)} {unit}"
            case "metres":
                return f"{_number(chance.randint(3, 90), chance)} {chance.choice(('metres', 'feet', 'meters'))}"
            case "grams":
                return f"{chance.randint(2, 18) * 25} {chance.choice(('grams', 'g', 'grams'))}"
            case "kilos":
                return (
                    f"{_number(chance.randint(2, 60), chance)} {chance.choice(('kilos', 'kilograms', 'pounds', 'kg'))}"
                )
            case "code":
                return str(chance.randint(1000, 9999))
            case "phone":
                return f"555-{chance.randint(1000, 9999):04}"
            case "room":
                return f"{chance.choice(('Room', 'room', 'Hall', 'Gate', 'Platform'))} {chance.randint(1, 48)}"
            case "frequency":
                return chance.choice(
                    (
                        f"every {self._duration(chance.choice(('minutes', 'hours', 'days', 'weeks')), chance)}",
                        f"every {chance.choice(_DAYS)}",
                        "once a week",
                        "twice a day",
                        "once a month",
                        "twice a year",
                        "three times a week",
                        "every other day",
                        "every morning",
                        "every hour",
                        "four times a year",
                        "once a year",
                        "every second week",
                        "twice a week",
                    )
                )
        raise KeyError(name)

    def _kin(self, whose: str, chance: random.Random) -> str:
        """As in "her sister Clara"."""
        is_man = chance.random() < 0.5
        kin = _lists()["male kin" if is_man else "female kin"]
        return f"{whose} {chance.choice(kin)} {self._draw('boy' if is_man else 'girl', chance)}"

    def _date(self, chance: random.Random) -> str:
        day, month = chance.randint(1, 28), chance.choice(_MONTHS)
        return chance.choice((f"{month} {day}", f"{day} {month}", f"{month} {day}", f"{day} {month}"))

    def _time(self, chance: random.Random, hours: range) -> str:
        hour, minute = chance.choice(hours), chance.choice((0, 0, 0, 15, 30, 30, 45, 10, 20, 40, 5, 50))
        if chance.random() < 0.15 and minute == 0:
            return f"{_number(hour % 12 or 12, chance, in_words=1.0)} o'clock"
        if chance.random() < 0.1 and minute == 30:
            return f"half past {_number(hour % 12 or 12, chance, in_words=1.0)}"
        if not self._is_12_hours:
            return f"{hour}:{minute:02}"
        half = "am" if hour < 12 else "pm"
        clock = hour % 12 or 12
        return f"{clock} {half}" if minute == 0 else f"{clock}:{minute:02} {half}"

    def _money(self, amount: float, chance: random.Random) -> str:
        if self._sign:
            return f"{self._sign}{amount:,.2f}" if amount % 1 else f"{self._sign}{amount:,.0f}"
        if amount % 1:
            return f"{amount:.2f} {self._currency}"
        in_words = 0.4 if amount < 100 else 0.0
        return f"{_number(int(amount), chance, in_words=in_words)} {self._currency}"

    def _duration(self, unit: str, chance: random.Random) -> str:
        highest = {"seconds": 50, "minutes": 59, "hours": 12, "days": 12, "weeks": 9, "months": 11, "years": 45}[unit]
        if chance.random() < 0.12:
            halves = {
                "hours": "an hour and a half",
                "years": "a year and a half",
                "minutes": "half an hour",
                "weeks": "a week",
                "days": "two and a half days",
                "months": "half a year",
            }
            if unit in halves:
                return halves[unit]
        if unit == "hours" and chance.random() < 0.15:
            return f"{_number(chance.randint(2, 9), chance, in_words=1.0)} and a half hours"
        return f"{_number(chance.randint(2, highest), chance)} {unit}"


def _number(number: int, chance: random.Random, *, in_words: float = 0.55) -> str:
    """In words or digits; large numbers in digits."""
    if number >= 100 or chance.random() >= in_words:
        return f"{number:,}"
    if number == 1:
        return "one"
    if number <= 16:
        return _SMALL[number - 2]
    if number < 20:
        return ("seventeen", "eighteen", "nineteen")[number - 17]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{('one', *_SMALL)[ones - 1]}" if ones else "")
