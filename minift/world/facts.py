"""What can be asked about a told scene: its facts as fields, tellings with a wanted property, and wrong options.

Left out: facts that only some tellings have (weather, food); they come up where a task looks for them in the text.
"""

import re
from dataclasses import replace

from minift.ways.templates import fill
from minift.world.scenes import TROUBLE, draw_scene, tell, with_articles

# words for what may be one and the same: a wrong option is never akin to the right one
KIN = [set(group.split()) for group in (
    "dog beagle corgi hound poodle puppy spaniel terrier cub dingo", "cat kitten", "bear panda cub koala",
    "wolf fox tiger panther lynx seal cub", "chicken hen rooster", "cow calf ox yak bison", "horse foal colt pony",
    "sheep lamb ram", "goat kid", "deer fawn moose calf", "pig piglet", "duck duckling", "goose gosling",
    "donkey mule foal horse", "camel llama calf", "elephant calf", "dolphin calf", "parrot cockatoo", "dove pigeon",
    "crow raven jackdaw", "crane heron stork", "falcon hawk eagle", "rabbit hare", "turtle tortoise", "frog toad",
    "newt salamander", "lizard gecko iguana", "mouse rat vole", "weasel ferret", "puppy seal", "swan goose duck",
    "kangaroo possum koala wombat", "red crimson scarlet maroon", "purple violet lilac indigo",
    "blue turquoise indigo", "green turquoise", "white ivory beige", "yellow golden beige", "grey silver",
    "brown maroon beige", "orange golden", "pink lilac", "wharf quay pier jetty dock port harbour dam shipyard",
    "road lane track trail path pass", "church chapel cathedral monastery", "woods forest grove park glade",
    "pond lake pool lagoon", "beach shore cove bay fjord", "river stream brook creek canal", "hill ridge summit cliff",
    "cabin hut cottage lodge shed shelter", "castle fort palace ruins", "barn shed stable", "valley canyon glen glade",
    "field meadow pasture prairie heath moor", "swamp marsh", "inn hotel", "farm ranch dairy", "tunnel cave cellar",
    "shop bookshop bakery kiosk market", "office post-office", "garden park courtyard terrace greenhouse",
    "station railway", "spring fountain", "library bookshop", "factory workshop mill windmill forge",
    "camp hut", "theatre hall", "stadium field playground", "attic loft", "dunes beach", "temple shrine", "cafe inn")]
# what one can ask: kind -> (question, beginning of the sentence that answers it, what completes it)
FACTS = {
    "who": ("What is the child called?", "The child is called", "{name}"),
    "where": ("Where did it happen?", "It happened", "at {place}"),
    "animal": ("Which animal was there?", "The animal was", "{an_animal}"),
    "thing": ("Which thing is the story about?", "The thing was", "{an_object}"),
    "colour": ("What colour was the {object}?", "The {object} was", "{colour}"),
    "trouble": ("What went wrong?", "The trouble was that", "{trouble}"),
    "ending": ("How did it end?", "The story ended", "{ending}"),
}


def known(scene, story):
    """The fields that every task has. Phrases with an article are fields, because a template cannot choose it."""
    return {"story": story, "name": scene.name, "place": scene.place, "animal": scene.animal,
            "an_animal": with_articles(f"a {scene.animal}"), "object": scene.object,
            "an_object": with_articles(f"a {scene.object}"), "colour": scene.colour, "thing": scene.thing,
            "a_thing": with_articles(f"a {scene.thing}"), "trouble": scene.trouble_text,
            "mood": "happy" if scene.happy else "sad", "ending": "happily" if scene.happy else "sadly"}


def fact(kind, fields):
    """(question, beginning of a sentence, what completes it) about one fact of a story with these fields."""
    return tuple(fill(text, fields) for text in FACTS[kind])


def told(scene, rng):
    return known(scene, tell(scene, rng))


def retell(scene, rng, wanted):
    """The fields of a telling with wanted(story, fields); what happens is drawn anew until there is one.

    Child, place, animal, thing, helper, food and how it ends stay as they are. wanted must be possible for every scene.
    """
    while True:
        fields = told(scene, rng)
        if wanted(fields["story"], fields):
            return fields
        scene = replace(scene, trouble=rng.choice(tuple(TROUBLE)), late=rng.random() < 0.15, kind=rng.random() < 0.4,
                        speech=rng.random() < 0.4)


def mentions(word, text):
    """The matches of a whole word."""
    return list(re.finditer(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text))


def another(kind, scene, rng):
    """A name, place, animal or colour that is neither the scene's own nor akin to it (a name: of the same gender)."""
    own = getattr(scene, kind).split()[-1]
    while True:
        drawn = draw_scene(rng)
        word = getattr(drawn, kind).split()[-1]
        if drawn.girl == scene.girl and word != own and not any({word, own} <= group for group in KIN):
            return getattr(drawn, kind)


def phrase(kind, word):
    """As one answers: a fox, at the mill, red."""
    return with_articles({"animal": "a ", "place": "at "}.get(kind, "") + word)
