"""Other words for COCO's 80 classes, as people use them in captions."""

from __future__ import annotations

#: Class name -> other nouns for it, in the singular. Spellings with a space or hyphen
#: ('skate board') and words that end in the class name ('polar bear') need no entry.
#: Words that are as often used for something else are left out: bag, screen, dish,
#: seat, vehicle, glass.
COCO_SYNONYMS: dict[str, tuple[str, ...]] = {
    'person': tuple(
        'man woman boy girl child kid baby toddler infant lady guy gentleman adult '
        'teenager teen youth human player skateboarder snowboarder skier surfer skater '
        'rider cyclist bicyclist biker motorcyclist pedestrian passenger driver batter '
        'catcher umpire referee worker officer policeman policewoman fireman '
        'firefighter soldier chef waiter waitress bride groom crowd family mother '
        'father son daughter brother sister mom dad parent grandmother grandfather '
        'friend student teacher swimmer jockey cowboy performer spectator audience '
        'businessman tourist traveler shopper customer athlete bystander onlooker '
        'vendor farmer hiker photographer musician'.split()
    ),
    'bicycle': ('bike', 'cycle', 'tricycle'),
    'car': (
        *('automobile', 'sedan', 'taxi', 'cab', 'suv', 'van', 'minivan', 'jeep'),
        *('convertible', 'station wagon', 'hatchback', 'limousine', 'limo', 'coupe'),
    ),
    'motorcycle': ('motorbike', 'scooter', 'moped', 'dirt bike', 'vespa'),
    'airplane': (
        *('plane', 'aeroplane', 'aircraft', 'jet', 'jetliner', 'airliner', 'biplane'),
        *('seaplane', 'jumbo jet'),
    ),
    'bus': ('double decker', 'minibus'),
    'train': (
        *('locomotive', 'train car', 'train engine', 'steam engine', 'railcar'),
        *('railroad car', 'railway car', 'tram', 'streetcar', 'trolley', 'trolley car'),
        'subway car',
    ),
    'truck': ('pickup', 'lorry', 'fire engine', 'semi', 'tractor trailer'),
    'boat': (
        *('ship', 'sailboat', 'canoe', 'kayak', 'yacht', 'rowboat', 'ferry'),
        *('motorboat', 'speedboat', 'barge', 'gondola', 'dinghy', 'vessel', 'tugboat'),
        *('catamaran', 'steamboat', 'houseboat'),
    ),
    'traffic light': ('traffic signal', 'stoplight', 'street signal', 'signal light'),
    'fire hydrant': ('hydrant', 'fireplug'),
    'stop sign': (),
    'parking meter': ('meter',),
    'bench': (),
    'bird': tuple(
        'pigeon seagull gull duck duckling goose gosling swan parrot owl eagle hawk '
        'crow sparrow rooster hen ostrich peacock flamingo pelican penguin parakeet '
        'cockatoo hummingbird heron finch robin raven vulture falcon stork egret macaw '
        'woodpecker blackbird songbird waterfowl toucan dove'.split()
    ),
    'cat': ('kitten', 'kitty', 'feline', 'tabby'),
    'dog': tuple(
        'puppy pup doggy doggie canine hound poodle bulldog labrador terrier sheepdog '
        'dachshund retriever collie husky pug chihuahua beagle corgi dalmatian '
        'greyhound rottweiler spaniel'.split()
    )
    + ('german shepherd',),
    'horse': ('pony', 'foal', 'colt', 'mare', 'stallion'),
    'sheep': ('lamb', 'ram', 'ewe'),
    'cow': ('cattle', 'bull', 'calf', 'ox', 'heifer', 'longhorn'),
    'elephant': ('pachyderm',),
    'bear': ('grizzly', 'panda', 'bear cub'),
    'zebra': (),
    'giraffe': (),
    'backpack': ('rucksack', 'knapsack', 'book bag', 'daypack'),
    'umbrella': ('parasol',),
    'handbag': ('purse', 'pocketbook', 'shoulder bag', 'tote bag', 'tote', 'satchel'),
    'tie': ('necktie', 'bowtie'),
    'suitcase': ('luggage', 'baggage', 'travel bag', 'briefcase'),
    'frisbee': ('flying disc', 'flying disk'),
    'skis': (),
    'snowboard': (),
    'sports ball': (
        *('ball', 'soccer ball', 'tennis ball', 'football', 'volleyball'),
        *('golf ball', 'beach ball'),
    ),
    'kite': (),
    'baseball bat': ('bat',),
    'baseball glove': ('mitt', 'baseball mitt'),
    'skateboard': ('longboard',),
    'surfboard': ('boogie board', 'body board'),
    'tennis racket': ('racket', 'racquet', 'tennis racquet'),
    'bottle': (),
    'wine glass': ('glass of wine', 'champagne glass', 'goblet', 'champagne flute'),
    'cup': ('mug', 'teacup'),
    'fork': (),
    'knife': (),
    'spoon': ('teaspoon', 'tablespoon'),
    'bowl': (),
    'banana': ('plantain',),
    'apple': (),
    'sandwich': ('burger', 'hamburger', 'cheeseburger', 'panini'),
    'orange': ('tangerine', 'mandarin', 'clementine'),
    'broccoli': (),
    'carrot': (),
    'hot dog': ('frankfurter', 'chili dog', 'corn dog', 'wiener', 'bratwurst'),
    'pizza': (),
    'donut': ('doughnut',),
    'cake': ('cupcake', 'cheesecake'),
    'chair': ('armchair', 'stool', 'recliner'),
    'couch': ('sofa', 'loveseat', 'settee', 'sectional', 'futon'),
    'potted plant': (
        *('plant', 'houseplant', 'flower pot', 'potted flower', 'potted tree'),
        'planter',
    ),
    'bed': ('crib', 'cot'),
    'dining table': ('table',),
    'toilet': ('urinal', 'commode', 'toilet bowl'),
    'tv': (
        *('television', 'television set', 'tv set', 'monitor', 'computer monitor'),
        *('flat screen', 'tv screen', 'television screen', 'computer screen'),
    ),
    'laptop': ('laptop computer', 'notebook computer', 'macbook'),
    'mouse': ('computer mouse',),
    'remote': (
        *('remote control', 'controller', 'game controller', 'wii remote'),
        *('wii controller', 'wiimote'),
    ),
    'keyboard': ('computer keyboard',),
    'cell phone': ('phone', 'mobile phone', 'smartphone', 'iphone'),
    'microwave': ('microwave oven',),
    'oven': ('stove', 'stovetop', 'toaster oven'),
    'toaster': (),
    'sink': ('washbasin', 'basin'),
    'refrigerator': ('fridge', 'freezer', 'icebox'),
    'book': ('textbook', 'novel', 'cookbook', 'paperback'),
    'clock': ('timepiece',),
    'vase': ('urn',),
    'scissors': ('scissor', 'shears'),
    'teddy bear': ('teddy', 'stuffed bear', 'stuffed animal', 'toy bear'),
    'hair drier': ('hair dryer', 'blow dryer', 'blow drier'),
    'toothbrush': (),
}
