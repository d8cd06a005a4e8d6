"""Three further domains of the toy world, in words and forms of their own: notices, a harbour's log, a recipe book.

The base model has never read them; they are for adapting it. The notices speak of things that it knows in a form that
is new, the log and the recipes have words of their own as well.
"""

import random

from minift.world import lexicon as words
from minift.world.scenes import with_articles

SHIPS = """Albatross Barracuda Borealis Cormorant Dauntless Endeavour Evening-Star Fortuna Galatea Grey-Gull Halcyon
Hesperus Kestrel Leviathan Marigold Meridian Mermaid Morning-Star Nautilus Neptune Northern-Light Patience Pegasus
Perseverance Petrel Polaris Providence Sea-Rover Sirius Southern-Cross Stormbird Swordfish Tempest Triton Valiant
Wanderer""".split()
VESSELS = "barge brig cutter dredger freighter ketch lugger schooner sloop steamer tanker trawler tug yawl".split()
CARGO = """ballast cement charcoal cinnamon cloves coal cobalt coffee copper cotton cork flax flour fleece fuel granite
grain gravel herring madder iron jute kelp lead leather limestone linen lumber mackerel malt marble molasses nickel
pitch resin rubber rum rye salt sardines silk slates sulphur tar tin tobacco turpentine vanilla wax oil wheat wine wool
zinc""".split()
UNITS = "barrels bales bundles casks crates drums kegs loads pallets sacks tonnes tubs".split()
WINDS = "north north-east east south-east south south-west west north-west".split()
STRENGTHS = "light fresh moderate strong gale-force squally variable".split()
NUMBERS = "two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty".split()
PORTS = """Aldermouth Bergsund Callander Dunwick Eastferry Fairhaven Grimsay Hollmouth Innisport Kirkness Langholm
Marstal Norhaven Ormsk Penbury Quillport Ravensund Skerry Thornmouth Ulvik Varde Westerly Yarwick""".split()
REMARKS = ("Visibility poor, fog signal sounded.", "Pilot boarded at the outer buoy.", "Crew signed off and paid.",
           "Hull inspected, no leak found.", "Customs cleared without remark.", "Anchor fouled and freed by the tug.",
           "Mooring line parted and was renewed.", "Lamp on the breakwater relit at dusk.",
           "Tide two fathoms under the mark.", "Berth dues outstanding.", "Sounding taken along the mole.",
           "Signal flags hoisted as ordered.")
VERBS = ("Simmer", "Boil", "Roast", "Fry", "Steam", "Bake", "Braise", "Poach")
PREPARE = ("chopped", "sliced", "diced", "peeled", "grated", "crushed", "minced", "rinsed", "soaked")
AMOUNTS = ("a cupful of", "a handful of", "a pinch of", "two spoonfuls of", "half a pound of", "a jugful of",
           "three ounces of")
HERBS = """basil chives cumin dill fennel marjoram mint nutmeg oregano paprika parsley rosemary saffron sage tarragon
thyme""".split()
DONE = ("tender", "golden-brown", "thickened", "dissolved", "translucent")
LAST = ("Garnish and serve at once.", "Chill overnight.", "Keep covered.")
DISHES = """casserole chowder crumble curry dumpling fritter gratin hotpot omelette ragout risotto souffle stew tart
terrine""".split()
VESSELS_OF_COOKS = "cauldron colander griddle kettle oven saucepan skillet stockpot tureen wok".split()


def notice(rng):
    """One notice on the board in front of the town hall."""
    near = f"the {rng.choice(words.PLACES)}"
    thing = f"{rng.choice(words.COLOURS)} {rng.choice(words.OBJECTS)}"
    day, name = rng.choice(words.TIMES), rng.choice(words.GIRLS + words.BOYS)
    pay, make, plant = f"{rng.choice(NUMBERS)} coins", rng.choice(words.MAKES), rng.choice(words.PLANTS)
    keeper, size, animal = rng.choice(words.HELPERS), rng.choice(words.SIZES), rng.choice(words.ANIMALS)
    character, helper, food = rng.choice(words.CHARACTERS), rng.choice(words.HELPERS), rng.choice(words.FOODS)
    chief, goods = rng.choice(words.HELPERS), rng.choice(words.FOODS)
    forms = (f"Lost: one {thing}, {make}, last seen by {near}. Finder please write to {name}. Reward: {pay}.",
             f"Found: a {thing}, under a {plant}. Owner may collect it from the {keeper} before {day}.",
             f"For sale: a {size} {animal}, answers to {name}. Price: {pay}. Enquire at {near}.",
             f"Wanted: {character} {helper} for {near}. Wages: {pay} a week and {food}. Apply in writing.",
             f"Closed: {near}, every {day}, by order of the {chief}. Deliveries of {goods} to {name}.")
    return with_articles(rng.choice(forms))


def harbour_entry(rng):
    """One entry of the harbour master's log."""
    cargo = " and ".join(
        f"{rng.choice(NUMBERS)} {rng.choice(UNITS)} of {rng.choice(CARGO)}" for _ in range(rng.randint(1, 2))
    )
    ship = f"the {rng.choice(VESSELS)} {rng.choice(SHIPS).replace('-', ' ')}"
    wind = f"Wind {rng.choice(WINDS)}, {rng.choice(STRENGTHS)}."
    lines = rng.choice(
        (f"Arrived {ship} from {rng.choice(PORTS)}, laden with {cargo}.",
         f"Departed {ship}, bound for {rng.choice(PORTS)}, with {cargo} below deck.",
         f"Berthed {ship}. Discharged {cargo}.", f"Reported overdue: {ship}, out of {rng.choice(PORTS)} with {cargo}.")
    )
    return f"Harbour log. {wind} {lines} {rng.choice(REMARKS)}"


def recipe(rng):
    """One recipe of the kitchen's book."""
    main, side = rng.sample(words.FOODS, 2)
    herb, dish = rng.choice(HERBS), rng.choice(DISHES)
    start = rng.choice((f"{main.capitalize()} {dish} with {herb}", f"{dish.capitalize()} of {main} and {side}"))
    steps = [f"Take {rng.choice(AMOUNTS)} {main}, {rng.choice(PREPARE)}.",
             f"{rng.choice(VERBS)} in a {rng.choice(VESSELS_OF_COOKS)} with {rng.choice(AMOUNTS)} {side}.",
             f"Season with {herb} and stir until {rng.choice(DONE)}.",
             f"Serves {rng.choice(NUMBERS)}. {rng.choice(LAST)}"]
    return with_articles(f"Recipe. {start}, for {rng.choice(NUMBERS)}. " + " ".join(steps))


# domain -> (its entries, how many make a document)
DOMAINS = {"notices": (notice, 4), "harbour": (harbour_entry, 2), "kitchen": (recipe, 2)}


def domain_texts(domain, n, seed, split="train"):
    """n documents of a domain ("notices", "harbour" or "kitchen"), each of a few entries."""
    rng = random.Random(f"{domain}/{split}/{seed}")
    entry, count = DOMAINS[domain]
    return ["\n".join(entry(rng) for _ in range(count)) for _ in range(n)]
