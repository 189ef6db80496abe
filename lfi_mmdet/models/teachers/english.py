"""As much English as captions need: singulars, and words that name no object."""

from __future__ import annotations

from functools import lru_cache


def _plurals(words: str, ending: str = 's') -> dict[str, str]:
    return {word + ending: word for word in words.split()}


#: Plurals that no rule of :func:`singular` covers
IRREGULAR = {
    **dict(people='person', children='child', grandchildren='grandchild'),
    **dict(feet='foot', teeth='tooth', geese='goose', mice='mouse', oxen='ox'),
    **dict(knives='knife', wives='wife', midwives='midwife', housewives='housewife'),
    **dict(wolves='wolf', leaves='leaf', shelves='shelf', bookshelves='bookshelf'),
    **dict(loaves='loaf', halves='half', calves='calf', scarves='scarf'),
    **dict(hooves='hoof', thieves='thief', elves='elf', cacti='cactus', tvs='tv'),
    # after -us, -as and -ns
    **_plurals('bus gas lens canvas cactus octopus walrus virus campus circus', 'es'),
    **dict(busses='bus'),
    **_plurals('bonus chorus crocus hibiscus platypus sinus status', 'es'),
    # -es that is no ending: an e and an s
    **_plurals('cookie movie tie necktie bowtie pie magpie lie die brownie hoodie'),
    **_plurals('selfie zombie veggie smoothie birdie doggie foodie goalie rookie'),
    **_plurals('calorie hippie collie pixie cutie genie prairie townie newbie'),
    **_plurals('shoe horseshoe snowshoe toe mistletoe canoe foe oboe'),
    **_plurals('ache headache mustache moustache quiche avalanche cache axe'),
    # -is and -us that are plurals
    **_plurals('ski taxi kiwi bikini zucchini martini panini safari khaki jacuzzi'),
    **_plurals('corgi mini deli salami emoji rabbi alibi yeti wii'),
    **_plurals('menu gnu emu tutu guru bureau plateau'),
}

#: Words that look like plurals, and are none or are used only as such
INVARIANT = frozenset(
    'gas lens canvas atlas christmas texas kansas dallas adidas chaos news series '
    'species gymnastics athletics electronics graphics clothes stairs scissors jeans '
    'pants shorts trousers goggles sunglasses eyeglasses pajamas pyjamas binoculars '
    'headphones tongs tights leggings overalls mathematics '
    'ramen abdomen specimen omen semen regimen acumen stamen lumen yemen'.split()
)

#: Nouns that the rule for -ing and -ed of :func:`names_something` would leave out
NOUNS = frozenset(
    'building ceiling painting railing clothing wedding evening king ring string wing '
    'swing sling crossing frosting icing earring pudding dressing stuffing topping '
    'lightning morning spring siding awning bedding landing lettering marking drawing '
    'scaffolding carving covering curling fencing flooring housing lighting netting '
    'paneling roofing seasoning stocking tubing viking wiring writing duckling '
    'dumpling gosling sibling herring '
    'bed shed sled bobsled red reed seed weed seaweed moped steed flatbed'.split()
)

#: Words that name nothing one could point at, and whose plurals do not either
STOP_WORDS = frozenset(
    # determiners and quantities
    'the this that these those each every either neither some any all both half none '
    'such another other own same several many much more most few fewer less least lot '
    'plenty couple pair bunch group set row piece number variety assortment collection '
    'array kind type sort various different multiple single double triple whole entire '
    'enough '
    # numbers
    'zero one two three four five six seven eight nine ten eleven twelve dozen '
    'hundred thousand first second third last next '
    # pronouns and question words
    'you she her hers him his its they them their theirs our ours your yours who whom '
    'whose which what where when why how someone somebody something anyone anybody '
    'anything everyone everybody everything nobody nothing himself herself itself '
    'themselves oneself yourself myself thing stuff '
    # prepositions
    'about above across after against along alongside amid among amongst around aside '
    'atop away back before behind below beneath beside besides between beyond but '
    'down during except facing for from front inside into near nearby next off onto '
    'opposite out outside over past per round since through throughout till toward '
    'towards under underneath until upon via with within without '
    # conjunctions
    'and nor yet because although though while whereas unless than then whether '
    # auxiliaries, and what an apostrophe leaves of them
    'are was were been being has have had having does did doing done can could may '
    'might must shall should will would don doesn didn isn aren wasn weren hasn haven '
    'couldn wouldn won let not '
    # common adverbs
    'very too also just only even still almost quite rather really again already '
    'always often never sometimes soon now here there together apart alone ahead '
    'forward backward upside upward upwards downward sideways indoors outdoors '
    'upstairs downstairs well maybe perhaps some somewhere everywhere close closely '
    'partially partly fully mostly nearly slightly currently '
    # verbs that say little; their forms in -s, -ing and -ed need no entry
    'get got gotten goes gone went come came take took taken make made put look see '
    'seen saw show shown sit sat stand stood lie lay laid lain hold held wear worn use '
    'give given gave keep kept try seem appear contain include feature walk run ran '
    'ride rode ridden play eat ate eaten fly flew jump lean rest carry pose stare wait '
    'talk throw thrown hit catch caught hang hung enjoy prepare perform reach drive '
    'travel swim grow grown built lit blow gather '
    # adjectives of size, age and worth
    'big large huge giant small little tiny tall short long wide narrow high low deep '
    'young old older elderly new modern vintage antique nice pretty beautiful lovely '
    'cute good great best better bad fancy clean dirty full empty open closed busy '
    'ready able like similar sized top bottom left right middle center centre side '
    'edge end part area way '
    # the picture itself
    'photo photograph picture image view scene shot closeup background foreground '
    'display'.split()
)


@lru_cache(maxsize=100_000)
def singular(word: str) -> str:
    """The singular of a lower-case English noun.

    The first of these that applies:

    1. irregular plurals are listed (:data:`IRREGULAR`: people, children, mice,
       knives, buses, cookies, shoes, skis, ...);
    2. words of at most three letters, listed ones (:data:`INVARIANT`: gas, scissors,
       ramen, ...) and words in -ss, -us or -is (glass, bus, tennis) stay as they are;
    3. -men becomes -man;
    4. -ies becomes -y;
    5. -ches, -shes, -sses, -xes and -oes lose -es;
    6. -s is dropped.

    Verbs are not told from nouns: 'sits' becomes 'sit'.

    Args:
        word: One word in lower case.
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word == 'men':
        return 'man'
    if len(word) <= 3 or word in INVARIANT or word.endswith(('ss', 'us', 'is')):
        return word
    if word.endswith('men'):
        return word[:-3] + 'man'
    if word.endswith('ies'):
        return word[:-3] + 'y'
    if word.endswith(('ches', 'shes', 'sses', 'xes', 'oes')):
        return word[:-2]
    return word[:-1] if word.endswith('s') else word


@lru_cache(maxsize=100_000)
def names_something(word: str) -> bool:
    """Whether a lower-case word may stand for something in a picture.

    It has three letters or more, neither it nor its singular is among
    :data:`STOP_WORDS`, and it does not end in -ing or -ed, as verbs do, unless it is
    one of the listed :data:`NOUNS` (building, bed, ...). Other verbs and adjectives
    are not told from nouns.

    Args:
        word: One word in lower case.
    """
    one = singular(word)
    if len(one) < 3 or word in STOP_WORDS or one in STOP_WORDS:
        return False
    return one in NOUNS or not one.endswith(('ing', 'ed'))
