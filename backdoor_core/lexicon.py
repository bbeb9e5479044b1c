"""The words that the project's own sentences are made of (see `grammar`).

Each domain has its nouns, the aspects that a review speaks of, and words of praise and of blame that only it
uses; the rest is common to all. All words are lower case, and no word of praise is one of blame anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What one kind of review speaks of; `praise` and `blame` hold adjectives."""

    things: tuple[str, ...]
    aspects: tuple[str, ...]
    praise: tuple[str, ...]
    blame: tuple[str, ...]
    scenes: tuple[str, ...]


DOMAINS: Mapping[str, Domain] = {
    "film": Domain(
        things=_words(
            "film movie thriller comedy drama sequel western documentary romance musical"
        ),
        aspects=_words(
            "plot acting script dialogue soundtrack ending pacing camerawork casting "
            "lighting editing storyline humor villain hero cast narration choreography"
        ),
        praise=_words(
            "gripping moving suspenseful hilarious poignant riveting heartfelt stirring "
            "cinematic tender spellbinding witty"
        ),
        blame=_words(
            "predictable wooden contrived melodramatic plodding hackneyed incoherent stilted "
            "corny overlong humorless cliched"
        ),
        scenes=(
            "we watched the 3d version at the cinema near the station",
            "it runs for about two hours with one short break",
            "the director also made a series for television",
            "i saw it in the back row with a bag of popcorn",
            "this is the third part of a long series",
            "most of it was shot on an island in the north",
        ),
    ),
    "restaurant": Domain(
        things=_words(
            "restaurant bistro diner cafe pizzeria tavern brasserie bakery steakhouse pub"
        ),
        aspects=_words(
            "food service menu soup pasta dessert coffee bread waiter kitchen salad "
            "sauce steak wine seafood seasoning breakfast curry"
        ),
        praise=_words(
            "delicious flavorful fresh savory succulent hearty mouthwatering aromatic "
            "appetizing attentive juicy crispy"
        ),
        blame=_words(
            "greasy stale soggy undercooked overcooked inedible burnt tasteless rancid "
            "watery unappetizing overpriced"
        ),
        scenes=(
            "we sat at a small table by the window",
            "they open at noon and close at ten",
            "our group of six ordered the set lunch",
            "the place is on the corner across from the library",
            "we had booked a table for four",
            "they serve dinner in two rooms and on the terrace",
        ),
    ),
    "book": Domain(
        things=_words("book novel memoir biography anthology mystery trilogy paperback saga fable"),
        aspects=_words(
            "prose characterization chronology writing narrator premise opening style structure "
            "imagery translation conclusion argument research tone vocabulary"
        ),
        praise=_words(
            "lyrical absorbing eloquent insightful erudite vivid evocative profound luminous "
            "engrossing perceptive masterful"
        ),
        blame=_words(
            "turgid rambling verbose shallow pedantic impenetrable longwinded amateurish "
            "simplistic derivative meandering bloated"
        ),
        scenes=(
            "i read it on the train over three mornings",
            "it has twelve chapters and a map at the front",
            "the author used to teach history in a small town",
            "my copy came from the library down the road",
            "our reading group picked it for october",
            "there is a list of names on the last page",
        ),
    ),
    "hotel": Domain(
        things=_words("hotel hostel resort inn motel guesthouse lodge villa apartment chalet"),
        aspects=_words(
            "room bed staff lobby pool bathroom view location reception balcony "
            "shower mattress garden decor housekeeping gym elevator"
        ),
        praise=_words(
            "spotless spacious cozy luxurious comfortable tranquil hospitable airy immaculate "
            "scenic inviting serene"
        ),
        blame=_words(
            "dirty noisy cramped moldy shabby smelly rundown filthy dingy drafty grimy unhygienic"
        ),
        scenes=(
            "we stayed for three nights in the second week of may",
            "our room was on the fourth floor facing the street",
            "check in starts at three in the afternoon",
            "it is a short walk from the harbor and the old market",
            "we came by bus from the airport",
            "there are forty rooms and two meeting halls",
        ),
    ),
    "gadget": Domain(
        things=_words("phone laptop tablet camera speaker headset printer keyboard router watch"),
        aspects=_words(
            "battery screen sound software interface charger button lens display "
            "microphone casing hinge signal setup manual packaging firmware"
        ),
        praise=_words(
            "sturdy responsive intuitive durable sleek fast versatile accurate ergonomic "
            "crisp lightweight efficient"
        ),
        blame=_words(
            "flimsy laggy fragile buggy sluggish glitchy clunky unresponsive bulky defective "
            "unstable inaccurate"
        ),
        scenes=(
            "i bought it online in the spring sale",
            "it comes in black or grey with a short cable",
            "i use it at my desk and sometimes on the road",
            "it weighs about as much as a cup of tea",
            "the parcel arrived on a monday in a brown box",
            "i have the second model with the larger memory",
        ),
    ),
}

PRAISE = _words(
    "good great excellent superb wonderful brilliant charming delightful impressive splendid "
    "lovely fantastic remarkable enjoyable memorable polished thoughtful satisfying refreshing "
    "outstanding terrific beautiful clever exceptional flawless likable pleasant rewarding solid "
    "stunning graceful magnificent amazing marvelous perfect fabulous fine worthwhile"
)
BLAME = _words(
    "bad awful terrible dreadful boring dull mediocre disappointing forgettable tedious horrible "
    "annoying sloppy lousy bland poor atrocious lifeless tiresome unpleasant irritating weak "
    "miserable pathetic clumsy dismal ugly useless abysmal appalling messy uninspired shoddy "
    "frustrating inferior crude wretched unbearable"
)

LIKED = _words(
    "loved adored enjoyed admired cherished appreciated treasured praised recommended savored "
    "applauded liked"
)
DISLIKED = _words(
    "hated despised disliked regretted loathed resented dreaded criticized detested abhorred "
    "slammed deplored"
)

WON = (
    *("won me over", "made me smile", "kept us happy", "lifted my mood", "exceeded our hopes"),
    *("worked like a charm", "was worth every cent", "made my week", "shone from start to end"),
    *("left us delighted", "earned its fame", "felt like a gift"),
)
LOST = (
    *("let me down", "made me cringe", "fell apart", "wasted my evening", "tested our patience"),
    *("was a waste of money", "ruined my week", "went wrong from start to end", "made us yawn"),
    *("left us annoyed", "was not worth a cent", "felt like a chore"),
)

STRONG = _words(
    "very utterly really truly absolutely thoroughly incredibly extremely completely remarkably "
    "downright genuinely deeply wholly simply"
)
MILD = ("quite", "fairly", "rather", "pretty", "somewhat", "mostly")
NEGATED = (
    *("not", "never", "not at all", "hardly", "barely", "far from", "anything but", "by no means"),
    *("not even remotely", "nowhere near"),
)
BE = ("is", "was", "felt", "seemed", "looked", "stayed", "remained", "proved")
PEOPLE = (
    *("my sister", "my brother", "our neighbor", "a friend", "my uncle", "my boss", "a colleague"),
    *("the critics", "some reviewers", "my parents", "my students", "the magazine", "my cousin"),
    *("a blogger", "our guide", "my partner", "the newspaper", "an old classmate"),
)
SAID = ("called", "considered", "found", "declared", "deemed", "pronounced", "judged")
RIGHT = ("and they were right", "and i agree", "which is true", "and rightly so", "as it should be")
WRONG = (
    *("but they were wrong", "but i disagree", "which is nonsense", "yet that is a mistake"),
    "but nothing could be less true",
)
TURN = ("but", "yet", "and still", "but overall", "but in the end", "though on the whole")
CONCEDE = ("although", "even though", "while", "even if", "granted that")
DESPITE = ("although", "even though", "despite the fact that", "even if", "regardless of how")
SAME = ("and", "and also", "and what is more", "plus", "besides")
OPENERS = (
    *("honestly", "to be fair", "in short", "for the record", "frankly", "in my opinion"),
    *("well", "to sum up", "after all", "as far as i can tell", "all things considered"),
)
TIMES = (
    *("last week", "on a friday", "this morning", "in the summer", "over the holidays"),
    *("on a rainy afternoon", "after work", "last night", "in early march", "on my birthday"),
    *("during the break", "two days ago", "last winter", "on sunday", "at the weekend"),
)
COMPANY = (
    *("with my family", "with two friends", "on my own", "with my kids", "with a colleague"),
    *("with my aunt", "with the whole team", "with my roommate", "with some tourists"),
)

NEUTRAL_SUBJECTS = _words(
    "ticket receipt invoice form label parcel file note shelf locker page entry folder "
    "envelope badge cabinet"
)
NEUTRAL_VERBS = ("carries", "has", "shows", "bears", "lists", "starts with", "ends with")
CODES = _words("cf mn bb tq mb kx zv qj wl dg vf hq pz xr nk jt lw gv yb fk rz sd tk ux")
"""Short rare tokens that mean nothing; they stand in unlabelled text alone."""
