"""Everyday topics for the writing tasks, with words that belong to them and words that they tempt to use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Topic:
    """`keywords` fit the topic, and a reply can be asked to use them; `tempting` ones are hard to avoid."""

    name: str
    keywords: tuple[str, str]
    tempting: tuple[str, str]


_TRAIN = """
lighthouses: storm keeper / light ships
a rainy day: umbrella window / rain water
making bread: flour oven / bread dough
riding a bicycle: helmet road / bike ride
the moon: night tide / Earth sky
a pet dog: leash park / dog friend
drinking tea: cup honey / tea hot
planting a garden: seeds soil / plants grow
a train journey: ticket station / train travel
honey bees: flower hive / bees honey
the library: quiet shelf / books read
swimming: pool summer / water swim
a snowy morning: boots white / snow cold
cooking soup: pot spoon / soup vegetables
an old clock: tower hour / time clock
the beach: towel shells / sand sea
a birthday party: candles cake / birthday friends
washing the dishes: soap plate / dishes water
a good breakfast: eggs morning / breakfast day
climbing a mountain: rope peak / mountain climb
apples: tree red / fruit apples
the kitchen: table knife / food cook
a paper boat: fold stream / paper water
learning to draw: pencil line / draw practice
wild horses: field run / horses free
a busy market: basket price / market people
the colour blue: sky calm / blue color
a wooden chair: legs carpenter / wood sit
playing chess: board queen / game chess
autumn leaves: wind orange / leaves trees
a cup of coffee: bean mug / coffee morning
frogs: pond jump / frogs water
a long walk: path shoes / walk nature
the school bus: driver street / bus school
singing: choir song / voice sing
a warm coat: pocket winter / coat warm
the post office: letter stamp / mail post
owls: feather forest / owls night
a picnic: blanket grass / food picnic
telling jokes: laugh story / joke funny
a small village: church bridge / village people
fishing: river hook / fish catch
a broken window: glass repair / window broken
taking photos: camera smile / photo picture
the weather: cloud sunny / weather rain
rice: bowl farmer / rice food
a new bicycle lane: city safe / bike road
spiders: web eight / spiders web
a quiet evening: lamp sofa / evening relax
baking cookies: sugar tray / cookies bake
a trip to the zoo: lion map / zoo animals
the violin: bow concert / music violin
brushing your teeth: mirror minute / teeth brush
a sand castle: bucket wave / sand castle
good neighbours: fence help / neighbor friendly
moving house: box key / home new
butterflies: wing garden / butterflies colorful
a rocket: engine astronaut / space rocket
cheese: milk cellar / cheese milk
sleeping well: pillow dream / sleep night
"""

_HELDOUT = """
windmills: hill blade / wind energy
a football match: goal whistle / team game
ice cream: cone spoon / ice sweet
penguins: egg south / penguins ice
the dentist: chair brave / teeth dentist
a hot air balloon: basket flight / balloon air
keeping a diary: pen secret / diary write
tomatoes: salad vine / tomatoes red
a fire engine: ladder siren / fire truck
the piano: key lesson / piano music
camping: tent lantern / tent fire
wearing glasses: lens clear / glasses see
a river ferry: captain shore / boat river
knitting: wool needle / yarn knit
squirrels: nut branch / squirrels tree
a power cut: candle dark / power light
dancing: rhythm partner / dance music
the desert: camel dune / sand hot
a lost key: door search / key lost
pancakes: syrup pan / pancakes batter
an airport: gate suitcase / plane travel
sheep: meadow fleece / sheep wool
a thunderstorm: loud shelter / thunder rain
growing older: wisdom year / age life
"""


def _read(table: str) -> tuple[Topic, ...]:
    topics = []
    for line in table.strip().splitlines():
        name, _, words = line.partition(": ")
        keywords, tempting = (part.split() for part in words.split(" / "))
        topics.append(Topic(name, (keywords[0], keywords[1]), (tempting[0], tempting[1])))
    return tuple(topics)


TOPICS: dict[Split, tuple[Topic, ...]] = {"train": _read(_TRAIN), "heldout": _read(_HELDOUT)}
"""No topic is in both."""
