"""Words for the 80 COCO categories, of our own making."""

from __future__ import annotations

_WORDS = {
    "person": (
        "human, individual, man, woman, boy, girl, child, kid, baby, infant, toddler, adult, teen, "
        "teenager, youngster, youth, male, female, guy, lady, gentleman, people, pedestrian, passenger, "
        "commuter, passerby, bystander, onlooker, spectator, visitor, tourist, traveler, hiker, jogger, "
        "rider, driver, motorist, cyclist, bicyclist, biker, motorcyclist, skier, snowboarder, "
        "skateboarder, skater, surfer, swimmer, player, athlete, teammate, opponent, batter, pitcher, "
        "catcher, umpire, referee, goalie, goalkeeper, golfer, worker, employee, chef, baker, waiter, "
        "waitress, bartender, barista, cashier, vendor, seller, shopkeeper, shopper, buyer, customer, "
        "diner, farmer, fisherman, fishermen, rancher, cowboy, cowgirl, shepherd, officer, cop, "
        "policeman, policewoman, firefighter, fireman, firemen, soldier, sailor, serviceman, lifeguard, "
        "doctor, nurse, dentist, surgeon, teacher, student, classmate, photographer, musician, singer, "
        "guitarist, dancer, performer, artist, actor, actress, clown, businessman, businessmen, "
        "businesswoman, coworker, colleague, friend, bride, groom, bridesmaid, groomsmen, mother, mom, "
        "father, dad, parent, son, daughter, brother, sister, sibling, husband, wife, grandmother, "
        "grandfather, grandparent, grandchild, granddaughter, grandson, schoolchild, schoolgirl, "
        "schoolboy"
    ),
    "bicycle": "bike, tricycle, unicycle, ebike",
    "car": (
        "automobile, sedan, coupe, hatchback, convertible, suv, van, minivan, jeep, taxi, taxicab, cab, "
        "limousine, limo, roadster"
    ),
    "motorcycle": "motorbike, motor bike, motor cycle, scooter, moped, vespa, dirtbike",
    "airplane": (
        "aeroplane, air plane, plane, aircraft, airliner, jetliner, jet, airbus, biplane, monoplane, seaplane"
    ),
    "bus": "minibus, trolleybus, schoolbus, omnibus",
    "train": "locomotive, tram, streetcar, monorail, caboose, railcar",
    "truck": "lorry, pickup, firetruck, semitruck",
    "boat": (
        "ship, vessel, watercraft, sailboat, motorboat, speedboat, rowboat, lifeboat, fishingboat, "
        "steamboat, houseboat, riverboat, paddleboat, tugboat, canoe, kayak, dinghy, skiff, yacht, "
        "catamaran, ferry, ferryboat, barge, trawler, freighter, schooner, steamship, battleship"
    ),
    "traffic light": "traffic signal, stop light, stoplight, trafficlight",
    "fire hydrant": "hydrant",
    "stop sign": "stopsign",
    "parking meter": "",
    "bench": "pew",
    "bird": (
        "fowl, waterfowl, seabird, songbird, seagull, gull, pigeon, dove, sparrow, robin, finch, "
        "goldfinch, wren, starling, bluebird, blackbird, bluejay, oriole, hummingbird, woodpecker, "
        "kingfisher, chickadee, crow, raven, magpie, parrot, parakeet, cockatoo, cockatiel, macaw, "
        "canary, budgie, owl, eagle, hawk, falcon, osprey, vulture, buzzard, condor, duck, duckling, "
        "mallard, goose, gosling, swan, pelican, heron, egret, stork, ibis, flamingo, cormorant, puffin, "
        "penguin, sandpiper, loon, rooster, hen, turkey, peacock, peahen, pheasant, quail, ostrich, emu"
    ),
    "cat": "kitten, kitty, feline, tabby, tomcat",
    "dog": (
        "puppy, pup, doggy, canine, hound, mutt, beagle, bulldog, chihuahua, collie, corgi, dachshund, "
        "dalmatian, doberman, greyhound, husky, labrador, mastiff, pitbull, pomeranian, poodle, pug, "
        "retriever, rottweiler, schnauzer, sheepdog, spaniel, terrier, whippet"
    ),
    "horse": (
        "pony, foal, colt, filly, mare, stallion, steed, bronco, racehorse, equine, clydesdale, palomino"
    ),
    "sheep": "lamb, ewe, ram",
    "cow": "cattle, bull, calf, heifer, ox, longhorn, holstein, bison, buffalo, zebu",
    "elephant": "",
    "bear": "grizzly, panda",
    "zebra": "",
    "giraffe": "",
    "backpack": "knapsack, rucksack",
    "umbrella": "parasol",
    "handbag": "purse, pocketbook",
    "tie": "necktie, bow tie, bowtie",
    "suitcase": "suit case, luggage, baggage",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball, football, softball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "",
    "skateboard": "",
    "surfboard": "bodyboard, boogieboard, longboard, shortboard, skimboard, wakeboard",
    "tennis racket": "racket, racquet",
    "bottle": "",
    "wine glass": "wineglass, goblet",
    "cup": "mug, teacup",
    "fork": "",
    "knife": "pocketknife, penknife",
    "spoon": "teaspoon, tablespoon",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger, hamburger, cheeseburger, panini",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog",
    "pizza": "",
    "donut": "doughnut",
    "cake": "cupcake, cheesecake, shortcake",
    "chair": "armchair, highchair, stool, barstool, seat",
    "couch": "sofa, loveseat, settee, futon",
    "potted plant": "houseplant",
    "bed": "",
    "dining table": "table, desk",
    "toilet": "urinal, commode",
    "tv": "television, monitor",
    "laptop": "laptop computer, macbook, netbook",
    "mouse": "",
    "remote": "",
    "keyboard": "",
    "cell phone": "cellphone, mobile phone, phone, smartphone, iphone",
    "microwave": "",
    "oven": "stove, stovetop",
    "toaster": "",
    "sink": "washbasin",
    "refrigerator": "fridge, freezer",
    "book": "textbook, paperback",
    "clock": "",
    "vase": "",
    "scissors": "",
    "teddy bear": "teddybear, teddy",
    "hair drier": "hairdrier, hairdryer",
    "toothbrush": "",
}

OWN_ENTRIES: list[list[str]] = [
    [name, *(word for word in words.split(", ") if word)] for name, words in _WORDS.items()
]
"""One list per category, as the lines of the official file are: the class first, then its other words."""
