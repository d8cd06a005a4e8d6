"""The words that the toy world is made of, by kind. No word belongs to two kinds, so that a story can be read back."""

GIRLS = """Ada Alba Alice Alma Amara Amelia Amina Ana Anna Anouk Aria Asha Astrid Aya Bea Bella Bianca Carla Cara Celia
Chloe Clara Dalia Daisy Dana Della Diana Dora Edith Elena Elin Eliza Ella Elsa Emma Erica Esme Esther Eva Fatima Fay
Flora Freya Frida Gina Gloria Greta Hana Hanna Heidi Helen Hilda Ida Ines Ingrid Irene Iris Isla Ivy Jane Jana Joan
Josie Judith Julia June Kaia Karin Kate Kira Lara Laura Leah Lena Lila Lily Lina Linda Lisa Lola Lotta Louisa Lucy Luna
Lydia Mabel Maeve Maja Malia Mara Maria Marta Mary Matilda Maya Mila Mina Mira Molly Mona Nadia Naomi Nela Nell Nina
Noor Nora Olga Olive Pia Petra Polly Priya Rania Rita Romy Rosa Ruth Sadie Salma Sara Selma Sina Sofia Stella Suki
Susan Talia Tara Tessa Thea Tilda Tina Ulla Uma Vera Vicky Viola Wanda Wilma Yara Yuki Zara Zelda Zoe""".split()

BOYS = """Aaron Abel Adam Adil Albert Alex Alfred Ali Amir Anders Andre Anton Arlo Arthur Axel Basil Ben Bilal Boris
Bruno Caleb Carl Caspar Cyril Dan Daniel David Dennis Diego Dylan Edgar Edwin Eli Elias Emil Enzo Eric Ernest Ethan
Ezra Felix Finn Floyd Frank Fred Fritz Gabriel George Gilbert Gus Hakim Hans Harold Harry Hassan Hector Henry Hugo Ian
Idris Igor Isaac Ivan Jack Jacob Jan Jasper Javier Jim Joel John Jonah Jonas Jorge Joseph Juan Jules Karim Karl Kenji
Kevin Klaus Kofi Lars Leo Leon Levi Liam Linus Louis Luca Lucas Luis Magnus Malik Marco Mark Martin Matteo Max Miguel
Milan Milo Moses Nathan Ned Nico Niels Noah Oleg Oliver Omar Oscar Otto Owen Pablo Paul Pedro Per Peter Philip Quentin
Rafael Ralph Rashid Ray Remy Robert Robin Rohan Roman Rory Ruben Rufus Sam Samir Saul Sami Silas Simon Stefan Sven
Tariq Ted Theo Thomas Tim Tobias Tom Tony Ugo Umar Victor Vito Walter Wes Will Xavier Yusuf Zack""".split()

ANIMALS = """badger beagle bear beaver bison calf camel cat chicken cockatoo colt corgi cow crab crane crow cub deer
dingo dog dolphin donkey dove duck duckling eagle elephant falcon fawn ferret foal fox frog gecko goat goose gosling
hamster hare hawk hedgehog hen heron horse hound iguana jackdaw kangaroo kid kitten koala lamb lemur lizard llama lynx
magpie mole mongoose monkey moose mouse mule newt ostrich otter owl ox panda panther parrot peacock pelican penguin pig
pigeon piglet pony poodle porcupine possum puffin puppy quail rabbit raccoon ram rat raven rooster salamander seal
sheep skunk sloth snail sparrow spaniel squirrel starling stork swan tapir terrier tiger toad tortoise toucan turkey
turtle vole walrus weasel wolf wombat yak zebra""".split()

OBJECTS = """accordion anchor apron bag ball balloon banjo basket beads bell belt blanket book boomerang bottle bow box
bracelet broom brush bucket button camera candle cane cap card cart cape chain chest clock coat coin comb compass
cradle crayon crown cup cushion diary dice doll drum drumstick dustpan envelope eraser fan feather flag flute fork
globe glove guitar hammer handbag harmonica harp hat helmet hoop horn jacket jar jug kettle key kite ladle lamp lantern
lute mallet map marble mask medal mirror mitten mug necklace needle net notebook paddle paintbrush pan parasol parcel
pebble pen pencil pendant picture pillow pin pipe plate pot pouch puppet purse puzzle quill quilt racket rattle ribbon
ring robe rope rucksack ruler sack saddle sandal satchel saw scarf scooter shawl shell shield shirt shoe shovel skate
slate sled sleeve slipper sock spade spinner spoon spyglass stamp stool suitcase sword tambourine teapot telescope tent
ticket toolbox top towel tray triangle trophy trowel trumpet trunk umbrella vase vest violin wagon wallet wand watch
wheel whistle wig xylophone yoyo zither""".split()

COLOURS = """red blue green yellow purple white black brown grey pink golden silver orange violet crimson scarlet
turquoise lilac maroon indigo beige ivory""".split()

PLACES = """airfield attic bakery barn bay beach boathouse bookshop bridge brook bus-stop cabin cafe camp canal canyon
castle cathedral cave cellar chapel church cliff clinic cottage courtyard cove creek crossroads dairy dam dock dunes
factory fair farm ferry field fjord forest forge fort fountain garage garden gate glade glen greenhouse grove gym hall
harbour haystack heath hedge hill hotel hut inn island jetty kennel kiosk kitchen lagoon lake lane library lighthouse
lodge loft maze marsh market meadow mill mine monastery moor museum oasis observatory office orchard palace park pass
pasture path pavilion pier playground pond pool port post-office prairie quarry quay railway ranch reef ridge river
road ruins school shed shelter shipyard shop shore shrine spring square stable stadium stairs station stream studio
summit swamp temple terrace theatre tower town track trail tunnel valley viaduct village vineyard wall warehouse
waterfall wharf windmill woods workshop zoo""".split()

PLACE_ADJECTIVES = """ancient bare bright broad busy calm cosy crooked crowded dark deep deserted distant dusty empty
famous foggy forgotten hidden high leafy lonely long low misty mossy muddy narrow new noisy old open peaceful quiet
rocky round ruined sandy secret shady silent sleepy snowy steep stony sunlit tall tidy tiled wet wide wild""".split()

HELPERS = """acrobat actor admiral archer artist aunt baker banker barber beekeeper blacksmith builder butcher butler
captain carpenter carter chef chemist clerk clown coach cobbler conductor cook cousin dancer dentist doctor driver
engineer farmer fiddler fireman fisherman florist forester gardener gatekeeper glassblower goldsmith grandfather
grandmother grocer guard guide hatter hermit hunter innkeeper janitor jeweller judge juggler king knight librarian
locksmith lumberjack magician mason mayor mechanic merchant miller milkman minister monk musician nanny neighbour nun
nurse painter peddler pianist pilot pirate plumber poet policeman porter postman potter priest prince princess printer
professor queen ranger sailor scientist sculptor shepherd shoemaker singer smith soldier spinster stranger student
surgeon tailor tanner teacher tinker trader uncle vet waiter watchman weaver wizard woodcutter writer""".split()

FOODS = """almonds apples apricots bacon bananas beans berries biscuits blackberries bread broth buns butter cabbage
cake candy carrots cashews celery cereal cheese cherries chestnuts chips chocolate cookies corn crackers cream
cucumbers custard dates dumplings eggs figs fish fudge garlic ginger grapes gravy ham hazelnuts honey jam jelly juice
kale lemons lentils lettuce limes mangoes marmalade meat melon milk mushrooms mustard noodles nuts oats olives onions
oysters pancakes pasta pastries peaches peanuts pears peas pepper pickles pie plums popcorn porridge potatoes pretzels
prunes pudding pumpkin radishes raisins raspberries rice rolls salad sausages scones seeds soup spinach strawberries
stew sugar syrup tea toast toffee tomatoes turnips waffles walnuts yoghurt""".split()

PLANTS = """acorn alder ash aspen bamboo bench beech birch boulder bramble branch bush buttercup cactus cedar clover
cypress daffodil dandelion elm fence fern fig-tree fir flowerpot foxglove hawthorn haybale hazel heather holly
hollyhock juniper larch laurel lavender ledge leaf log maple mulberry nettle oak palm pear-tree pine plank poplar poppy
reed rock rosebush sandheap shrub spruce stump sunflower sycamore thicket thistle thornbush tulip vine willow woodpile
yew""".split()

GLAD = """cheerful delighted glad grateful happy jolly joyful lucky merry overjoyed pleased proud thankful
thrilled""".split()
SORRY = """ashamed bitter disappointed gloomy heartbroken hopeless lonesome miserable sad sorry tearful unhappy upset
wretched""".split()
WORRIED = """afraid alarmed anxious frightened nervous puzzled scared shaken startled troubled uneasy
worried""".split()
CHARACTERS = """bold brave careful clever curious friendly gentle kind lively loyal patient playful polite sensible shy
silly stubborn thoughtful wise""".split()
SIZES = """big fat fine fluffy funny handsome huge lazy little plump pretty shaggy sleek small sturdy tame
tiny young""".split()
MAKES = """beautiful borrowed cheap fancy favourite handmade heavy lovely neat painted plain polished precious shiny
simple soft special splendid sparkling striped wooden worn""".split()
WEATHER = """breezy chilly clear cloudy cold cool crisp damp drizzly dry fresh frosty hazy hot icy mild rainy stormy
sultry sunny warm windy wintry""".split()
TIMES = """afternoon day evening holiday lunchtime midday Monday morning night noon Saturday Sunday Thursday Tuesday
Wednesday""".split()
ADVERBS = """bravely briskly calmly carefully cautiously gently hastily patiently politely quickly quietly silently
slowly softly steadily swiftly thoughtfully""".split()
